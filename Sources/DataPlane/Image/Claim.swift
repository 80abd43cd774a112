// SPDX-License-Identifier: Apache-2.0
//
// Keeping unaligned writes from losing each other's bytes. A write that covers part of an aligned
// block reads the block, changes its part and writes it whole; while it does, no other change may
// touch the block. This file performs no I/O.

import BlockTypes
import LinuxIO

extension ImageStack {
  /// Claims the request's range, rounded out to the alignment; waits while a neighbour forbids it.
  ///
  /// Aligned changes may overlap each other (their order is undefined anyway); an unaligned one
  /// tolerates no overlap.
  mutating func claim(_ index: Int) -> Progress {
    let offset = requests.slots[index].offset
    let end = offset + requests.slots[index].length
    // Zeroes in a data file and the entries that tell of them have to agree at the end.
    let isSerialising =
      !offset.isAligned(to: alignment) || !end.isAligned(to: alignment)
      || layers[0].hasDataFile && requests.slots[index].command != .write
    if isSerialising || serialisingClaimCount > 0, hasConflict(index, isSerialising) {
      claimWaiters.append(index, &requests.slots)
      return .waits
    }
    requests.slots[index].isSerialising = isSerialising
    requests.slots[index].claimPosition = claims.append(index)
    if isSerialising { serialisingClaimCount += 1 }
    requests.slots[index].stage = requests.slots[index].afterScan
    return .more
  }

  private func hasConflict(_ index: Int, _ isSerialising: Bool) -> Bool {
    let range = requests.slots[index].alignedRange(alignment)
    for other in claims.indices {
      let other = Int(other)
      guard isSerialising || requests.slots[other].isSerialising else { continue }
      if requests.slots[other].alignedRange(alignment).overlaps(range) { return true }
    }
    return false
  }

  /// Gives up a claim, if the request holds one, and lets those who wait try again.
  mutating func dropClaim(_ index: Int) {
    let position = requests.slots[index].claimPosition
    guard position >= 0 else { return }
    requests.slots[index].claimPosition = -1
    if requests.slots[index].isSerialising { serialisingClaimCount -= 1 }
    if let moved = claims.remove(at: position) {
      requests.slots[Int(moved)].claimPosition = position
    }
    ready.append(contentsOf: &claimWaiters, &requests.slots)
  }
}
