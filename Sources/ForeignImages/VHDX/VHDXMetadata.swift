// SPDX-License-Identifier: Apache-2.0
//
// What the metadata region of a VHDX says about the disk. Spec: MS-VHDX 2.6, "Metadata Region".
// This file performs no I/O.

import BlockTypes

/// The sizes of a VHDX.
struct VHDXMetadata: Hashable, Sendable {
  let blockByteCount: UInt64
  let diskByteCount: UInt64
  let sectorByteCount: UInt64
  /// Whether the file keeps all blocks allocated: a fixed disk.
  let isFixed: Bool

  private static let tableByteCount = 64 << 10
  private static let entryCountMax = 2047
  private static let diskByteCountMax: UInt64 = 64 << 40

  private static let fileParameters = VHDXID("caa16737fa364d43b3b633f0aa44e76b")
  private static let diskSize = VHDXID("2fa54224cd1b4876b2115dbed83bf4b8")
  private static let diskID = VHDXID("beca12abb2e6452393efc309e000c746")
  private static let logicalSector = VHDXID("8141bf1da96f4709ba47f233a8faab5f")
  private static let physicalSector = VHDXID("cda348c7445d44719cc9e9885251c556")
  private static let parentLocator = VHDXID("a8d35f2db30b454dabf7d3d84834ab0c")

  init<Source: ForeignSource>(
    _ source: Source, in region: ByteRange
  ) throws(Source.Failure) {
    guard region.byteCount >= UInt64(Self.tableByteCount) else {
      throw source.fault(.corrupt, "the metadata region has no table", at: region.start)
    }
    let table = try source.require(
      "the metadata table", at: region.start, byteCount: Self.tableByteCount)
    guard table.starts(with: "metadata".utf8) else {
      throw source.fault(.corrupt, "the metadata table's signature is not there", at: region.start)
    }
    let count = Int(table.littleEndian(UInt16.self, at: 10))
    guard count <= Self.entryCountMax else {
      throw source.fault(.corrupt, "the metadata table has \(count) entries", at: region.start + 10)
    }
    var items: [VHDXID: [UInt8]] = [:]
    for index in 0..<count {
      let entry = 32 + 32 * index
      let id = VHDXID(table, at: entry)
      let isRequired = table[entry + 24] & 4 != 0
      guard let byteCount = Self.byteCount(of: id) else {
        if id != Self.parentLocator && !isRequired { continue }
        throw source.fault(
          .unsupported,
          id == Self.parentLocator
            ? Self.differencing : "the VHDX needs a metadata item that is not known",
          at: region.start + UInt64(entry))
      }
      let offset = UInt64(table.littleEndian(UInt32.self, at: entry + 16))
      guard table.littleEndian(UInt32.self, at: entry + 20) == UInt32(byteCount),
        offset >= UInt64(Self.tableByteCount), offset <= region.byteCount - UInt64(byteCount)
      else {
        throw source.fault(
          .corrupt, "a metadata item does not lie inside its region",
          at: region.start
            + UInt64(entry))
      }
      items[id] = try source.require(
        "a metadata item", at: region.start + offset, byteCount: byteCount)
    }
    guard let parameters = items[Self.fileParameters], let size = items[Self.diskSize],
      let sector = items[Self.logicalSector]
    else {
      throw source.fault(.corrupt, "the VHDX does not tell its sizes", at: region.start)
    }
    let flags = parameters.littleEndian(UInt32.self, at: 4)
    guard flags & 2 == 0 else {
      throw source.fault(.unsupported, Self.differencing, at: region.start)
    }
    isFixed = flags & 1 == 1
    blockByteCount = UInt64(parameters.littleEndian(UInt32.self, at: 0))
    diskByteCount = size.littleEndian(UInt64.self, at: 0)
    sectorByteCount = UInt64(sector.littleEndian(UInt32.self, at: 0))
    guard blockByteCount.isPowerOfTwo, (1 << 20...256 << 20).contains(blockByteCount) else {
      throw source.fault(
        .corrupt, "the block size \(blockByteCount) is no power of two from 1M to 256M")
    }
    guard sectorByteCount == 512 || sectorByteCount == 4096 else {
      throw source.fault(.corrupt, "sectors of \(sectorByteCount) bytes make no sense")
    }
    guard diskByteCount <= Self.diskByteCountMax, diskByteCount % sectorByteCount == 0 else {
      throw source.fault(
        .corrupt, "a disk of \(diskByteCount) bytes is larger than 64T or ends inside a sector")
    }
  }

  private static let differencing =
    "the VHDX is a difference to another one, which is not supported; merge it with its parent "
    + "first"

  /// Bytes of an item that is known; nil for any other.
  private static func byteCount(of id: VHDXID) -> Int? {
    switch id {
    case fileParameters, diskSize: 8
    case diskID: 16
    case logicalSector, physicalSector: 4
    default: nil
    }
  }
}
