// SPDX-License-Identifier: Apache-2.0
//
// Dirty bitmaps that follow what is written. Source: QEMU docs/interop/bitmaps.rst; decision 0018
// says what a moment is. This file performs no I/O.

import Bitmaps
import BlockTypes
import LinuxIO
import NBDProtocol

extension ImageStack {
  /// Marks what a request is going to change.
  ///
  /// At its start, before a byte of it can reach the disk: if it fails or the client goes, more may
  /// be marked than was changed, and never less. Costs one comparison without bitmaps.
  ///
  /// - Returns: whether the request has to wait until the image says so, too.
  @inline(__always)
  mutating func recordChange(_ index: Int) -> Bool {
    guard bitmaps.isRecording || store.claimsStand else { return false }
    let start = requests.slots[index].offset
    let range = ByteRange(start: start, end: start + requests.slots[index].length)
    bitmaps.mark(range)
    return store.mustWait(for: range)
  }

  /// Does all of `actions` or none, at one moment between two requests.
  ///
  /// A request under way may reach the disk after this moment, so it counts as made after it: what
  /// was just cleared, enabled, added or frozen records it anew.
  mutating func changeBitmaps(
    _ actions: [BitmapAction], holder: (Int) -> UInt64?
  ) throws(BitmapFault) {
    try bitmaps.perform(actions, holder: holder)
    // A resize zeroes what lies behind the end that the bitmaps know.
    for range in requests.changesUnderWay where range.start < bitmaps.diskByteCount {
      bitmaps.mark(ByteRange(start: range.start, end: min(range.end, bitmaps.diskByteCount)))
    }
  }

  /// Tells about the dirty bitmaps that a BLOCK_STATUS asks for, all as they are at this moment.
  mutating func collectDirtiness(_ index: Int) {
    var wanted = requests.slots[index].statusExtents.contexts.dirtyBitmaps
    let start = requests.slots[index].offset
    let end = start + requests.slots[index].length
    let limit = requests.slots[index].extentsMax
    let buffer = requests.slots[index].buffer
    while let id = wanted.popFirst() {
      guard let named = bitmaps[number: MetaContextSet.bitmapNumber(ofID: id)] else {
        preconditionFailure("a bitmap was removed that a client has selected")
      }
      let bitmap = named.shown
      var cursor = start
      while cursor < end {
        let run = bitmap.run(at: cursor)
        let runEnd = min(run.end, end)
        guard
          requests.slots[index].statusExtents.add(
            runEnd - cursor, run.isDirty ? DirtyStatus.dirty : 0, of: id, limit: limit, to: buffer)
        else { break }
        cursor = runEnd
      }
    }
  }
}

/// The bits of `qemu:dirty-bitmap:NAME`.
enum DirtyStatus {
  static let dirty: UInt32 = 1
}
