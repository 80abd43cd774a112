// SPDX-License-Identifier: Apache-2.0
//
// Arrays and pools of fixed size: bounds, vacancy, and the end of what they hold.

import LinuxIO
import Testing

/// Counts how often its owners let go.
private final class Tally {
  var endCount = 0
}

private struct Guest: ~Copyable {
  let number: Int
  let tally: Tally
  deinit { tally.endCount += 1 }
}

@Suite struct `A fixed array` {
  @Test func `holds what was made for each index`() {
    var array = FixedArray(count: 3) { $0 * 10 }
    array[2] += 1
    #expect([array[0], array[1], array[2]] == [0, 10, 21])
  }

  @Test func `may have no elements`() {
    let array = FixedArray<Int>(count: 0) { $0 }
    let count = array.count
    #expect(count == 0)
  }

  @Test func `ends its elements once`() {
    let tally = Tally()
    do {
      let array = FixedArray(count: 5) { Guest(number: $0, tally: tally) }
      #expect(array[4].number == 4)
      #expect(tally.endCount == 0)
    }
    #expect(tally.endCount == 5)
  }

  @Test func `of zeroed memory is zero to its end`() {
    var array = FixedArray<UInt64>(zeroedCount: 1_000)
    #expect((0..<1_000).allSatisfy { array[$0] == 0 })
    array[999] = 7
    #expect(array[999] == 7)
  }

  @Test func `traps behind its last element`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      let array = FixedArray(count: 3) { $0 }
      _ = array[3]
    }
    #expect(said("an index is outside its array", result))
  }

  @Test func `traps before its first element`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      var array = FixedArray(count: 3) { $0 }
      array[-1] = 0
    }
    #expect(said("an index is outside its array", result))
  }
}

@Suite struct `A fixed pool` {
  @Test func `takes as many values as it has places`() {
    let tally = Tally()
    var pool = FixedPool<Guest>(capacity: 2)
    #expect(pool.insert(Guest(number: 1, tally: tally)) == 0)
    #expect(pool.insert(Guest(number: 2, tally: tally)) == 1)
    #expect(pool.insert(Guest(number: 3, tally: tally)) == nil)
    let count = pool.count
    #expect(count == 2)
  }

  @Test func `fills the place that was vacated`() {
    let tally = Tally()
    var pool = FixedPool<Guest>(capacity: 3)
    for number in 0..<3 { _ = pool.insert(Guest(number: number, tally: tally)) }
    pool.remove(1)
    #expect(tally.endCount == 1)
    let isOccupied = pool.isOccupied(1)
    #expect(!isOccupied)
    #expect(pool.insert(Guest(number: 9, tally: tally)) == 1)
    #expect(pool[1].number == 9)
    #expect(pool[2].number == 2)
  }

  @Test func `ends only what it still holds`() {
    let tally = Tally()
    do {
      var pool = FixedPool<Guest>(capacity: 4)
      for number in 0..<3 { _ = pool.insert(Guest(number: number, tally: tally)) }
      pool.remove(0)
    }
    #expect(tally.endCount == 3)
  }

  @Test func `traps when a vacant place is read`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      var pool = FixedPool<Int>(capacity: 2)
      _ = pool.insert(5)
      _ = pool[1]
    }
    #expect(said("a vacant place was read", result))
  }

  @Test func `traps when a vacant place is changed`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      var pool = FixedPool<Int>(capacity: 2)
      pool[0] += 1
    }
    #expect(said("a vacant place was changed", result))
  }

  @Test func `traps when a place is vacated twice`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      var pool = FixedPool<Int>(capacity: 2)
      _ = pool.insert(5)
      pool.remove(0)
      pool.remove(0)
    }
    #expect(said("a vacant place was vacated", result))
  }
}
