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
    do throws(SystemError) {
      storage = LayerFile(try ImageFile(opening: path, access: .readOnly), path: path)
    } catch {
      throw ImageFault(path, error)
    }
    byteCount = try storage.byteCount()
    if takesLocks {
      do throws(ImageError) {
        try storage.file.lockForReading()
      } catch {
        throw ImageFault(path, error)
      }
    }
  }

  func read(at offset: UInt64, byteCount: Int) throws(ImageFault) -> [UInt8] {
    try storage.read(at: offset, byteCount: byteCount)
  }

  func fault(_ error: ImageError) -> ImageFault { ImageFault(storage.path, error) }
}
