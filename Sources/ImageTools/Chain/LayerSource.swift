// SPDX-License-Identifier: Apache-2.0
//
// Where the next layer of a chain comes from: the user, or the header of the layer above.

import BlockTypes
import LinuxIO
import Qcow2

/// A layer that is to be opened.
struct LayerSource {
  let path: String
  /// As given or recorded; nil leaves it to detection.
  let format: ImageFormat?
  /// The image that names this one as its backing file; nil for the top image.
  let overlay: String?

  init(path: String, format: ImageFormat?, overlay: String?) {
    self.path = path
    self.format = format
    self.overlay = overlay
  }

  /// The source of the layer below `layer`, nil when it has none.
  init?(below layer: OpenedLayer, options: OpenChain.Options) throws(ImageFault) {
    guard let header = layer.header, let recorded = header.backingFile else { return nil }
    let name = BackingName(recorded)
    if let scheme = name.scheme {
      throw ImageFault(
        layer.path,
        "the backing file '\(recorded)' names the protocol '\(scheme)', but only files "
          + "are supported",
        wayOut: "point the overlay to a file (qemu-img rebase -u -b ./NAME -F FORMAT)",
        kind: .unsupported)
    }
    self.path = name.path(relativeTo: layer.path)
    self.overlay = layer.path
    guard let recordedFormat = header.backingFormat else {
      guard options.detection == .all else {
        throw ImageFault(
          layer.path,
          "the format of the backing file '\(recorded)' is not recorded and is not "
            + "guessed",
          wayOut: "record it (qemu-img rebase -u -b '\(recorded)' -F FORMAT '\(layer.path)')",
          kind: .refused)
      }
      self.format = nil
      return
    }
    guard let format = ImageFormat(rawValue: recordedFormat) else {
      throw ImageFault(
        layer.path,
        "the backing file '\(recorded)' has the format '\(recordedFormat)', which is "
          + "not supported",
        wayOut: "convert it (qemu-img convert -O qcow2)", kind: .unsupported)
    }
    self.format = format
  }

  func open(access: ImageFile.Access) throws(ImageFault) -> LayerFile {
    do throws(SystemError) {
      return LayerFile(try ImageFile(opening: path, access: access), path: path)
    } catch {
      guard let overlay else {
        // A file that may be read but not written has a way out that a missing one has not.
        if access == .readWrite, ImageFile.isReadable(path) {
          throw ImageFault(
            path, "\(error)", wayOut: "open it read-only, or make it writable for this user")
        }
        throw ImageFault(path, error)
      }
      throw ImageFault(
        overlay, "its backing file \(path) cannot be opened (\(error))",
        wayOut: ImageFault.wayOut(of: error.errno).map {
          "\($0), or point the overlay to another file (qemu-img rebase -u)"
        })
    }
  }
}

extension ImageFile {
  /// Whether the file at `path` can be opened for reading.
  fileprivate static func isReadable(_ path: String) -> Bool {
    do throws(SystemError) {
      _ = try ImageFile(opening: path, access: .readOnly)
      return true
    } catch {
      return false
    }
  }
}
