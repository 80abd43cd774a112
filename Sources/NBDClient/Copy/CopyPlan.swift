// SPDX-License-Identifier: Apache-2.0
//
// From what a source tells about itself to pieces that both ends can take.
// This file performs no I/O.

import BlockTypes

/// Cuts ranges into pieces.
enum CopyPlan {
  /// Bytes of one read and write. A multiple of every block size of the protocol.
  static let dataByteCountMax: UInt64 = 1 << 20
  /// Bytes of one request for zeroes.
  static let zeroByteCountMax: UInt64 = 128 << 20

  /// Ranges that begin and end at multiples of `block`, but for the end of the disk at
  /// `byteCount`. A block that is zero in part counts as data.
  ///
  /// - Returns: at least one range when `found` has one; together they may end up to a block
  ///   before the end of `found`, or behind it.
  static func align(
    _ found: [CopyRange], to block: UInt64, byteCount: UInt64
  ) -> [CopyRange] {
    guard let start = found.first?.range.start, let end = found.last?.range.end else { return [] }
    var cursor = start
    var aligned: [CopyRange] = []
    func append(_ end: UInt64, isZero: Bool) {
      guard cursor < end else { return }
      aligned.append(CopyRange(ByteRange(start: cursor, end: end), isZero: isZero))
      cursor = end
    }
    for piece in found where piece.isZero {
      let zeroStart = min(piece.range.start.alignedUp(to: block), byteCount)
      let zeroEnd =
        piece.range.end == byteCount ? byteCount : piece.range.end.alignedDown(to: block)
      guard max(zeroStart, cursor) < zeroEnd else { continue }
      append(zeroStart, isZero: false)
      append(zeroEnd, isZero: true)
    }
    append(end == byteCount ? end : end.alignedDown(to: block), isZero: false)
    if aligned.isEmpty { append(min(start + block, byteCount), isZero: false) }
    return aligned
  }

  /// The pieces of one range, each small enough for one request; made one by one, because a range
  /// may be as large as a disk.
  static func pieces(of whole: CopyRange) -> UnfoldSequence<CopyRange, UInt64> {
    let byteCountMax = whole.isZero ? zeroByteCountMax : dataByteCountMax
    return sequence(state: whole.range.start) { start in
      guard start < whole.range.end else { return nil }
      // Cut at multiples, so that all but the first piece are whole.
      let end = min((start + 1).alignedUp(to: byteCountMax), whole.range.end)
      defer { start = end }
      return CopyRange(ByteRange(start: start, end: end), isZero: whole.isZero)
    }
  }
}
