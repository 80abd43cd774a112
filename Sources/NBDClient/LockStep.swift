// SPDX-License-Identifier: Apache-2.0
//
// Several contexts of one range, side by side. Spec: proto.md, "NBD_CMD_BLOCK_STATUS": contexts may
// differ in where their extents end, and in how far they go. This file performs no I/O.

import BlockTypes
import NBDProtocol

/// A range in which every context has one status.
public struct MappedRange: Hashable, Sendable {
  public var offset: UInt64
  public var byteCount: UInt64
  /// One for each context.
  public var statuses: [UInt64]

  public init(offset: UInt64, byteCount: UInt64, statuses: [UInt64]) {
    self.offset = offset
    self.byteCount = byteCount
    self.statuses = statuses
  }

  /// Takes `next` in when it follows with the same statuses.
  mutating func merge(_ next: MappedRange) -> Bool {
    guard statuses == next.statuses, offset + byteCount == next.offset else { return false }
    byteCount += next.byteCount
    return true
  }
}

/// Walks lists of extents together.
public enum LockStep {
  /// The ranges from `offset` on as far as every context goes, at most `byteCount` bytes.
  ///
  /// Each list has an extent, and no extent is empty: the decoder saw to that.
  public static func ranges(
    offset: UInt64, byteCount: UInt64, contexts: [[StatusExtent]]
  ) -> [MappedRange] {
    guard !contexts.isEmpty else { return [] }
    var indices = contexts.map { _ in 0 }
    // What is left of the extent that each index points to.
    var lefts = contexts.map { $0.first?.byteCount ?? 0 }
    var ranges: [MappedRange] = []
    var done: UInt64 = 0
    while done < byteCount, zip(indices, contexts).allSatisfy({ $0 < $1.count }) {
      let step = min(byteCount - done, lefts.min() ?? 0)
      precondition(step > 0, "an empty extent got past the decoder")
      let range = MappedRange(
        offset: offset + done, byteCount: step,
        statuses: zip(indices, contexts).map { $1[$0].status })
      if ranges.isEmpty || !ranges[ranges.count - 1].merge(range) { ranges.append(range) }
      done += step
      for context in contexts.indices {
        lefts[context] -= step
        guard lefts[context] == 0 else { continue }
        indices[context] += 1
        if indices[context] < contexts[context].count {
          lefts[context] = contexts[context][indices[context]].byteCount
        }
      }
    }
    return ranges
  }
}

extension NBDConnection {
  /// Calls `body` with the ranges of `range`, in order, neighbours with equal statuses joined.
  public func map(
    _ range: ByteRange, _ body: (MappedRange) async throws -> Void
  ) async throws {
    let block = UInt64(export.minimumBlockByteCount)
    var offset = range.start
    var last: MappedRange?
    while offset < range.end {
      let asked = min(range.end - offset, rules.effectByteCountMax)
      let contexts = try await blockStatus(at: offset, byteCount: asked)
      var ranges = LockStep.ranges(offset: offset, byteCount: asked, contexts: contexts)
      // A server may tell less than a block, against the specification's advice; a block with
      // data somewhere in it counts as data.
      if let end = ranges.last.map({ $0.offset + $0.byteCount }), end < range.end,
        end.alignedDown(to: block) != end
      {
        ranges = ranges.compactMap { $0.cut(at: max(end.alignedDown(to: block), offset)) }
        if ranges.isEmpty {
          let statuses = contexts.map { _ in UInt64(0) }
          ranges = [MappedRange(offset: offset, byteCount: min(block, asked), statuses: statuses)]
        }
      }
      for found in ranges {
        offset = found.offset + found.byteCount
        if last?.merge(found) == true { continue }
        if let last { try await body(last) }
        last = found
      }
    }
    if let last { try await body(last) }
  }
}

extension MappedRange {
  /// The part before `end`; nil when there is none.
  fileprivate func cut(at end: UInt64) -> MappedRange? {
    guard offset < end else { return nil }
    return MappedRange(
      offset: offset, byteCount: min(byteCount, end - offset), statuses: statuses)
  }
}
