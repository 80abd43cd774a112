// SPDX-License-Identifier: Apache-2.0
//
// Which parts of a READ have come, in whatever order. Spec: proto.md, "NBD_REPLY_TYPE_OFFSET_DATA":
// chunks of one reply do not overlap. This file performs no I/O.

import BlockTypes

/// The bytes of one request that its chunks have covered.
struct ReadCoverage: Hashable, Sendable {
  enum Fault: Hashable, Sendable { case overlap, tooScattered }

  /// Pieces with gaps between them that are kept. Chunks that come in order make one piece.
  static var piecesMax: Int { 16_384 }

  /// Sorted, not touching each other.
  private(set) var pieces: [ByteRange] = []
  private(set) var byteCount: UInt64 = 0

  /// Adds a range that is not empty; nil when that is right.
  mutating func add(_ range: ByteRange) -> Fault? {
    let index = firstIndex(endingAfter: range.start)
    if index < pieces.count, pieces[index].start < range.end { return .overlap }
    let joinsFormer = index > 0 && pieces[index - 1].end == range.start
    let joinsNext = index < pieces.count && pieces[index].start == range.end
    switch (joinsFormer, joinsNext) {
    case (true, true):
      pieces[index - 1] = ByteRange(start: pieces[index - 1].start, end: pieces[index].end)
      pieces.remove(at: index)
    case (true, false):
      pieces[index - 1] = ByteRange(start: pieces[index - 1].start, end: range.end)
    case (false, true): pieces[index] = ByteRange(start: range.start, end: pieces[index].end)
    case (false, false):
      guard pieces.count < Self.piecesMax else { return .tooScattered }
      pieces.insert(range, at: index)
    }
    byteCount += range.byteCount
    return nil
  }

  /// The first piece whose end lies behind `offset`, by bisection.
  private func firstIndex(endingAfter offset: UInt64) -> Int {
    var low = 0
    var high = pieces.count
    while low < high {
      let middle = (low + high) / 2
      if pieces[middle].end > offset { high = middle } else { low = middle + 1 }
    }
    return low
  }
}
