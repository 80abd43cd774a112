// SPDX-License-Identifier: Apache-2.0
//
// VDI, the format of VirtualBox: a header, a table of 32-bit block numbers, blocks.
// Source: the public description of the header of version 1.1. This file performs no I/O.

import BlockTypes

/// The table of a VDI file.
struct VDIImage: BlockTable {
  static let signature: UInt32 = 0xbeda_107f
  private static let headerByteCount = 512
  private static let blockByteCountMax: UInt64 = 256 << 20

  let blockByteCount: UInt64
  let byteCount: UInt64
  let isPreallocated: Bool
  private let blockCount: UInt64
  private let tableOffset: UInt64
  private let dataOffset: UInt64
  private var slice = EntrySlice(.littleEndian32, of: "the block table")

  init<Source: ForeignSource>(_ source: Source) throws(Source.Failure) {
    let header = try source.require("the VDI header", at: 0, byteCount: Self.headerByteCount)
    func word(_ offset: Int) -> UInt64 { UInt64(header.littleEndian(UInt32.self, at: offset)) }
    guard word(64) == UInt64(Self.signature) else {
      throw source.fault(.corrupt, "this is no VDI image: its signature is not there", at: 64)
    }
    guard word(68) == 0x0001_0001 else {
      throw source.fault(
        .unsupported, "VDI version \(word(68) >> 16).\(word(68) & 0xffff) is not supported", at: 68)
    }
    switch word(76) {
    case 1: isPreallocated = false
    case 2: isPreallocated = true
    case 3, 4:
      throw source.fault(
        .unsupported,
        "the image is a difference to another one, which is not supported; merge it with its "
          + "parent first", at: 76)
    default: throw source.fault(.corrupt, "the image type \(word(76)) is not known", at: 76)
    }
    guard word(360) == 512 else {
      throw source.fault(.unsupported, "sectors of \(word(360)) bytes are not supported", at: 360)
    }
    blockByteCount = word(376)
    guard blockByteCount.isPowerOfTwo, (512...Self.blockByteCountMax).contains(blockByteCount)
    else {
      throw source.fault(
        .corrupt, "the block size \(blockByteCount) is no power of two from 512 to 256M", at: 376)
    }
    guard word(380) == 0 else {
      throw source.fault(.unsupported, "blocks with extra bytes are not supported", at: 380)
    }
    let exactByteCount = header.littleEndian(UInt64.self, at: 368)
    guard exactByteCount <= UInt64(Int64.max) - 511 else {
      throw source.fault(.corrupt, "the disk's size does not fit in 63 bits", at: 368)
    }
    byteCount = exactByteCount.alignedUp(to: 512)
    blockCount = word(384)
    // At most 2^32 blocks of 2^28 bytes.
    guard blockCount * blockByteCount >= exactByteCount else {
      throw source.fault(
        .corrupt, "\(blockCount) blocks are too few for a disk of \(exactByteCount) bytes", at: 384)
    }
    tableOffset = word(340)
    dataOffset = word(344)
    guard tableOffset >= UInt64(Self.headerByteCount) else {
      throw source.fault(.corrupt, "the block table lies on the header", at: 340)
    }
    try source.requireTable("the block table", at: tableOffset, count: blockCount, width: 4)
    guard dataOffset >= tableOffset + blockCount * 4 else {
      throw source.fault(.corrupt, "the blocks begin inside the block table", at: 344)
    }
  }

  mutating func place<Source: ForeignSource>(
    of index: UInt64, in source: Source
  ) throws(Source.Failure) -> BlockPlace {
    // A size that is no multiple of a sector may end a block later than the table does.
    guard index < blockCount else { return .zero }
    let entry = try slice.entry(index, ofTableAt: tableOffset, count: blockCount, in: source)
    // The two largest numbers mean "never written" and "discarded".
    if entry >= 0xffff_fffe { return .zero }
    guard entry < blockCount else {
      throw source.fault(
        .corrupt, "block \(index) of the disk is block \(entry) of only \(blockCount)",
        at: tableOffset + index * 4)
    }
    // At most 2^32 + 2^32 * 2^28.
    return .data(dataOffset + entry * blockByteCount)
  }
}
