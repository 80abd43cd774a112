// SPDX-License-Identifier: Apache-2.0
//
// An image of another program, with the files that it consists of. Opens and locks files.

import BlockTypes
import ForeignImages
import LinuxIO

/// A foreign image and its open files.
struct ForeignLayer {
  var image: ForeignImage
  let files: [ForeignFile]
  let path: String

  var diskByteCount: UInt64 { image.diskByteCount }

  /// Opens the image at `path`.
  ///
  /// - Parameters:
  ///   - opensOthers: whether files are opened that it names. Not when its format was guessed:
  ///     whoever made the bytes would choose which of our files are read.
  ///   - allowed: which ones besides those in its folder.
  init(
    path: String, format: ForeignFormat, takesLocks: Bool, opensOthers: Bool,
    allowed: AllowedFiles
  ) throws(ImageFault) {
    var files = [try ForeignFile(path: path, takesLocks: takesLocks)]
    let gate = try FileGate.backing(allowed)
    let first = try files[0].storage.identity()
    image = try ForeignImage(format, files: &files) { (name) throws(ImageFault) in
      guard opensOthers else {
        throw ImageFault(
          path, "the image names another file, and its format is not said",
          wayOut: "say it (-f \(format.rawValue)) if you trust the image", kind: .refused)
      }
      let file = try ForeignFile(
        part: name, ofImageAt: path, gate: gate, takesLocks: takesLocks)
      guard try file.storage.identity() != first else {
        throw ImageFault(path, "the image names itself as one of its files", kind: .corrupt)
      }
      return file
    }
    self.files = files
    self.path = path
  }

  /// The run at `offset`, and whether its bytes are in a hole of their file.
  mutating func extent(
    at offset: UInt64, byteCountMax: UInt64
  ) throws(ImageFault) -> (extent: ForeignExtent, isHole: Bool) {
    var extent = try image.extent(at: offset, byteCountMax: byteCountMax, in: files)
    guard case .data(let file, let start, mayHaveHoles: true) = extent.content else {
      return (extent, false)
    }
    let storage = files[file].storage
    guard try storage.tellsHoles() else { return (extent, false) }
    let range = ByteRange(start: start, end: start + extent.byteCount)
    guard let run = try storage.firstRun(of: range) else { return (extent, false) }
    extent.byteCount = min(extent.byteCount, run.byteCount)
    return (extent, run.isZero)
  }
}
