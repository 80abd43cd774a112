// SPDX-License-Identifier: Apache-2.0
//
// The expandable image of Parallels: a header, a table of 32-bit places, clusters.
// Spec: "Parallels Expandable Image File Format". This file performs no I/O.

import BlockTypes

/// The table of a Parallels image.
struct ParallelsImage: BlockTable {
  private static let headerByteCount = 64
  private static let inUse: UInt64 = 0x746f_6e59
  private static let blockByteCountMax: UInt64 = 256 << 20

  let blockByteCount: UInt64
  let byteCount: UInt64
  private let entryCount: UInt64
  /// Bytes that an entry of the table counts in: sectors in the old format, clusters in the new.
  private let entryUnitByteCount: UInt64
  private var slice = EntrySlice(.littleEndian32, of: "the block allocation table")

  init<Source: ForeignSource>(_ source: Source) throws(Source.Failure) {
    let header = try source.require("the Parallels header", at: 0, byteCount: Self.headerByteCount)
    func word(_ offset: Int) -> UInt64 { UInt64(header.littleEndian(UInt32.self, at: offset)) }
    let countsClusters: Bool
    switch header.text(at: 0, byteCount: 16) {
    case "WithoutFreeSpace": countsClusters = false
    case "WithouFreSpacExt": countsClusters = true
    default: throw source.fault(.corrupt, "this is no Parallels image: its magic is not there")
    }
    guard word(16) == 2 else {
      throw source.fault(.unsupported, "Parallels version \(word(16)) is not supported", at: 16)
    }
    guard word(44) != Self.inUse else {
      throw source.fault(
        .inUse,
        "the image is marked as in use: its writer did not close it; close or repair it there "
          + "first", at: 44)
    }
    blockByteCount = word(28) * 512
    guard (512...Self.blockByteCountMax).contains(blockByteCount) else {
      throw source.fault(
        .corrupt, "the cluster size of \(word(28)) sectors is outside 1 to 524288", at: 28)
    }
    entryUnitByteCount = countsClusters ? blockByteCount : 512
    entryCount = word(32)
    let sectorCount = countsClusters ? header.littleEndian(UInt64.self, at: 36) : word(36)
    let (byteCount, isTooLarge) = sectorCount.multipliedReportingOverflow(by: 512)
    // At most 2^32 clusters of 2^28 bytes.
    guard !isTooLarge, byteCount <= entryCount * blockByteCount else {
      throw source.fault(
        .corrupt, "\(entryCount) clusters are too few for a disk of \(sectorCount) sectors", at: 32)
    }
    self.byteCount = byteCount
    try source.requireTable(
      "the block allocation table", at: UInt64(Self.headerByteCount), count: entryCount, width: 4)
  }

  mutating func place<Source: ForeignSource>(
    of index: UInt64, in source: Source
  ) throws(Source.Failure) -> BlockPlace {
    let table = UInt64(Self.headerByteCount)
    let entry = try slice.entry(index, ofTableAt: table, count: entryCount, in: source)
    if entry == 0 { return .absent }
    // At most 2^32 * 2^28.
    let offset = entry * entryUnitByteCount
    guard offset >= table + entryCount * 4 else {
      throw source.fault(
        .corrupt, "cluster \(index) of the disk lies on the table", at: table + index * 4)
    }
    return .data(offset)
  }
}
