// SPDX-License-Identifier: Apache-2.0
//
// A queue of slots that costs no memory: the links are in the slots. This file performs no I/O.

import LinuxIO

/// A first-in, first-out list of slot indices. A slot is in at most one list at a time.
struct SlotList {
  private(set) var first: Int32 = -1
  private var last: Int32 = -1

  var isEmpty: Bool { first < 0 }

  mutating func append(_ index: Int, _ slots: inout FixedArray<RequestSlot>) {
    precondition(!slots[index].isInList, "a slot is in two lists")
    slots[index].isInList = true
    slots[index].next = -1
    if last >= 0 {
      slots[Int(last)].next = Int32(index)
    } else {
      first = Int32(index)
    }
    last = Int32(index)
  }

  mutating func prepend(_ index: Int, _ slots: inout FixedArray<RequestSlot>) {
    precondition(!slots[index].isInList, "a slot is in two lists")
    slots[index].isInList = true
    slots[index].next = first
    first = Int32(index)
    if last < 0 { last = first }
  }

  mutating func popFirst(_ slots: inout FixedArray<RequestSlot>) -> Int? {
    guard first >= 0 else { return nil }
    let index = Int(first)
    first = slots[index].next
    if first < 0 { last = -1 }
    slots[index].next = -1
    slots[index].isInList = false
    return index
  }

  /// Moves all of `other` behind this list's end.
  mutating func append(
    contentsOf other: inout SlotList, _ slots: inout FixedArray<RequestSlot>
  ) {
    guard other.first >= 0 else { return }
    if last >= 0 {
      slots[Int(last)].next = other.first
    } else {
      first = other.first
    }
    last = other.last
    other = SlotList()
  }
}
