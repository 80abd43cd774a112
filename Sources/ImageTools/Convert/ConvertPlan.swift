// SPDX-License-Identifier: Apache-2.0
//
// The pieces that a conversion is cut into, in the order of the disk. Reads the source's tables.

import BlockTypes

/// A part of the disk that one thread reads at once.
struct ConvertPiece: Sendable {
  /// Counts from 0 in the order of the disk.
  let number: UInt64
  let range: ByteRange
  /// Where its bytes are, in order and without gaps; empty when all are zero.
  let runs: [SourceRun]
  /// Where the bytes of a base below the target are; empty when there is no base or it ends before.
  let baseRuns: [SourceRun]
}

/// Cuts a source into pieces, on its way from the start to the end.
struct ConvertPlan {
  private var source: SourceDisk
  /// What lies below the target.
  private var base: SourceDisk?
  private let byteCount: UInt64
  /// Pieces begin at multiples of this, and end there or where the disk ends.
  private let gridByteCount: UInt64
  private let skipsZeroes: Bool
  private var offset: UInt64 = 0
  private var number: UInt64 = 0

  /// Bytes of a piece at most, a multiple of the grid.
  static let pieceByteCountMax: UInt64 = 2 << 20

  init(
    _ source: SourceDisk, over base: SourceDisk?, gridByteCount: UInt64, skipsZeroes: Bool
  ) {
    precondition(gridByteCount.isPowerOfTwo, "the grid is no power of two")
    precondition(gridByteCount <= Self.pieceByteCountMax, "the grid is larger than a piece")
    self.source = source
    self.base = base
    self.byteCount = source.byteCount
    self.gridByteCount = gridByteCount
    self.skipsZeroes = skipsZeroes
  }

  /// The next piece, nil at the disk's end. What reads as zeroes in both disks is passed over.
  mutating func next() throws(ImageFault) -> ConvertPiece? {
    while offset < byteCount {
      let zeroes = try skipsZeroes ? zeroByteCount(at: offset) : 0
      if zeroes > 0 {
        offset += zeroes
        continue
      }
      let start = offset
      let runs = try collect(from: start)
      let range = ByteRange(start: start, end: offset)
      let baseRuns = try Self.runs(of: &base, in: range)
      defer { number += 1 }
      return ConvertPiece(number: number, range: range, runs: runs, baseRuns: baseRuns)
    }
    return nil
  }

  /// Bytes from `place` on that are zero and that no base shows through, in whole grid cells.
  private mutating func zeroByteCount(at place: UInt64) throws(ImageFault) -> UInt64 {
    var end = place
    while end < byteCount {
      let run = try source.run(at: end, byteCountMax: byteCount - end)
      guard run.isZero else { break }
      guard let under = try Self.run(of: &base, at: end, byteCountMax: run.byteCount) else {
        end += run.byteCount
        continue
      }
      guard under.isZero else { break }
      end += under.byteCount
    }
    return (end == byteCount ? end : end.alignedDown(to: gridByteCount)).subtractingOrZero(place)
  }

  /// The runs of a piece from `start` on, up to zeroes that are worth to pass over.
  private mutating func collect(from start: UInt64) throws(ImageFault) -> [SourceRun] {
    let limit = min(byteCount, start + Self.pieceByteCountMax)
    var runs: [SourceRun] = []
    offset = start
    while offset < limit {
      var run = try source.run(at: offset, byteCountMax: limit - offset)
      let end = offset + run.byteCount
      let cell = min(offset.alignedUp(to: gridByteCount), limit)
      if skipsZeroes, base == nil, run.isZero, cell > start,
        end == byteCount || end.alignedDown(to: gridByteCount) > cell
      {
        run.byteCount = cell - offset
        if run.byteCount > 0 { runs.append(run) }
        offset = cell
        return runs
      }
      runs.append(run)
      offset = end
    }
    return runs
  }

  private static func run(
    of disk: inout SourceDisk?, at offset: UInt64, byteCountMax: UInt64
  ) throws(ImageFault) -> SourceRun? {
    guard let end = disk?.byteCount, offset < end else { return nil }
    return try disk?.run(at: offset, byteCountMax: byteCountMax)
  }

  private static func runs(
    of disk: inout SourceDisk?, in range: ByteRange
  ) throws(ImageFault) -> [SourceRun] {
    var runs: [SourceRun] = []
    var offset = range.start
    while offset < range.end,
      let run = try run(of: &disk, at: offset, byteCountMax: range.end - offset)
    {
      runs.append(run)
      offset += run.byteCount
    }
    return runs
  }
}

extension UInt64 {
  fileprivate func subtractingOrZero(_ other: UInt64) -> UInt64 { self > other ? self - other : 0 }
}
