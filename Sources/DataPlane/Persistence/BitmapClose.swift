// SPDX-License-Identifier: Apache-2.0
//
// The end of a session with persistent bitmaps: stored and valid, or left in use. Order: the exact
// data is durable before the directory says that nobody uses it, and that before the header takes
// back what it said of bitmaps in use. Source: decision 0024; qcow2.rst, "Bitmap directory".

import Bitmaps
import BlockTypes
import LinuxIO
import Qcow2

extension ImageStack {
  /// Stores the bitmaps, which are complete in memory, and returns what went wrong.
  mutating func closeBitmaps() -> String? {
    switch store.state {
    case .none: return nil
    case .broken: return store.trouble ?? "they could not be kept up"
    case .resting: if !store.hasRecovered { return nil }
    case .active: break
    }
    guard let host = store.directoryHost else { return nil }
    let geometry = layers[0].geometry
    guard disks.hasRoom, let page = buffers.acquire(byteCount: geometry.pageByteCount) else {
      return "there is no memory to store them"
    }
    defer { buffers.release(page) }
    var failure = BlockErrno.none
    if store.state == .active {
      store.marks.clear()
      for index in store.bitmaps.indices where store.bitmaps[index].isLoaded {
        for cluster in store.bitmaps[index].clusters.indices {
          failure = writeData(index, of: store.bitmaps, cluster: cluster, page)
          if failure != .none { return "their data cannot be written: \(failure)" }
        }
      }
      failure = synchronizeStore()
      if failure != .none { return "their data cannot be made durable: \(failure)" }
    }
    var allAreValid = true
    for index in store.bitmaps.indices {
      guard let number = store.bitmaps[index].number, let bitmap = bitmaps[number: number] else {
        continue
      }
      let entry = store.bitmaps[index].entry
      let needed = geometry.bitmapTableEntryCount(
        bitmaps.diskByteCount, granularityBits: entry.granularityBits)
      // A resize that failed has left a table of another size: the next session mends it.
      guard entry.tableEntryCount == needed else {
        allAreValid = false
        continue
      }
      store.bitmaps[index].entry.set(BitmapEntry.inUseFlag, false)
      store.bitmaps[index].entry.set(BitmapEntry.autoFlag, bitmap.isEnabled)
    }
    failure = write(store.bitmaps.flatMap(\.entry.bytes), at: host, page)
    if failure == .none { failure = synchronizeStore() }
    if failure != .none { return "their directory cannot be written: \(failure)" }
    guard allAreValid else { return nil }
    store.state = .resting
    store.hasRecovered = false
    failure = nameBitmaps(store.directory, completeMask: nil)
    return failure == .none ? nil : "the header cannot be written: \(failure)"
  }

  /// The bitmaps in the file may lack something from now on: their header says so before any
  /// further change. Who waits goes on, or fails when not even that can be written.
  mutating func breakStore(_ reason: String) {
    guard store.state != .none, store.state != .broken else { return }
    let wasActive = store.state == .active
    store.state = .broken
    if store.trouble == nil { store.trouble = reason }
    guard wasActive, store.durability == .region, store.directoryHost != nil else { return }
    let failure = nameBitmaps(store.directory, completeMask: nil)
    if failure != .none { failMarkWaiters(failure) }
  }

  /// The same where the bitmaps were never in use: their entries are marked where they lie.
  mutating func disclaimAll(_ reason: String) {
    guard store.state == .resting else { return breakStore(reason) }
    store.trouble = store.trouble ?? reason
    store.state = .broken
    guard let host = store.directoryHost else { return }
    guard disks.hasRoom, let page = buffers.acquire(byteCount: layers[0].geometry.pageByteCount)
    else { return failMarkWaiters(.noMemory) }
    defer { buffers.release(page) }
    var failure = nameBitmaps(store.directory, completeMask: nil)
    for index in store.bitmaps.indices where store.bitmaps[index].isLoaded {
      store.bitmaps[index].entry.set(BitmapEntry.inUseFlag, true)
    }
    if failure == .none {
      failure = write(store.bitmaps.flatMap(\.entry.bytes), at: host, page)
    }
    if failure == .none { failure = synchronizeStore() }
    if failure != .none { failMarkWaiters(failure) }
  }

  private mutating func failMarkWaiters(_ error: BlockErrno) {
    while let index = store.waiters.popFirst(&requests.slots) {
      _ = fail(index, error)
      wake(index)
    }
  }
}
