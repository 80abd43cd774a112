// SPDX-License-Identifier: Apache-2.0
//
// Reads the tables of an image for the checker, without reading holes.

import LinuxIO

/// The file as the checker sees it.
struct MetadataReader {
  let storage: LayerFile
  let fileByteCount: UInt64
  /// Whether the file may have holes and can be asked for them.
  let hasHoles: Bool

  /// Smaller reads are cheaper than the question whether there is a hole.
  private static let holeByteCountMin = 4096

  init(_ storage: LayerFile) throws(ImageFault) {
    self.storage = storage
    self.fileByteCount = try storage.byteCount()
    self.hasHoles = try storage.isRegularFile()
  }

  /// Returns the bytes at `offset`; fewer, or none, when the rest is zeroes or past the end.
  func read(_ offset: UInt64, _ byteCount: Int) throws(ImageFault) -> [UInt8] {
    guard offset < fileByteCount else { return [] }
    if hasHoles && byteCount >= Self.holeByteCountMin {
      guard let data = try storage.nextData(from: offset) else { return [] }
      if data - offset >= UInt64(byteCount) { return [] }
    }
    return try storage.read(at: offset, byteCount: byteCount)
  }
}
