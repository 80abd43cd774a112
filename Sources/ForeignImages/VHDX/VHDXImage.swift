// SPDX-License-Identifier: Apache-2.0
//
// The block table of a VHDX: 64-bit entries with a state and a place in MiB, and behind each chunk
// of them one for a bitmap that only differences use. Spec: MS-VHDX 2.5, "BAT". No I/O.

import BlockTypes

/// The table of a VHDX file.
struct VHDXImage: BlockTable {
  let blockByteCount: UInt64
  let byteCount: UInt64
  let isPreallocated: Bool
  private let table: ByteRange
  private let entryCount: UInt64
  /// Blocks between two entries for bitmaps.
  private let chunkRatio: UInt64
  private var slice = EntrySlice(.littleEndian64, of: "the block table")

  private static let signature = "vhdxfile"

  init<Source: ForeignSource>(_ source: Source) throws(Source.Failure) {
    let start = try source.require("the VHDX's signature", at: 0, byteCount: 8)
    guard start.starts(with: Self.signature.utf8) else {
      throw source.fault(.corrupt, "this is no VHDX: its signature is not there", at: 0)
    }
    let header = try VHDXHeader.current(of: source)
    try header.requireEmptyLog(source)
    let regions = try VHDXRegions(source)
    let metadata = try VHDXMetadata(source, in: regions.metadata)
    blockByteCount = metadata.blockByteCount
    byteCount = metadata.diskByteCount
    isPreallocated = metadata.isFixed
    table = regions.table
    // 2^23 sectors share a bitmap of 1 MiB, so this is from 16 to 32768.
    chunkRatio = (metadata.sectorByteCount << 23) / blockByteCount
    let blockCount = byteCount / blockByteCount + (byteCount % blockByteCount == 0 ? 0 : 1)
    entryCount = blockCount == 0 ? 0 : blockCount + (blockCount - 1) / chunkRatio
    guard entryCount <= table.byteCount / 8 else {
      throw source.fault(
        .corrupt,
        "the block table has room for \(table.byteCount / 8) entries, and the disk needs "
          + "\(entryCount)", at: table.start)
    }
  }

  mutating func place<Source: ForeignSource>(
    of index: UInt64, in source: Source
  ) throws(Source.Failure) -> BlockPlace {
    let number = index + index / chunkRatio
    let entry = try slice.entry(number, ofTableAt: table.start, count: entryCount, in: source)
    switch entry & 7 {
    case 0: return .absent
    // Undefined, zero, and unmapped: what was there may be told or not, and is not.
    case 1, 2, 3: return .zero
    case 6:
      let offset = (entry >> 20) << 20
      guard offset >= 1 << 20, !overlapsTable(offset) else {
        throw source.fault(
          .corrupt, "block \(index) of the disk lies on the file's header or its table",
          at: table.start + number * 8)
      }
      return .data(offset)
    default:
      throw source.fault(
        .corrupt, "block \(index) of the disk has the state \(entry & 7)",
        at: table.start + number * 8)
    }
  }

  private func overlapsTable(_ offset: UInt64) -> Bool {
    let (end, overflows) = offset.addingReportingOverflow(blockByteCount)
    return overflows || table.overlaps(ByteRange(start: offset, end: end))
  }
}
