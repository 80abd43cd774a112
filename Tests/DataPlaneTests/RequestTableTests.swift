// SPDX-License-Identifier: Apache-2.0
//
// Slots of requests and the lists that link them. Source: tools/STYLE.md, "Hot path".

import LinuxIO
import NBDProtocol
import Testing

@testable import DataPlane

@Suite struct `A list of slots` {
  private func slots() -> FixedArray<RequestSlot> {
    FixedArray(count: 8) { _ in RequestSlot() }
  }

  private func drain(_ list: inout SlotList, _ slots: inout FixedArray<RequestSlot>) -> [Int] {
    var indices: [Int] = []
    while let index = list.popFirst(&slots) { indices.append(index) }
    return indices
  }

  @Test func `gives back in the order of arrival`() {
    var slots = slots()
    var list = SlotList()
    for index in [3, 1, 7] { list.append(index, &slots) }
    #expect(drain(&list, &slots) == [3, 1, 7])
    #expect(list.isEmpty)
  }

  @Test func `has nothing when it is empty`() {
    var slots = slots()
    var list = SlotList()
    #expect(list.popFirst(&slots) == nil)
  }

  @Test func `puts in front what is prepended, also as its only element`() {
    var slots = slots()
    var list = SlotList()
    list.prepend(2, &slots)
    list.append(3, &slots)
    list.prepend(1, &slots)
    #expect(drain(&list, &slots) == [1, 2, 3])
  }

  @Test func `can be used again after it was emptied`() {
    var slots = slots()
    var list = SlotList()
    list.append(5, &slots)
    #expect(drain(&list, &slots) == [5])
    list.append(5, &slots)
    list.append(6, &slots)
    #expect(drain(&list, &slots) == [5, 6])
  }

  @Test func `takes over another list behind its end and leaves that empty`() {
    var slots = slots()
    var first = SlotList()
    var second = SlotList()
    for index in [0, 1] { first.append(index, &slots) }
    for index in [2, 3] { second.append(index, &slots) }
    first.append(contentsOf: &second, &slots)
    #expect(second.isEmpty)
    first.append(4, &slots)
    #expect(drain(&first, &slots) == [0, 1, 2, 3, 4])
  }

  @Test func `takes over to and from nothing`() {
    var slots = slots()
    var empty = SlotList()
    var other = SlotList()
    other.append(6, &slots)
    empty.append(contentsOf: &other, &slots)
    empty.append(contentsOf: &other, &slots)
    #expect(drain(&empty, &slots) == [6])
  }

  @Test func `marks its slots while they are in it`() {
    var slots = slots()
    var list = SlotList()
    list.append(4, &slots)
    #expect(slots[4].isInList)
    _ = list.popFirst(&slots)
    #expect(!slots[4].isInList)
  }

  @Test func `traps when a slot is in another list`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      var slots = FixedArray(count: 2) { _ in RequestSlot() }
      var first = SlotList()
      var second = SlotList()
      first.append(1, &slots)
      second.append(1, &slots)
    }
    #expect(said("a slot is in two lists", result))
  }
}

@Suite struct `The table of requests` {
  @Test func `has as many slots as it was made for`() {
    var table = RequestTable(slotCount: 3)
    let taken = (0..<4).map { _ in take(&table) }
    #expect(taken == [0, 1, 2, nil])
    let used = table.usedCount
    #expect(used == 3)
  }

  /// Takes a slot and puts it to use.
  private func take(_ table: inout RequestTable) -> Int? {
    guard let index = table.acquire() else { return nil }
    table.slots[index].stage = .scanning
    return index
  }

  @Test func `hands out the slot that was given back last, so that its memory is warm`() {
    var table = RequestTable(slotCount: 8)
    for _ in 0..<4 { _ = take(&table) }
    table.retire(1)
    table.retire(2)
    #expect(take(&table) == 2)
    #expect(take(&table) == 1)
    #expect(take(&table) == 4)
  }

  @Test func `hands out slots without a trace of their last request`() {
    var table = RequestTable(slotCount: 1)
    _ = take(&table)
    table.slots[0].cookie = 99
    table.slots[0].error = .io
    table.slots[0].holeCount = 3
    table.retire(0)
    _ = take(&table)
    #expect(table.slots[0].cookie == 0)
    #expect(table.slots[0].error == .none)
    #expect(table.slots[0].holeCount == 0)
    #expect(table.slots[0].connection == -1)
  }

  @Test func `numbers requests by their start and knows the oldest besides one`() {
    var table = RequestTable(slotCount: 4)
    #expect(table.oldestSequence(besides: -1) == nil)
    for _ in 0..<3 { _ = take(&table) }
    let current = table.currentSequence
    #expect(current == 3)
    #expect(table.oldestSequence(besides: 0) == 2)
    #expect(table.oldestSequence(besides: 2) == 1)
    table.retire(0)
    #expect(table.oldestSequence(besides: 1) == 3)
    _ = take(&table)  // slot 0 again, and the youngest now
    #expect(table.slots[0].sequence == 4)
    #expect(table.oldestSequence(besides: -1) == 2)
  }

  @Test(arguments: [Stage.receiving, .finished, .replying])
  func `does not count a request as old that waits for its client only`(stage: Stage) {
    var table = RequestTable(slotCount: 2)
    for _ in 0..<2 { _ = take(&table) }
    #expect(table.oldestSequence(besides: -1) == 1)
    table.slots[0].stage = stage
    #expect(table.oldestSequence(besides: -1) == 2)
  }

  @Test func `traps when a slot is retired twice`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      var table = RequestTable(slotCount: 2)
      guard let index = table.acquire() else { return }
      table.slots[index].stage = .receiving
      table.retire(index)
      table.retire(index)
    }
    #expect(said("a slot was retired twice", result))
  }

  @Test func `traps when a slot is retired with a read in flight`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      var table = RequestTable(slotCount: 2)
      guard let index = table.acquire() else { return }
      table.slots[index].stage = .replying
      table.slots[index].readCount = 1
      table.retire(index)
    }
    #expect(said("a slot with operations in flight was retired", result))
  }

  @Test func `traps when a slot is retired with a call on the pool in flight`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      var table = RequestTable(slotCount: 2)
      guard let index = table.acquire() else { return }
      table.slots[index].stage = .replying
      table.slots[index].poolCount = 1
      table.retire(index)
    }
    #expect(said("a slot with operations in flight was retired", result))
  }
}

@Suite struct `A READ that fails` {
  private func slot(offset: UInt64, length: UInt64, bufferStart: UInt64) -> RequestSlot {
    var slot = RequestSlot()
    slot.begin(
      RequestHeader(command: 0, cookie: 1, offset: offset, length: length), .read, connection: 0,
      bufferStart: bufferStart, chargedByteCount: 0)
    return slot
  }

  @Test func `has the first of its failures as its place`() {
    var slot = slot(offset: 4096, length: 1 << 20, bufferStart: 4096)
    #expect(slot.errorOffset == .max)
    slot.noteFailedRead(block: 100)
    slot.noteFailedRead(block: 8)
    slot.noteFailedRead(block: 9)
    #expect(slot.errorOffset == 4096 + 8 * 512)
  }

  @Test func `has no place before its own start`() {
    var slot = slot(offset: 5000, length: 100, bufferStart: 4096)
    slot.noteFailedRead(block: 0)
    #expect(slot.errorOffset == 5000)
  }

  @Test func `has its cursor as the place when a table is to blame`() {
    var slot = slot(offset: 5000, length: 1 << 20, bufferStart: 4096)
    slot.noteFailedScan()
    #expect(slot.errorOffset == .max, "it was not reading for the client")
    slot.stage = .scanning
    slot.scan.cursor = 65_536
    slot.noteFailedScan()
    #expect(slot.errorOffset == 65_536)
  }

  @Test func `at a block that does not start at the buffer loses less than a block`() {
    var slot = slot(offset: 1000, length: 1 << 20, bufferStart: 1000)
    slot.scan = Scan(cursor: 65_536, end: 1 << 20, buffer: .empty, bufferStart: 1000)
    slot.noteFailedRead(block: slot.scan.block)
    #expect(slot.errorOffset == 65_536)
    slot.scan.cursor = 66_000
    slot.errorOffset = .max
    slot.noteFailedRead(block: slot.scan.block)
    #expect(slot.errorOffset == 65_536)
  }
}
