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
    case .broken:
      disclaimAgain()
      return store.trouble ?? "they could not be kept up"
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

  /// The bitmaps in the file may lack something from now on: the file says so before any further
  /// change. Who waits goes on, or fails when not even that can be written.
  mutating func breakStore(_ reason: String) {
    guard store.state != .none, store.state != .broken else { return }
    let isSaid = store.state == .active && store.durability == .none
    store.state = .broken
    if store.trouble == nil { store.trouble = reason }
    guard !isSaid else { return }
    store.claimsStand = true
    store.hasRecorders = true  // so that every change comes by `mustWait`
    disclaim()
  }

  /// Takes back what the file says of the bitmaps. Until that is durable no change may begin.
  private mutating func disclaim() {
    let failure = writeDisclaimer()
    if failure == .none { store.claimsStand = false } else { failMarkWaiters(failure) }
  }

  /// The same once more, for those who came since it failed. What a failed synchronisation has left
  /// in the file is unknown, so that nothing written after it is believed.
  mutating func disclaimAgain() {
    guard store.claimsStand else { return }
    if lostWrites { failMarkWaiters(.io) } else { disclaim() }
  }

  /// Nobody believes the marks, then every entry is in use where it lies.
  private mutating func writeDisclaimer() -> BlockErrno {
    guard let directory = store.directory else {
      // The first change failed, and may have named its bitmaps all the same.
      return changeHeader { $0.setBitmaps(nil, completeMask: nil) }
    }
    guard disks.hasRoom, let page = buffers.acquire(byteCount: layers[0].geometry.pageByteCount)
    else { return .noMemory }
    defer { buffers.release(page) }
    var failure = changeHeader { $0.setBitmaps(directory, completeMask: nil) }
    guard failure == .none else { return failure }
    for index in store.bitmaps.indices where store.bitmaps[index].isLoaded {
      store.bitmaps[index].entry.set(BitmapEntry.inUseFlag, true)
    }
    let entries = store.bitmaps.flatMap(\.entry.bytes)
    failure = write(entries, at: directory.directoryOffset.byteOffset, page)
    return failure == .none ? synchronizeStore() : failure
  }

  /// Takes back, durably, what the file says of bitmaps in use, before the image gets snapshots.
  mutating func disclaimCrashes() -> BlockErrno {
    // A crash in a session before this one may have left its claim, whatever is wished for now.
    let isClaimed =
      store.state == .active ? store.durability == .region : store.hasRecovered
    if isClaimed, let directory = store.directory {
      let failure = changeHeader { $0.setBitmaps(directory, completeMask: nil) }
      if failure != .none { return failure }
    }
    store.durability = .none
    return .none
  }

  private mutating func failMarkWaiters(_ error: BlockErrno) {
    while let index = store.waiters.popFirst(&requests.slots) {
      _ = fail(index, error)
      wake(index)
    }
  }
}
