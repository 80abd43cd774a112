// SPDX-License-Identifier: Apache-2.0
//
// A file of a foreign image. Opens, locks and reads it; never writes.

import BlockTypes
import ForeignImages
import LinuxIO

/// An open file, as `ForeignImages` asks it for bytes.
struct ForeignFile: ForeignSource {
  let storage: LayerFile
  let byteCount: UInt64

  init(path: String, takesLocks: Bool) throws(ImageFault) {
    let storage: LayerFile
    do throws(SystemError) {
      storage = LayerFile(try ImageFile(opening: path, access: .readOnly), path: path)
    } catch {
      throw ImageFault(path, error)
    }
    try self.init(storage, takesLocks: takesLocks)
  }

  /// Opens a file that the image at `path` names as one of its parts, if the gate allows it.
  init(
    part name: String, ofImageAt path: String, gate: FileGate, takesLocks: Bool
  ) throws(ImageFault) {
    let part = BackingName(name).path(relativeTo: path)
    let file: LayerFile?
    do throws(SystemError) {
      file = try gate.open(
        part, besideAnyOf: [try FolderEntry.split(path).folder], access: .readOnly)
    } catch {
      throw ImageFault(part, error)
    }
    guard let file else { throw gate.refusal(of: name, at: part, as: "part", image: path) }
    try self.init(file, takesLocks: takesLocks)
  }

  private init(_ storage: LayerFile, takesLocks: Bool) throws(ImageFault) {
    self.storage = storage
    byteCount = try storage.byteCount()
    if takesLocks {
      do throws(ImageError) {
        try storage.file.lockForReading()
      } catch {
        throw ImageFault(storage.path, error)
      }
    }
  }

  func read(at offset: UInt64, byteCount: Int) throws(ImageFault) -> [UInt8] {
    try storage.read(at: offset, byteCount: byteCount)
  }

  func fault(_ error: ImageError) -> ImageFault { ImageFault(storage.path, error) }
}
