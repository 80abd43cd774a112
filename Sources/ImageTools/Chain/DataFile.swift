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
    let file: LayerFile
    let isAllowed: Bool
    do throws(SystemError) {
      isAllowed = try allows(path, image: image.path, options.allowedDataFiles)
    } catch {
      throw missing(path, image, error)
    }
    guard isAllowed else {
      throw ImageFault(
        image.path,
        "its data file '\(recorded)' is not opened: it is not in the folder of the image",
        wayOut: "if you trust it, say --allow-data-file '\(path)'", kind: .refused)
    }
    do throws(SystemError) {
      file = LayerFile(try ImageFile(opening: path, access: access), path: path)
    } catch {
      throw missing(path, image, error)
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

  /// Whether the file is in the image's folder (or below it), whatever links lead there, or is one
  /// that the user names.
  private static func allows(
    _ path: String, image: String, _ allowed: [String]
  ) throws(SystemError) -> Bool {
    let file = try FolderEntry.resolve(path)
    let folder = try FolderEntry.resolve(BackingName(".").path(relativeTo: image))
    if file.hasPrefix(folder == "/" ? "/" : folder + "/") { return true }
    for other in allowed where try FolderEntry.resolve(other) == file { return true }
    return false
  }

  private static func missing(
    _ path: String, _ image: LayerFile, _ error: SystemError
  ) -> ImageFault {
    ImageFault(
      image.path, "its data file \(path) cannot be opened (\(error))",
      wayOut: ImageFault.wayOut(of: error.errno))
  }
}
