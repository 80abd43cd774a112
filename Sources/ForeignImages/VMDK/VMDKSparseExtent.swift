// SPDX-License-Identifier: Apache-2.0
//
// The grain directory and the grain tables of a sparse extent, and its compressed grains.
// Spec: VMware Virtual Disk Format 5.0, "Hosted Sparse Extents", "Stream-Optimized Compressed".
// This file performs no I/O.

import BlockTypes

/// The tables of a sparse VMDK extent.
struct VMDKSparseExtent: BlockTable {
  let byteCount: UInt64
  var blockByteCount: UInt64 { header.grainByteCount }
  /// Compressed grains begin at sectors.
  var packedStrideByteCount: UInt64? { header.isCompressed ? 512 : nil }
  let header: VMDKSparseHeader
  private let directoryEntryCount: UInt64
  private var directory = EntrySlice(.littleEndian32, of: "the grain directory")
  private var table = EntrySlice(.littleEndian32, of: "a grain table")

  /// Bytes before a compressed grain: its number, and how many bytes follow.
  private static let markerByteCount = 12

  init<Source: ForeignSource>(_ source: Source) throws(Source.Failure) {
    let first = try source.require(
      "the VMDK header", at: 0, byteCount: VMDKSparseHeader.byteCount)
    var header = try source.decode { () throws(ImageError) in
      try VMDKSparseHeader(decoding: first)
    }
    if header.isDirectoryAtEnd { header = try Self.footer(of: source, header) }
    self.header = header
    byteCount = header.capacityByteCount
    // At least 512 bytes and at most 2^26 * 2^9 for each table.
    let coverage = header.grainByteCount * header.tableEntryCount
    directoryEntryCount = byteCount / coverage + (byteCount % coverage == 0 ? 0 : 1)
    guard header.directoryOffset > 0 || byteCount == 0 else {
      throw source.fault(.corrupt, "the grain directory lies on the header", at: 56)
    }
    try source.requireTable(
      "the grain directory", at: header.directoryOffset, count: directoryEntryCount, width: 4)
  }

  /// The header that ends a file that was written as a stream: a marker, the footer, the end mark.
  private static func footer<Source: ForeignSource>(
    of source: Source, _ header: VMDKSparseHeader
  ) throws(Source.Failure) -> VMDKSparseHeader {
    let size = source.byteCount.alignedDown(to: 512)
    guard size >= 2048 else {
      throw source.fault(.truncated, "the file ends before its footer")
    }
    let bytes = try source.require("the VMDK footer", at: size - 1536, byteCount: 1024)
    // The marker: one sector follows, it has no size of its own, and it is a footer.
    guard bytes.littleEndian(UInt64.self, at: 0) == 1,
      bytes.littleEndian(UInt32.self, at: 8) == 0, bytes.littleEndian(UInt32.self, at: 12) == 3
    else {
      throw source.fault(.truncated, "the file does not end with a footer", at: size - 1536)
    }
    let footer = try source.decode { () throws(ImageError) in
      try VMDKSparseHeader(decoding: Array(bytes[512...]))
    }
    guard !footer.isDirectoryAtEnd, footer.capacityByteCount == header.capacityByteCount,
      footer.grainByteCount == header.grainByteCount, footer.isCompressed == header.isCompressed
    else {
      throw source.fault(.corrupt, "the footer contradicts the header", at: size - 1024)
    }
    return footer
  }

  mutating func place<Source: ForeignSource>(
    of index: UInt64, in source: Source
  ) throws(Source.Failure) -> BlockPlace {
    let count = header.tableEntryCount
    let tableSector = try directory.entry(
      index / count, ofTableAt: header.directoryOffset, count: directoryEntryCount, in: source)
    if tableSector == 0 { return .absent }
    try source.requireTable("a grain table", at: tableSector * 512, count: count, width: 4)
    let sector = try table.entry(
      index % count, ofTableAt: tableSector * 512, count: count, in: source)
    if sector == 0 { return .absent }
    if sector == 1 && header.hasZeroedGrains { return .zero }
    let offset = sector * 512
    guard header.isCompressed else { return .data(offset) }
    return .packed(try packed(index, at: offset, in: source), .zlib)
  }

  mutating func absentCount<Source: ForeignSource>(
    from index: UInt64, in source: Source
  ) throws(Source.Failure) -> UInt64 {
    let count = header.tableEntryCount
    let tableSector = try directory.entry(
      index / count, ofTableAt: header.directoryOffset, count: directoryEntryCount, in: source)
    return tableSector == 0 ? count - index % count : 1
  }

  private func packed<Source: ForeignSource>(
    _ index: UInt64, at offset: UInt64, in source: Source
  ) throws(Source.Failure) -> ByteRange {
    guard header.hasMarkers else {
      throw source.fault(.unsupported, "compressed grains without markers are not supported")
    }
    let marker = try source.require(
      "a grain's marker", at: offset, byteCount: Self.markerByteCount)
    let sector = marker.littleEndian(UInt64.self, at: 0)
    guard sector == index * (blockByteCount / 512) else {
      throw source.fault(
        .corrupt,
        "the grain of sector \(index * (blockByteCount / 512)) has the marker of sector \(sector)",
        at: offset)
    }
    let byteCount = UInt64(marker.littleEndian(UInt32.self, at: 8))
    // What does not shrink grows by less than 1 in 1000 and a few bytes.
    guard byteCount > 0, byteCount <= blockByteCount + blockByteCount / 8 + 512 else {
      throw source.fault(
        .corrupt, "a grain has \(byteCount) compressed bytes", at: offset + 8)
    }
    let start = offset + UInt64(Self.markerByteCount)
    guard start <= source.byteCount, byteCount <= source.byteCount - start else {
      throw source.fault(.truncated, "the file ends inside a compressed grain", at: offset)
    }
    return ByteRange(start: start, end: start + byteCount)
  }
}
