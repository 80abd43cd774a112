// SPDX-License-Identifier: Apache-2.0
//
// The table of a dynamic VHD: 32-bit sector numbers of blocks, each behind a bitmap of its sectors.
// Spec: Virtual Hard Disk Image Format Specification 1.0, "Dynamic Disk Header Format", "Block
// Allocation Table and Data Blocks". This file performs no I/O.

import BlockTypes

/// The table of a dynamic VHD.
struct VHDImage: BlockTable {
  private static let headerByteCount = 1024
  private static let blockByteCountMax: UInt64 = 256 << 20
  private static let unusedEntry: UInt64 = 0xffff_ffff

  let blockByteCount: UInt64
  let byteCount: UInt64
  private let entryCount: UInt64
  private let tableOffset: UInt64
  /// Bytes of the bitmap before each block's data, in whole sectors.
  private let bitmapByteCount: UInt64
  private var slice = EntrySlice(.bigEndian32, of: "the block allocation table")

  init<Source: ForeignSource>(
    _ source: Source, footer: VHDFooter
  ) throws(Source.Failure) {
    let offset = footer.dynamicHeaderOffset
    let header = try source.require(
      "the dynamic disk header", at: offset, byteCount: Self.headerByteCount)
    guard header.starts(with: "cxsparse".utf8) else {
      throw source.fault(.corrupt, "the dynamic disk header's cookie is not there", at: offset)
    }
    try source.decode { () throws(ImageError) in
      try VHDFooter.requireChecksum(header, at: 36, of: "the dynamic disk header")
    }
    byteCount = footer.diskByteCount
    tableOffset = header.bigEndian(UInt64.self, at: 16)
    entryCount = UInt64(header.bigEndian(UInt32.self, at: 28))
    blockByteCount = UInt64(header.bigEndian(UInt32.self, at: 32))
    guard blockByteCount.isPowerOfTwo, (512...Self.blockByteCountMax).contains(blockByteCount)
    else {
      throw source.fault(
        .corrupt, "the block size \(blockByteCount) is no power of two from 512 to 256M",
        at: offset + 32)
    }
    // At most 2^32 blocks of 2^28 bytes.
    guard entryCount * blockByteCount >= byteCount else {
      throw source.fault(
        .corrupt, "\(entryCount) blocks are too few for a disk of \(byteCount) bytes",
        at: offset + 28)
    }
    try source.requireTable(
      "the block allocation table", at: tableOffset, count: entryCount, width: 4)
    bitmapByteCount = (blockByteCount / 512 / 8).alignedUp(to: 512)
  }

  /// Every sector of a block that is there counts as written: a block is zeroed when it is made.
  mutating func place<Source: ForeignSource>(
    of index: UInt64, in source: Source
  ) throws(Source.Failure) -> BlockPlace {
    let entry = try slice.entry(index, ofTableAt: tableOffset, count: entryCount, in: source)
    if entry == Self.unusedEntry { return .zero }
    guard entry > 0 else {
      throw source.fault(
        .corrupt, "block \(index) of the disk lies on the file's header",
        at: tableOffset + index * 4)
    }
    return .data(entry * 512 + bitmapByteCount)
  }

  /// Finds the footer of a VHD: at the end, or its copy at the start when the end is damaged.
  ///
  /// The end comes first, because a fixed disk begins with bytes that its guest chose.
  static func footer<Source: ForeignSource>(
    of source: Source
  ) throws(Source.Failure) -> VHDFooter {
    let count = VHDFooter.byteCount
    guard source.byteCount >= UInt64(count) else {
      throw source.fault(.truncated, "a VHD has at least a footer of 512 bytes")
    }
    let last = try source.require(
      "the VHD footer", at: source.byteCount - UInt64(count), byteCount: count)
    do throws(ImageError) {
      return try VHDFooter(decoding: last)
    } catch let fault {
      let first = try source.require("the VHD footer's copy", at: 0, byteCount: count)
      let footer: VHDFooter
      do throws(ImageError) {
        footer = try VHDFooter(decoding: first)
      } catch {
        throw source.fault(fault)
      }
      guard footer.type != .fixed else { throw source.fault(fault) }
      return footer
    }
  }
}
