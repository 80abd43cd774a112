// SPDX-License-Identifier: Apache-2.0
//
// The pure parts of the client: the journal, walking contexts, cutting copies into pieces.

import BlockTypes
import NBDProtocol
import Testing

@testable import NBDClient

@Suite struct `The journal of writes` {
  private func add(_ journal: inout WriteJournal, _ byte: UInt8, count: Int = 100) {
    journal.add(
      .write, [], offset: 0, length: UInt64(count), payload: .init(repeating: byte, count: count))
  }

  @Test func `forgets what was answered before a flush was sent, and nothing else`() {
    var journal = WriteJournal(byteCountMax: 10_000)
    add(&journal, 1)
    add(&journal, 2)
    let sent = journal.nextSequence
    add(&journal, 3)
    journal.flushed(below: sent)
    #expect(journal.entries.map { $0.payload[0] } == [3])
    #expect(journal.byteCount == 164)
    journal.flushed(below: journal.nextSequence)
    #expect(journal.entries.isEmpty)
    #expect(journal.byteCount == 0)
  }

  @Test func `keeps as many bytes as it may, and of more it keeps none`() {
    var journal = WriteJournal(byteCountMax: 328)
    add(&journal, 1)
    add(&journal, 2)
    #expect(!journal.isIncomplete)
    #expect(journal.byteCount == 328)
    add(&journal, 3)
    #expect(journal.isIncomplete)
    #expect(journal.entries.isEmpty)
    add(&journal, 4)
    #expect(journal.entries.map { $0.payload[0] } == [4])
    journal.flushed(below: 2)
    #expect(journal.isIncomplete)
    journal.flushed(below: 3)
    #expect(!journal.isIncomplete)
    #expect(journal.entries.count == 1)
  }
}

@Suite struct `Contexts in lock-step` {
  private func extents(_ pairs: (UInt64, UInt64)...) -> [StatusExtent] {
    pairs.map { StatusExtent(byteCount: $0.0, status: $0.1) }
  }

  @Test func `are cut where any of them changes, and end with the shortest`() {
    let ranges = LockStep.ranges(
      offset: 100, byteCount: 1000,
      contexts: [extents((10, 0), (20, 1)), extents((5, 7), (7, 8), (100, 9))])
    #expect(
      ranges == [
        MappedRange(offset: 100, byteCount: 5, statuses: [0, 7]),
        MappedRange(offset: 105, byteCount: 5, statuses: [0, 8]),
        MappedRange(offset: 110, byteCount: 2, statuses: [1, 8]),
        MappedRange(offset: 112, byteCount: 18, statuses: [1, 9]),
      ])
  }

  @Test func `end with the range, and join equal neighbours`() {
    #expect(
      LockStep.ranges(
        offset: 0, byteCount: 8, contexts: [extents((4, 1), (2, 1), (UInt64(Int64.max), 1))])
        == [MappedRange(offset: 0, byteCount: 8, statuses: [1])])
    #expect(LockStep.ranges(offset: 0, byteCount: 8, contexts: []) == [])
  }
}

@Suite struct `A copy's plan` {
  private func range(_ start: UInt64, _ end: UInt64, _ isZero: Bool) -> CopyRange {
    CopyRange(ByteRange(start: start, end: end), isZero: isZero)
  }

  @Test func `makes zeroes smaller and data larger, to whole blocks`() {
    let found = [range(0, 100, false), range(100, 5000, true), range(5000, 6000, false)]
    #expect(
      CopyPlan.align(found, to: 512, byteCount: 6000)
        == [range(0, 512, false), range(512, 4608, true), range(4608, 6000, false)])
    #expect(CopyPlan.align(found, to: 1, byteCount: 6000) == found)
  }

  @Test func `goes on whatever the source tells`() {
    // Less than a block of knowledge is a block of data.
    #expect(
      CopyPlan.align([range(0, 10, true)], to: 512, byteCount: 2000) == [range(0, 512, false)])
    #expect(
      CopyPlan.align([range(1536, 1540, true)], to: 512, byteCount: 2000)
        == [range(1536, 2000, false)])
    #expect(
      CopyPlan.align([range(1536, 2000, true)], to: 512, byteCount: 2000)
        == [range(1536, 2000, true)])
    #expect(CopyPlan.align([], to: 512, byteCount: 2000) == [])
  }

  @Test func `covers everything once, whatever the extents are`() {
    var seed: UInt64 = 485
    func random(_ bound: UInt64) -> UInt64 {
      seed = seed &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return (seed >> 33) % bound
    }
    for _ in 0..<500 {
      let all = 1 + random(1 << 14)
      let block = UInt64(1) << random(10)
      var offset: UInt64 = 0
      while offset < all {
        var found: [CopyRange] = []
        var end = offset
        for _ in 0...random(6) where end < all {
          let next = min(all, end + 1 + random(3000))
          found.append(range(end, next, random(2) == 0))
          end = next
        }
        let aligned = CopyPlan.align(found, to: block, byteCount: all)
        #expect(!aligned.isEmpty)
        for piece in aligned {
          #expect(piece.range.start == offset)
          #expect(piece.range.end == all || piece.range.end.isAligned(to: block))
          if piece.isZero {
            #expect(
              found.contains {
                $0.isZero && $0.range.start <= piece.range.start
                  && piece.range.end <= $0.range.end
              })
          }
          offset = piece.range.end
        }
      }
    }
  }

  @Test func `cuts at multiples of a piece`() {
    let pieces = Array(CopyPlan.pieces(of: range(1000, (3 << 20) + 5, false)))
    #expect(pieces.first?.range == ByteRange(start: 1000, end: 1 << 20))
    #expect(pieces.last?.range == ByteRange(start: 3 << 20, end: (3 << 20) + 5))
    #expect(pieces.count == 4)
    // A disk is not cut as a whole.
    #expect(Array(CopyPlan.pieces(of: range(0, 1 << 62, false)).prefix(2)).count == 2)
  }
}
