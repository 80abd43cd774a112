// SPDX-License-Identifier: Apache-2.0
//
// A moment at which nothing is in flight and the file says all that memory knows, for a change that
// somebody else makes to the file: internal snapshots. Source: decision 0031; QEMU's drained
// sections.
//
//     draining ─► securing ─► editing ─► (tables are read anew) ─► finished
//
// Requests that have begun end; those that come are held, none of them begun, until it is over. So
// a change is before the moment or behind it. What waits to be released waits on: it is counted
// too high for a while, which is what a leak is.

import BlockTypes
import LinuxIO
import Qcow2
import Synchronization

/// The one standstill, if there is one.
struct Standstill {
  enum Step: UInt8 {
    /// Waiting until nothing is in flight.
    case draining
    /// Making tables durable.
    case securing
    /// The pool makes the change.
    case editing
  }

  /// What a thread of the pool leaves for the loop.
  final class Result: Sendable {
    let outcome = Mutex<ImageEdit.Outcome?>(nil)
  }

  /// The slot that keeps the others still; -1 when none does.
  var slot: Int32 = -1
  var step: Step = .draining
  var edit: ImageEdit?
  var plan: ExportPlan?
  var result = Result()
  /// When requests began to be held.
  var startNanoseconds: UInt64 = 0
  /// Requests that have not begun.
  var held = SlotList()

  var isHolding: Bool { slot >= 0 }
}

extension ImageStack {
  /// Begins a standstill for `edit`; false when no slot is free.
  ///
  /// - Parameter plan: what the image was opened by.
  mutating func startStandstill(_ edit: ImageEdit, _ plan: ExportPlan) -> Bool {
    precondition(!standstill.isHolding, "two standstills run at once")
    guard let slot = requests.acquire() else { return false }
    requests.slots[slot].command = .cache  // changes nothing that a guest sees
    requests.slots[slot].stage = .standingStill
    standstill = Standstill()
    standstill.slot = Int32(slot)
    standstill.edit = edit
    standstill.plan = plan
    standstill.startNanoseconds = MonotonicClock.nanoseconds
    wake(slot)
    return true
  }

  /// Wakes who waits until nothing is in flight, once that is so. Returns whether it did.
  mutating func endDraining() -> Bool {
    guard standstill.isHolding, standstill.step == .draining else { return false }
    let slot = Int(standstill.slot)
    guard !requests.slots[slot].isInList, isStill() else { return false }
    standstill.step = .securing
    wake(slot)
    return true
  }

  /// The stage of the slot.
  mutating func standStill(_ index: Int) -> Progress {
    switch standstill.step {
    case .draining: return .waits
    case .securing: return secureStandstill(index)
    case .editing:
      if requests.slots[index].poolCount > 0 { return .waits }
      reopenTables()
      requests.slots[index].stage = .finished
      return .more
    }
  }

  /// Ends the standstill and lets those go on that were held. Returns how the change ended, and for
  /// how long they were held.
  mutating func endStandstill() -> (outcome: ImageEdit.Outcome, nanoseconds: UInt64) {
    guard let outcome = standstill.result.outcome.withLock({ $0 }) else {
      preconditionFailure("a standstill ended before its change")
    }
    standstill.slot = -1
    standstill.edit = nil
    standstill.plan = nil
    ready.append(contentsOf: &standstill.held, &requests.slots)
    wakeReleases()
    return (outcome, MonotonicClock.nanoseconds - standstill.startNanoseconds)
  }

  // MARK: Before the change

  private mutating func isStill() -> Bool {
    !flush.isRunning && disks.inFlightCount == 0 && !allocator.growthIsRunning
      && !store.round.isRunning && requests.slots[ReleaseQueue.slot].poolCount == 0
      && !requests.hasWork(besides: Int(standstill.slot), ReleaseQueue.slot)
  }

  private mutating func secureStandstill(_ index: Int) -> Progress {
    if hasDirtyTables || hasUnsyncedWrites || flush.isRunning {
      switch secureTables(index) {
      case .waits: return .waits
      case .durable: return .more
      case .failed(let error):
        return giveUp(index, "the tables of the disk cannot be made durable: \(error)")
      }
    }
    if overlapGuard.isTripped { return giveUp(index, "the image is damaged") }
    if lostWrites { return giveUp(index, "the disk has lost writes") }
    let failure = disclaimCrashes()
    if failure != .none { return giveUp(index, "the header cannot be written: \(failure)") }
    precondition(isStill(), "something began while the image stood still")
    startEdit(index)
    return .waits
  }

  private mutating func giveUp(_ index: Int, _ reason: String) -> Progress {
    standstill.result.outcome.withLock { $0 = .failed(reason) }
    requests.slots[index].stage = .finished
    return .more
  }

  private mutating func startEdit(_ index: Int) {
    guard let edit = standstill.edit else { preconditionFailure("a standstill has no purpose") }
    standstill.step = .editing
    let storage = storages[0]
    let isDirect = disks.isDirect(file: layers[0].file)
    let result = standstill.result
    // As at the end of a session, so that the file's end is that of its content.
    let end =
      allocator.canGrow && allocator.keptByteCount < allocator.fileByteCount
      ? allocator.keptByteCount : nil
    submitToPool(index) {
      // What has no alignment goes through the page cache.
      if isDirect { storage.file.disableDirect() }
      let outcome = Standstill.perform(edit, on: storage, trimmingTo: end)
      result.outcome.withLock { $0 = outcome }
      return 0
    }
  }
}

extension Standstill {
  fileprivate static func perform(
    _ edit: ImageEdit, on storage: LayerFile, trimmingTo end: UInt64?
  ) -> ImageEdit.Outcome {
    do throws(SystemError) {
      if let end { try storage.file.truncate(to: end) }
    } catch {
      return .failed("the image cannot be trimmed to its content: \(error)")
    }
    return edit.perform(storage)
  }
}

// MARK: After the change

extension ImageStack {
  /// Reads anew what is in memory of the active layer's tables. It blocks the loop, as long as it
  /// takes to read the L1 and the refcount table.
  ///
  /// An image whose tables cannot be read anew takes no changes any more.
  fileprivate mutating func reopenTables() {
    if case .failed(_, losesWrites: true)? = standstill.result.outcome.withLock({ $0 }) {
      lostWrites = true
    }
    forgetTables()
    var fault: String?
    for _ in 0..<ImageStack.readsMax {
      do {
        try readTables()
        fault = nil
        break
      } catch {
        fault = "its tables cannot be read again: \(error)"
      }
    }
    if let fault {
      overlapGuard.trip(fault)
      // Nobody has found a fault in the image itself.
      overlapGuard.isUnmarked = false
      // The change may have made the file longer than anybody here knows: it is not cut off.
      allocator.keptByteCount = allocator.fileByteCount
    }
    if disks.isDirect(file: layers[0].file) { _ = storages[0].file.enableDirect() }
  }

  /// Attempts to read the tables: all changes end when they cannot be read.
  private static var readsMax: Int { 3 }

  /// Drops all pages of the active layer's tables, which are clean and used by nobody.
  private mutating func forgetTables() {
    for page in 0..<cache.usedCount
    where cache.pages[page].layer == 0 && cache.pages[page].kind != .index
      && cache.pages[page].state != .unused
    {
      precondition(cache.pages[page].canBeEvicted, "a table is in use while the image stands still")
      cache.remove(page)
    }
  }

  private mutating func readTables() throws {
    guard var plan = standstill.plan else { preconditionFailure("a standstill has no plan") }
    let old = plan.layers[0]
    let first = try old.storage.file.read(
      at: 0, byteCount: Int(layers[0].geometry.clusterByteCount))
    let header = try Header(
      decoding: first, fileByteCount: try old.storage.file.byteCount())
    plan.layers[0] = LayerPlan(
      storage: old.storage, dataStorage: old.dataStorage, format: .qcow2(header),
      diskByteCount: header.diskByteCount, cipher: old.cipher)
    let l1 = try plan.layers[0].readL1Table()
    var allocator = try Allocator(plan)
    overlapGuard = try OverlapGuard(plan, l1: l1, refcountTable: allocator.table)
    // What was packed last is shared now, and its host cluster is left as it is.
    allocator.packedTail.block = self.allocator.packedTail.block
    self.allocator = allocator
    layers[0].l1TableOffset = header.l1TableOffset.byteOffset
    layers[0].l1 = FixedArray(count: l1.count) { l1[$0] }
    layers[0].hasSnapshots = header.snapshotCount > 0
    snapshots = plan.layers[0].readSnapshots()
    disks.setByteCount(self.allocator.fileByteCount, ofFile: layers[0].file)
  }
}
