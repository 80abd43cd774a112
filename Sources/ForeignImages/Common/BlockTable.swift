// SPDX-License-Identifier: Apache-2.0
//
// What the sparse formats have in common: the disk is cut into blocks of one size, and a table,
// of one level or of two, says where each of them is.

import BlockTypes

/// Where one block is.
enum BlockPlace: Hashable, Sendable {
  case absent
  case zero
  /// From this offset of the file on.
  case data(UInt64)
  case packed(ByteRange, PackedUnit.Wrapping)
}

/// The table of one sparse file.
protocol BlockTable: Sendable {
  var blockByteCount: UInt64 { get }
  /// Bytes of the disk that the table describes.
  var byteCount: UInt64 { get }
  /// Whether all blocks were made at once, so that many may lie in holes of the file.
  var isPreallocated: Bool { get }
  /// Two compressed blocks never begin in the same run of so many bytes; nil where they may.
  var packedStrideByteCount: UInt64? { get }
  /// Where block `index`, which lies on the disk, is.
  mutating func place<Source: ForeignSource>(
    of index: UInt64, in source: Source
  ) throws(Source.Failure) -> BlockPlace
  /// Blocks from `index` on, which is absent, that are absent for the same reason; at least 1.
  mutating func absentCount<Source: ForeignSource>(
    from index: UInt64, in source: Source
  ) throws(Source.Failure) -> UInt64
}

extension BlockTable {
  func absentCount<Source: ForeignSource>(
    from index: UInt64, in source: Source
  ) throws(Source.Failure) -> UInt64 { 1 }

  var isPreallocated: Bool { false }
  var packedStrideByteCount: UInt64? { nil }
}

/// A table, and what must hold between its entries.
struct BlockMap<Table: BlockTable>: Sendable {
  private(set) var table: Table
  private var claims: BlockClaims

  /// Blocks that are looked at for one answer.
  private static var runBlockCountMax: Int { 4096 }

  init(_ table: Table) {
    self.table = table
    self.claims = BlockClaims(
      strideByteCount: table.packedStrideByteCount ?? table.blockByteCount)
  }

  /// The extent at `offset`, which lies on the disk, of at most `byteCountMax` bytes.
  mutating func extent<Source: ForeignSource>(
    at offset: UInt64, byteCountMax: UInt64, file: Int, in source: Source
  ) throws(Source.Failure) -> ForeignExtent {
    let size = table.blockByteCount
    let limit = min(byteCountMax, table.byteCount - offset)
    var index = offset / size
    let inBlock = offset - index * size
    let first = try place(of: index, in: source)
    var byteCount = size - inBlock
    if case .packed(let stored, let wrapping) = first {
      let unit = ByteRange(start: index * size, end: index * size + size)
      return ForeignExtent(
        byteCount: min(byteCount, limit),
        content: .packed(PackedUnit(file: file, stored: stored, wrapping: wrapping, unit: unit)))
    }
    let lastIndex = (table.byteCount - 1) / size
    var count = 1
    while byteCount < limit && count < Self.runBlockCountMax {
      if first == .absent {
        // Whole tables of large empty disks are passed over in one step.
        let skipped = min(try table.absentCount(from: index, in: source) - 1, lastIndex - index)
        index += skipped
        byteCount += skipped * size
      }
      guard byteCount < limit, index < lastIndex else { break }
      index += 1
      count += 1
      let next = try place(of: index, in: source)
      guard next == first.advanced(by: byteCount + inBlock) else { break }
      byteCount += size
    }
    return ForeignExtent(
      byteCount: min(byteCount, limit),
      content: first.content(file: file, inBlock: inBlock, mayHaveHoles: table.isPreallocated))
  }

  /// The place, checked: a block lies inside the file and has it for itself.
  private mutating func place<Source: ForeignSource>(
    of index: UInt64, in source: Source
  ) throws(Source.Failure) -> BlockPlace {
    let place = try table.place(of: index, in: source)
    let start: UInt64
    switch place {
    case .absent, .zero: return place
    case .data(let offset):
      start = offset
      let needed = min(table.blockByteCount, table.byteCount - index * table.blockByteCount)
      guard offset < source.byteCount, source.byteCount - offset >= needed else {
        throw source.fault(
          .truncated,
          "block \(index) of the disk lies at byte \(offset), and the file ends at byte "
            + "\(source.byteCount)")
      }
    case .packed(let stored, _):
      guard table.packedStrideByteCount != nil else { return place }
      start = stored.start
    }
    guard claims.claim(index, at: start) else {
      throw source.fault(
        .corrupt, "block \(index) of the disk lies on another block's place", at: start)
    }
    return place
  }
}

extension BlockPlace {
  /// The place of a block that continues a run of `byteCount` bytes from here.
  fileprivate func advanced(by byteCount: UInt64) -> BlockPlace {
    if case .data(let offset) = self { return .data(offset + byteCount) }
    return self
  }

  fileprivate func content(file: Int, inBlock: UInt64, mayHaveHoles: Bool) -> ForeignContent {
    switch self {
    case .absent: .absent
    case .zero: .zero
    case .data(let offset): .data(file: file, offset: offset + inBlock, mayHaveHoles: mayHaveHoles)
    case .packed: preconditionFailure("a compressed block was answered before")
    }
  }
}
