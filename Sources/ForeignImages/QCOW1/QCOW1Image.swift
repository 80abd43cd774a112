// SPDX-License-Identifier: Apache-2.0
//
// Version 1 of qcow: two levels of tables with 64-bit entries, clusters that may be compressed.
// Source: "The QCOW Image Format", version 1. This file performs no I/O.

import BlockTypes

/// The tables of a qcow image of version 1.
struct QCOW1Image: BlockTable {
  private static let headerByteCount = 48
  private static let compressedFlag: UInt64 = 1 << 63

  let blockByteCount: UInt64
  let byteCount: UInt64
  private let clusterBits: UInt64
  private let l2EntryCount: UInt64
  private let l1EntryCount: UInt64
  private let l1TableOffset: UInt64
  private var l1Slice = EntrySlice(.bigEndian64, of: "the L1 table")
  private var l2Slice = EntrySlice(.bigEndian64, of: "an L2 table")

  init<Source: ForeignSource>(_ source: Source) throws(Source.Failure) {
    let header = try source.require("the qcow header", at: 0, byteCount: Self.headerByteCount)
    guard header.starts(with: [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 1]) else {
      throw source.fault(.corrupt, "this is no qcow image of version 1")
    }
    guard header.bigEndian(UInt64.self, at: 8) == 0 else {
      throw source.fault(
        .unsupported,
        "the image has a backing file, which is not supported for this format; convert it with "
          + "the program that made it", at: 8)
    }
    guard header.bigEndian(UInt32.self, at: 36) == 0 else {
      throw source.fault(.unsupported, "the image is encrypted, which is not supported", at: 36)
    }
    byteCount = header.bigEndian(UInt64.self, at: 24).alignedDown(to: 512)
    guard byteCount <= UInt64(Int64.max) else {
      throw source.fault(.corrupt, "the disk's size does not fit in 63 bits", at: 24)
    }
    clusterBits = UInt64(header[32])
    let l2Bits = UInt64(header[33])
    guard (9...16).contains(clusterBits) else {
      throw source.fault(.corrupt, "cluster_bits \(clusterBits) is outside 9...16", at: 32)
    }
    guard (6...13).contains(l2Bits) else {
      throw source.fault(.corrupt, "l2_bits \(l2Bits) is outside 6...13", at: 33)
    }
    blockByteCount = 1 << clusterBits
    l2EntryCount = 1 << l2Bits
    l1TableOffset = header.bigEndian(UInt64.self, at: 40)
    let coverage: UInt64 = 1 << (clusterBits + l2Bits)
    l1EntryCount = byteCount / coverage + (byteCount % coverage == 0 ? 0 : 1)
    try source.requireTable("the L1 table", at: l1TableOffset, count: l1EntryCount, width: 8)
  }

  mutating func place<Source: ForeignSource>(
    of index: UInt64, in source: Source
  ) throws(Source.Failure) -> BlockPlace {
    let l1Index = index / l2EntryCount
    let table = try l1Slice.entry(
      l1Index, ofTableAt: l1TableOffset, count: l1EntryCount, in: source)
    if table == 0 { return .absent }
    try source.requireTable("an L2 table", at: table, count: l2EntryCount, width: 8)
    let entry = try l2Slice.entry(
      index % l2EntryCount, ofTableAt: table, count: l2EntryCount, in: source)
    if entry == 0 { return .absent }
    guard entry & Self.compressedFlag != 0 else { return .data(entry) }
    let offset = entry & ((1 << (63 - clusterBits)) - 1)
    let byteCount = (entry >> (63 - clusterBits)) & (blockByteCount - 1)
    guard offset < source.byteCount, byteCount > 0 else {
      throw source.fault(.corrupt, "cluster \(index) is compressed and lies outside the file")
    }
    // Below 2^54, and a length below 2^16.
    return .packed(
      ByteRange(start: offset, end: min(offset + byteCount, source.byteCount)), .deflate)
  }

  mutating func absentCount<Source: ForeignSource>(
    from index: UInt64, in source: Source
  ) throws(Source.Failure) -> UInt64 {
    let table = try l1Slice.entry(
      index / l2EntryCount, ofTableAt: l1TableOffset, count: l1EntryCount, in: source)
    return table == 0 ? l2EntryCount - index % l2EntryCount : 1
  }
}
