// SPDX-License-Identifier: Apache-2.0
//
// From a piece of the source to the parts that are written: reads it, leaves out zeroes and what a
// base holds already, packs clusters. Reads files; uses the buffers of one thread.

import BlockTypes
import Compression
import LinuxIO

/// The memory of one thread.
struct ConvertBuffers {
  /// The piece's bytes.
  var disk = [UInt8](repeating: 0, count: Int(ConvertPlan.pieceByteCountMax))
  /// The bytes of the base at the same place; empty until there is a base.
  var base: [UInt8] = []
}

/// Cuts pieces.
struct ConvertCutter: Sendable {
  /// Parts begin at multiples of this in their piece and have whole ones, but for the disk's end.
  let cellByteCount: Int
  /// Whether zeroes are left out.
  let isSparse: Bool
  /// Packs each cell; nil: nothing is packed.
  let codec: ClusterCodec?
  let hasBase: Bool
  let hasZeroClusters: Bool
  /// Whether the last cell is filled up with zeroes.
  let fillsCells: Bool

  /// The parts of `piece` that are to be written, in order. Plain ones are in `buffers.disk`.
  func cut(
    _ piece: ConvertPiece, _ buffers: inout ConvertBuffers
  ) throws(ImageFault) -> [ConvertPart] {
    let byteCount = Int(piece.range.byteCount)
    try Self.load(piece.runs, at: piece.range.start, into: &buffers.disk)
    let filledCount = fillsCells ? byteCount.roundedUp(to: cellByteCount) : byteCount
    buffers.disk.clear(byteCount..<filledCount)
    if hasBase {
      if buffers.base.isEmpty {
        buffers.base = [UInt8](repeating: 0, count: buffers.disk.count)
      }
      buffers.base.clear(0..<filledCount)
      try Self.load(piece.baseRuns, at: piece.range.start, into: &buffers.base)
    }
    var parts: [ConvertPart] = []
    for start in stride(from: 0, to: filledCount, by: cellByteCount) {
      let cell = start..<min(start + cellByteCount, filledCount)
      if let part = try part(cell, buffers) { Self.append(part, to: &parts) }
    }
    return parts
  }

  /// What is written of one cell; nil for nothing.
  private func part(
    _ cell: Range<Int>, _ buffers: ConvertBuffers
  ) throws(ImageFault) -> ConvertPart? {
    if hasBase {
      if buffers.disk[cell] == buffers.base[cell] { return nil }
      if hasZeroClusters && buffers.disk.isZero(cell) { return .zero(cell) }
    } else if isSparse && buffers.disk.isZero(cell) {
      return nil
    }
    guard let codec else { return .plain(cell) }
    do throws(ImageError) {
      return try codec.pack(buffers.disk, cell).map { .packed($0, cell) } ?? .plain(cell)
    } catch {
      throw ImageFault("-c", error)
    }
  }

  private static func load(
    _ runs: [SourceRun], at start: UInt64, into buffer: inout [UInt8]
  ) throws(ImageFault) {
    var offset = start
    for run in runs {
      try run.load(at: offset, into: &buffer, Int(offset - start))
      offset += run.byteCount
    }
  }

  /// Adds a part, in one with the one before it where that is plain, too, and ends there.
  private static func append(_ part: ConvertPart, to parts: inout [ConvertPart]) {
    if case .plain(let next) = part, case .plain(let last)? = parts.last,
      last.upperBound == next.lowerBound
    {
      parts[parts.count - 1] = .plain(last.lowerBound..<next.upperBound)
    } else {
      parts.append(part)
    }
  }
}

extension Int {
  fileprivate func roundedUp(to multiple: Int) -> Int {
    (self + multiple - 1) / multiple * multiple
  }
}
