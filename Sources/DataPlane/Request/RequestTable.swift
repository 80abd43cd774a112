// SPDX-License-Identifier: Apache-2.0
//
// The fixed table of all requests of an export. This file performs no I/O.

import BlockTypes
import LinuxIO

/// Slots for requests. Memory of slots that were never used is never touched.
struct RequestTable: ~Copyable {
  var slots: FixedArray<RequestSlot>
  private var free = SlotList()
  /// Slots from here on were never used.
  private var firstUnused = 0
  private(set) var usedCount = 0
  private var sequence: UInt64 = 0

  init(slotCount: Int) {
    // Zero bytes are a free slot: `Stage.free` is 0, and `acquire` initialises all the rest.
    precondition(Stage.free.rawValue == 0, "a slot of zero bytes would not be free")
    slots = FixedArray(zeroedCount: slotCount)
  }

  /// Takes a fresh slot, or nil when all are in use: the caller stops reading its socket.
  mutating func acquire() -> Int? {
    let index: Int
    if let recycled = free.popFirst(&slots) {
      index = recycled
    } else {
      guard firstUnused < slots.count else { return nil }
      index = firstUnused
      firstUnused += 1
    }
    precondition(slots[index].stage == .free, "a slot on the free list is in use")
    sequence += 1
    slots[index] = RequestSlot()
    slots[index].sequence = sequence
    usedCount += 1
    return index
  }

  /// Counts a request as just begun: nothing that it found in a table so far will it use again.
  mutating func renew(_ index: Int) {
    sequence += 1
    slots[index].sequence = sequence
  }

  /// Gives a slot back; its buffers have been released.
  mutating func retire(_ index: Int) {
    precondition(slots[index].stage != .free, "a slot was retired twice")
    precondition(slots[index].inFlightCount == 0, "a slot with operations in flight was retired")
    slots[index].stage = .free
    usedCount -= 1
    free.prepend(index, &slots)
  }

  /// The ranges of the requests that change the disk and have begun and not ended.
  var changesUnderWay: [ByteRange] {
    (0..<firstUnused).compactMap { index in
      slots[index].stage.usesPlaces ? slots[index].changedRange : nil
    }
  }

  /// Whether a request besides two slots has begun and not ended.
  func hasWork(besides first: Int, _ second: Int) -> Bool {
    (0..<firstUnused).contains { index in
      index != first && index != second
        && (slots[index].stage.usesPlaces || slots[index].stage == .storingBitmaps)
    }
  }

  /// The sequence number that the next request will exceed: what was freed now must outlive all
  /// requests up to it.
  var currentSequence: UInt64 { sequence }

  /// The smallest sequence number of the requests that may still use what they found in a table,
  /// or nil when there are none. A client that is slow to send or to receive is not among them.
  func oldestSequence(besides excluded: Int) -> UInt64? {
    var oldest: UInt64?
    for index in 0..<firstUnused where index != excluded && slots[index].stage.usesPlaces {
      oldest = min(oldest ?? .max, slots[index].sequence)
    }
    return oldest
  }
}
