// SPDX-License-Identifier: Apache-2.0
//
// Opening the external data file of an image. An image that somebody else made may name any file,
// and what it names is read and written as a disk: so it has to lie in the image's own folder, or
// the user allows it by name. The name is that of a file, whatever it looks like.
// Spec: qcow2.rst, "External data file name string"; security.md 2.3 (CVE-2024-32498,
// CVE-2024-4467).

import BlockTypes
import LinuxIO
import Qcow2

/// The external data files of images.
enum DataFile {
  /// Opens and locks the data file of the image in `image`; nil when it has none, or when it is not
  /// to be looked at.
  ///
  /// A relative name counts from the folder of the image.
  static func open(
    of image: LayerFile, _ header: Header, access: ImageFile.Access, options: OpenChain.Options
  ) throws(ImageFault) -> LayerFile? {
    guard options.requiresSupport, header.incompatibleFeatures.contains(.externalDataFile),
      let recorded = header.externalDataFile
    else { return nil }
    // Whoever keeps the image elsewhere would choose which file of ours a guest can use.
    guard image.file.remote == nil else {
      throw ImageFault(
        image.path,
        "its data file '\(recorded)' would be a file of this machine, and an image that is kept "
          + "elsewhere may not name one", kind: .refused)
    }
    let path = BackingName(recorded).path(relativeTo: image.path)
    let gate = try FileGate.data(options.allowed)
    let opened: LayerFile?
    do throws(SystemError) {
      opened = try gate.open(path, besideAnyOf: [image.folder].compactMap(\.self), access: access)
    } catch {
      throw missing(path, image, error)
    }
    guard let file = opened else {
      throw gate.refusal(of: recorded, at: path, as: "data file", image: image.path)
    }
    do throws(ImageError) {
      guard options.takesLocks else { return file }
      switch access {
      case .readOnly: try file.file.lockForReading()
      case .readWrite: try file.file.lockForWriting()
      }
    } catch {
      throw ImageFault(path, error)
    }
    return file
  }

  private static func missing(
    _ path: String, _ image: LayerFile, _ error: SystemError
  ) -> ImageFault {
    ImageFault(
      image.path, "its data file \(path) cannot be opened (\(error))",
      wayOut: ImageFault.wayOut(of: error.errno))
  }
}
