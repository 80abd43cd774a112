// SPDX-License-Identifier: Apache-2.0
//
// Where the next layer of a chain comes from: the user, or the header of the layer above.

import BlockTypes
import LinuxIO
import Qcow2

/// A layer that is to be opened.
struct LayerSource {
  let path: String
  /// What opens the path, when it is an address; nil for a file.
  let opener: (any RemoteOpener)?
  /// As given or recorded; nil leaves it to detection.
  let format: ImageFormat?
  /// The image that names this one as its backing file; nil for the top image.
  let overlay: String?
  /// The name in the overlay, and the folders in which a file of that name may be; the name is
  /// empty for the top image.
  private let recorded: String
  private let neighbours: [String]

  /// An image that the user names.
  init(path: String, format: ImageFormat?, remote: (any RemoteOpener)?) {
    self.path = path
    self.opener = remote?.recognises(path) == true ? remote : nil
    self.format = format
    self.overlay = nil
    self.recorded = ""
    self.neighbours = []
  }

  /// The source of the layer below `layer`, nil when it has none.
  ///
  /// - Parameter top: the chain's top image.
  init?(
    below layer: OpenedLayer, top: LayerFile, options: OpenChain.Options
  ) throws(ImageFault) {
    guard let header = layer.header, let recorded = header.backingFile else { return nil }
    self.recorded = recorded
    self.neighbours = [layer.storage.folder, top.folder].compactMap(\.self)
    let name = BackingName(recorded)
    if let remote = options.remote, remote.recognises(recorded) {
      self.path = recorded
      self.opener = remote
    } else {
      try Self.requireFile(name, of: layer)
      self.path = name.path(relativeTo: layer.path)
      self.opener = nil
    }
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
        wayOut: "convert it (strata convert -O qcow2)", kind: .unsupported)
    }
    self.format = format
  }

  /// Throws unless `name` is that of a file and `layer` may name files of this machine.
  private static func requireFile(
    _ name: BackingName, of layer: OpenedLayer
  ) throws(ImageFault) {
    if let scheme = name.scheme {
      throw ImageFault(
        layer.path,
        "the backing file '\(name.text)' names the protocol '\(scheme)', but only files and NBD "
          + "URIs are supported",
        wayOut: "point the overlay to a file (qemu-img rebase -u -b ./NAME -F FORMAT)",
        kind: .unsupported)
    }
    // Whoever keeps the image elsewhere would choose which file of ours a guest can read.
    guard layer.storage.file.remote == nil else {
      throw ImageFault(
        layer.path,
        "its backing file '\(name.text)' would be a file of this machine, and an image that is "
          + "kept elsewhere may not name one",
        wayOut: "let its server serve the whole chain", kind: .refused)
    }
  }

  /// - Parameter gate: asked for files that an overlay names.
  func open(access: ImageFile.Access, gate: FileGate) throws(ImageFault) -> LayerFile {
    if let opener { return try opener.open(path, namedBy: overlay, access: access) }
    guard let overlay else { return try openTop(access) }
    let file: LayerFile?
    do throws(SystemError) {
      file = try gate.open(path, besideAnyOf: neighbours, access: access)
    } catch {
      throw ImageFault(
        overlay, "its backing file \(path) cannot be opened (\(error))",
        wayOut: ImageFault.wayOut(of: error.errno).map {
          "\($0), or point the overlay to another file (qemu-img rebase -u)"
        })
    }
    guard let file else {
      throw gate.refusal(of: recorded, at: path, as: "backing file", image: overlay)
    }
    return file
  }

  private func openTop(_ access: ImageFile.Access) throws(ImageFault) -> LayerFile {
    do throws(SystemError) {
      let (folder, name) = try FolderEntry.split(path)
      let file = try ImageFile(opening: "\(folder)/\(name)", access: access)
      return LayerFile(file, path: path, folder: folder)
    } catch {
      // A file that may be read but not written has a way out that a missing one has not.
      if access == .readWrite, ImageFile.isReadable(path) {
        throw ImageFault(
          path, "\(error)", wayOut: "open it read-only, or make it writable for this user")
      }
      throw ImageFault(path, error)
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
