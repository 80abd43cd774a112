// SPDX-License-Identifier: Apache-2.0
//
// Reads the tables of an image for the checker, without reading holes.

import LinuxIO
import Qcow2

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

  func write(_ words: [UInt64], at offset: UInt64) throws(ImageFault) {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(words.count * 8)
    for word in words { bytes.appendBigEndian(word) }
    try storage.write(bytes, at: offset)
  }

  /// Where refcount block `index` lies; nil when there is none.
  func refcountBlock(_ index: UInt64, _ header: Header) throws(ImageFault) -> UInt64? {
    let entryCount =
      UInt64(header.refcountTableClusterCount) << UInt64(header.geometry.clusterBits - 3)
    guard index < entryCount else { return nil }
    let bytes = try read(header.refcountTableOffset.byteOffset + index * 8, 8)
    guard bytes.count == 8 else { return nil }
    let offset = bytes.bigEndianInteger(UInt64.self, at: 0)
    return offset == 0 ? nil : offset
  }

  func makeChecker(
    _ header: Header, memoryByteCountMax: Int = Checker<ImageFault>.defaultMemoryByteCountMax,
    finding: @escaping (CheckFinding) -> Void = { _ in }
  ) throws(ImageFault) -> Checker<ImageFault> {
    let path = storage.path
    let allocatedByteCount =
      (hasHoles ? try storage.allocatedByteCount() : nil) ?? fileByteCount
    return Checker(
      header: header, fileByteCount: fileByteCount, allocatedByteCount: allocatedByteCount,
      memoryByteCountMax: memoryByteCountMax,
      read: { (offset, byteCount) throws(ImageFault) in try read(offset, byteCount) },
      fault: { ImageFault(path, $0) }, finding: finding)
  }
}
