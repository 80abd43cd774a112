// SPDX-License-Identifier: Apache-2.0
//
// Copies an image file byte for byte, holes as holes, so that a repair can leave the damaged one
// untouched. Source: lseek(2), SEEK_DATA.

import BlockTypes
import LinuxIO

/// Makes the file that `check --to` repairs.
enum CopyImage {
  private static let chunkByteCount: UInt64 = 4 << 20

  /// Copies the file at `path` to `target`, which must not exist, and makes it durable.
  static func run(
    from path: String, to target: String, takesLocks: Bool, _ unfinished: UnfinishedFile
  ) throws(ImageFault) {
    let source: LayerFile
    do throws(SystemError) {
      source = LayerFile(try ImageFile(opening: path, access: .readOnly), path: path)
    } catch {
      throw ImageFault(path, error)
    }
    if takesLocks {
      do throws(ImageError) {
        try source.file.lockForReading()
      } catch {
        throw ImageFault(path, error)
      }
    }
    let copy = try unfinished.make(target) { () throws(ImageFault) in try create(target) }
    do throws(ImageFault) {
      try fill(copy, from: source)
    } catch {
      try remove(target, because: error)
    }
  }

  private static func create(_ target: String) throws(ImageFault) -> LayerFile {
    do throws(SystemError) {
      return LayerFile(try ImageFile(creating: target), path: target)
    } catch {
      throw ImageFault(target, error)
    }
  }

  /// Removes an unfinished copy and throws `fault`.
  static func remove(_ path: String, because fault: ImageFault) throws(ImageFault) -> Never {
    do throws(SystemError) {
      try FolderEntry.remove(path)
    } catch {
      throw ImageFault(
        fault.path, "\(fault.cause), and the unfinished copy \(path) stays (\(error))",
        wayOut: "remove it", kind: fault.kind)
    }
    throw fault
  }

  private static func fill(_ copy: LayerFile, from source: LayerFile) throws(ImageFault) {
    let byteCount = try source.byteCount()
    let hasHoles = try source.isRegularFile()
    try copy.truncate(to: byteCount)
    var offset: UInt64 = 0
    while offset < byteCount {
      var end = byteCount
      if hasHoles {
        guard let data = try source.nextData(from: offset) else { break }
        offset = data
        end = try source.nextHole(from: offset) ?? byteCount
      }
      while offset < end {
        let count = min(Self.chunkByteCount, end - offset)
        let bytes = try source.read(at: offset, byteCount: Int(count))
        // The file became shorter meanwhile: what is missing reads as zeroes.
        if bytes.isEmpty { break }
        try copy.write(bytes, at: offset)
        offset += UInt64(bytes.count)
      }
      offset = max(offset, end)
    }
    try copy.synchronize()
    do throws(SystemError) {
      try FolderEntry.synchronizeFolder(of: copy.path)
    } catch {
      throw ImageFault(copy.path, error)
    }
  }
}
