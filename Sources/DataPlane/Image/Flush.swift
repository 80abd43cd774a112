// SPDX-License-Identifier: Apache-2.0
//
// FLUSH: making everything durable that was answered before, in an order in which a power cut at
// any point leaves the image whole.
//
// A flush takes a cut: it copies every changed table page at one instant and then writes the
// copies in three steps, each made durable before the next.
//
//     1  refcount blocks, and L2 tables that no L1 entry on disk names yet   (with all data, also
//        that in an external data file)
//     2  the refcount table, where blocks were added
//     3  L2 tables that the disk knows, and the L1 table
//
// So data is durable before its mapping, a count before what it counts, and a table before what
// names it. The bits of subclusters are part of the mapping: one that is in a copy was set after
// its bytes had been written, and so before the sync of step 1. Clusters that the cut forgot are
// released after step 3 (Release.swift). Changes made while a flush runs belong to the next one.
// Spec: proto.md, "NBD_CMD_FLUSH".

import BlockTypes
import LinuxIO
import Qcow2

/// The flush that runs now, and who waits for it and for the next one.
struct FlushState {
  enum Phase: UInt8 { case idle, unreferenced, refcountTable, referenced }

  /// A copy of a page on its way to the file.
  struct PageCopy {
    var hostOffset: UInt64
    var buffer: IOBuffer
    var byteCount: Int
    /// The cached page; -1 for the L1 and the refcount table.
    var page: Int32
  }

  var phase: Phase = .idle
  /// Requests that the running flush answers, and those that the next one will.
  var answers = SlotList()
  var waiting = SlotList()
  /// Requests that only wait for the flush to be over.
  var idleWaiters = SlotList()
  /// Somebody wants a flush though no request waits for it.
  var isWanted = false

  /// The copies of each step.
  var unreferenced: [PageCopy] = []
  var refcountTable: [PageCopy] = []
  var referenced: [PageCopy] = []
  /// Copies of the running step given to the disk, operations in flight, the sync of the step.
  var nextCopy = 0
  var inFlightCount = 0
  var syncIsQueued = false
  var error: BlockErrno = .none
  var syncFailed = false

  /// L1 entries whose change is not durable: in memory, and taken along by the running flush.
  var installedTables: Set<Int> = []
  var sealedTables: Set<Int> = []
  /// L1 entries that a failed flush may or may not have written. What they name was durable before,
  /// so their tables change as those do that the disk knows; the entries are written anew.
  var doubtfulTables: Set<Int> = []

  var isRunning: Bool { phase != .idle }

  /// Whether the disk's L1 table may not name this L2 table yet.
  func isUnreferenced(_ l1Index: Int) -> Bool {
    installedTables.contains(l1Index) || sealedTables.contains(l1Index)
      || doubtfulTables.contains(l1Index)
  }

  mutating func markTableInstalled(_ l1Index: Int) { installedTables.insert(l1Index) }
}

extension ImageStack {
  /// The request waits for the next cut; all that was answered before it is in that cut.
  mutating func joinFlush(_ index: Int) -> Progress {
    flush.waiting.append(index, &requests.slots)
    return .waits
  }

  /// Asks for a flush for the image's own sake.
  mutating func wantFlush() { flush.isWanted = true }

  enum Secured {
    /// What was in memory when a request first asked is in the file.
    case durable
    case failed(BlockErrno)
    case waits
  }

  /// Waits for a flush that begins now or later.
  mutating func secureTables(_ index: Int) -> Secured {
    if requests.slots[index].flushIsAsked, !flush.isRunning, !flush.isWanted {
      requests.slots[index].flushIsAsked = false
      return flush.error == .none ? .durable : .failed(flush.error)
    }
    if !flush.isRunning, !requests.slots[index].flushIsAsked {
      requests.slots[index].flushIsAsked = true
      wantFlush()
    }
    flush.idleWaiters.append(index, &requests.slots)
    return .waits
  }

  /// Whether tables in memory differ from those in the file.
  var hasDirtyTables: Bool {
    cache.dirtyCount > 0 || !flush.installedTables.isEmpty || !flush.doubtfulTables.isEmpty
      || !allocator.dirtyTablePages.isEmpty
  }

  /// Starts a flush when one is wanted and none runs. Called once a tick, so that all requests of
  /// a tick share it.
  mutating func startFlushIfWanted() {
    if overlapGuard.isUnmarked { markCorrupt() }
    guard !flush.isRunning, !flush.waiting.isEmpty || flush.isWanted else { return }
    flush.isWanted = false
    flush.answers = flush.waiting
    flush.waiting = SlotList()
    flush.error = .none
    flush.syncFailed = false
    if lostWrites {
      flush.error = .io
      endFlush()
      return
    }
    if !hasDirtyTables, releases.pending.isEmpty, !hasUnsyncedWrites {
      endFlush()
      return
    }
    takeCut()
    counters.flushCount += 1
    hasUnsyncedWrites = false
    flush.phase = .unreferenced
    flush.nextCopy = 0
    pumpFlush()
  }

  // MARK: The cut

  private mutating func takeCut() {
    releases.sealed.append(contentsOf: releases.pending)
    releases.pending.removeAll(keepingCapacity: true)
    for page in cache.takeDirtyPages() where cache.pages[Int(page)].isDirty {
      copyPage(Int(page))
    }
    copyTableWords()
    flush.sealedTables = flush.installedTables
    flush.installedTables.removeAll(keepingCapacity: true)
    allocator.dirtyTablePages.removeAll(keepingCapacity: true)
  }

  private mutating func copyPage(_ page: Int) {
    let byteCount = layers[0].geometry.pageByteCount
    let copy = newCopy(cache.pages[page].hostOffset, byteCount, page: Int32(page))
    copy.buffer.copy(0, from: cache.pages[page].buffer, 0, byteCount)
    cache.markClean(page)
    cache.pages[page].isBeingWritten = true
    let isReferenced =
      cache.pages[page].kind == .l2
      && !flush.installedTables.contains(Int(cache.pages[page].l1Index))
    if isReferenced {
      flush.referenced.append(copy)
    } else {
      flush.unreferenced.append(copy)
    }
  }

  private mutating func newCopy(
    _ hostOffset: UInt64, _ byteCount: Int, page: Int32
  ) -> FlushState.PageCopy {
    guard let buffer = buffers.acquire(byteCount: byteCount) else {
      preconditionFailure("there is no memory to copy a table page")
    }
    return FlushState.PageCopy(
      hostOffset: hostOffset, buffer: buffer, byteCount: byteCount, page: page)
  }

  /// Copies the pages of the L1 and of the refcount table that hold changed words.
  private mutating func copyTableWords() {
    let pageByteCount = layers[0].geometry.pageByteCount
    let wordsPerPage = pageByteCount / 8
    let changed = flush.installedTables.union(flush.doubtfulTables)
    for number in Set(changed.map { $0 / wordsPerPage }) {
      let copy = newCopy(
        layers[0].l1TableOffset + UInt64(number * pageByteCount), pageByteCount, page: -1)
      for word in 0..<wordsPerPage {
        let index = number * wordsPerPage + word
        copy.buffer.storeBigEndian64(
          index < layers[0].l1.count ? layers[0].l1[index] : 0, at: word * 8)
      }
      flush.referenced.append(copy)
    }
    for number in allocator.dirtyTablePages {
      let copy = newCopy(
        allocator.tableOffset + UInt64(number * pageByteCount), pageByteCount, page: -1)
      for word in 0..<wordsPerPage {
        copy.buffer.storeBigEndian64(allocator.table[number * wordsPerPage + word], at: word * 8)
      }
      flush.refcountTable.append(copy)
    }
  }

  // MARK: The steps

  private func copyCount(_ phase: FlushState.Phase) -> Int {
    switch phase {
    case .idle: 0
    case .unreferenced: flush.unreferenced.count
    case .refcountTable: flush.refcountTable.count
    case .referenced: flush.referenced.count
    }
  }

  private func copy(_ number: Int) -> FlushState.PageCopy {
    switch flush.phase {
    case .idle: preconditionFailure("a flush that does not run has no copies")
    case .unreferenced: flush.unreferenced[number]
    case .refcountTable: flush.refcountTable[number]
    case .referenced: flush.referenced[number]
    }
  }

  /// Gives the disk as much of the running step as it takes.
  mutating func pumpFlush() {
    guard flush.isRunning, !flush.syncIsQueued else { return }
    let count = copyCount(flush.phase)
    while flush.nextCopy < count, flush.error == .none, disks.hasRoom {
      let copy = copy(flush.nextCopy)
      disks.queueWrite(
        file: layers[0].file, at: copy.hostOffset,
        from: [DiskQueue.Piece(copy.buffer, 0, copy.byteCount), .none, .none],
        isDurable: false, tag: IOTag(.flushWrite, flush.nextCopy).rawValue)
      flush.nextCopy += 1
      flush.inFlightCount += 1
    }
    guard flush.inFlightCount == 0 else { return }
    if flush.error != .none {
      endFlush()
    } else if flush.nextCopy == count, disks.availableCount > 1 {
      disks.queueFlush(file: layers[0].file, tag: IOTag(.flushSync, 0).rawValue)
      flush.syncIsQueued = true
      flush.inFlightCount = 1
      // What a later step names may lie in the data file.
      guard layers[0].hasDataFile, flush.phase == .unreferenced else { return }
      disks.queueFlush(file: layers[0].dataFile, tag: IOTag(.flushSync, 0).rawValue)
      flush.inFlightCount = 2
    }
  }

  mutating func flushOperationDone(_ kind: IOTag.Kind, _ error: BlockErrno) {
    flush.inFlightCount -= 1
    if error != .none, flush.error == .none { flush.error = error }
    guard kind == .flushSync, flush.inFlightCount == 0 else { return }
    flush.syncIsQueued = false
    if flush.error != .none {
      endFlush()
      return
    }
    nextPhase()
  }

  private mutating func nextPhase() {
    flush.nextCopy = 0
    switch flush.phase {
    case .idle: preconditionFailure("a flush went on after its end")
    case .unreferenced:
      if !flush.refcountTable.isEmpty {
        flush.phase = .refcountTable
      } else if !flush.referenced.isEmpty {
        flush.phase = .referenced
      } else {
        endFlush()
      }
    case .refcountTable:
      if flush.referenced.isEmpty { endFlush() } else { flush.phase = .referenced }
    case .referenced: endFlush()
    }
  }

  // MARK: The end

  /// Answers all who waited. After a failure the pages are dirty again, for the next attempt.
  private mutating func endFlush() {
    let error = flush.error
    if flush.syncFailed { lostWrites = true }
    for list in [flush.unreferenced, flush.refcountTable, flush.referenced] {
      for copy in list { settleCopy(copy, error) }
    }
    flush.unreferenced.removeAll(keepingCapacity: true)
    flush.refcountTable.removeAll(keepingCapacity: true)
    flush.referenced.removeAll(keepingCapacity: true)
    if error == .none {
      releases.unseal()
      flush.doubtfulTables.removeAll(keepingCapacity: true)
    } else {
      if flush.phase == .referenced {
        flush.doubtfulTables.formUnion(flush.sealedTables)
      } else {
        flush.installedTables.formUnion(flush.sealedTables)
      }
      hasUnsyncedWrites = true
    }
    flush.sealedTables.removeAll(keepingCapacity: true)
    flush.phase = .idle
    while let index = flush.answers.popFirst(&requests.slots) {
      requests.slots[index].stage = .finished
      if error != .none, requests.slots[index].error == .none {
        requests.slots[index].error = error
      }
      wake(index)
    }
    ready.append(contentsOf: &flush.idleWaiters, &requests.slots)
    if error == .none {
      ready.append(contentsOf: &cacheWaiters, &requests.slots)
    } else {
      failCacheWaiters(error)
    }
    wakeReleases()
  }

  /// The changed pages stay, so that there is no room for others: who waits for it fails. Waiting
  /// on would ask for the next flush at once, and so for ever.
  private mutating func failCacheWaiters(_ error: BlockErrno) {
    while let index = cacheWaiters.popFirst(&requests.slots) {
      if index == ReleaseQueue.slot {
        releases.loadFailed = true
      } else {
        _ = fail(index, error)
      }
      wake(index)
    }
    dropUnfinishedIndexPages()
  }

  private mutating func settleCopy(_ copy: FlushState.PageCopy, _ error: BlockErrno) {
    buffers.release(copy.buffer)
    if copy.page >= 0 {
      let page = Int(copy.page)
      cache.pages[page].isBeingWritten = false
      if error != .none { cache.markDirty(page) }
    } else if error != .none, isRefcountTable(copy.hostOffset) {
      let pageByteCount = UInt64(layers[0].geometry.pageByteCount)
      allocator.dirtyTablePages.insert(
        Int((copy.hostOffset - allocator.tableOffset) / pageByteCount))
    }
  }

  private func isRefcountTable(_ hostOffset: UInt64) -> Bool {
    let byteCount = UInt64(allocator.table.count * 8)
    return hostOffset >= allocator.tableOffset && hostOffset < allocator.tableOffset + byteCount
  }
}
