// SPDX-License-Identifier: Apache-2.0
//
// Moving requests along: the dispatch by stage, waiting, waking, failing. The stages and their
// order are listed at `Stage`.

import BlockTypes
import Glibc
import LinuxIO
import NBDProtocol

/// What a stage's function reports to `advance`.
enum Progress {
  /// The stage changed, or may be entered again: go on.
  case more
  /// The request waits for something that will wake it.
  case waits
}

extension ImageStack {
  /// Starts a request whose command, range and payload are in the slot.
  mutating func start(_ index: Int) {
    if standstill.isHolding {
      requests.slots[index].stage = .held
      standstill.held.append(index, &requests.slots)
      return
    }
    begin(index)
    advance(index)
  }

  /// Brings a request to its first stage.
  private mutating func begin(_ index: Int) {
    switch requests.slots[index].command {
    case .read: startRead(index)
    case .write:
      let mustWait = recordChange(index)
      startWrite(index)
      if mustWait { requests.slots[index].holdForMarks() }
    case .writeZeroes, .trim:
      let mustWait = recordChange(index)
      startZero(index)
      if mustWait { requests.slots[index].holdForMarks() }
    case .flush: requests.slots[index].stage = isReadOnly ? .finished : .awaitingFlush
    case .blockStatus: startStatus(index)
    // Prefetching through O_DIRECT would warm nothing: the advice is taken and ignored.
    case .cache: requests.slots[index].stage = .finished
    case .resize: startResize(index)
    case .disconnect:
      preconditionFailure("a request that never reaches the image was started")
    }
  }

  /// Lets all requests that can move do so, until every one waits.
  mutating func runReady() {
    while let index = ready.popFirst(&requests.slots) { advance(index) }
    if !store.waiters.isEmpty { pushMarks() }
  }

  private mutating func advance(_ index: Int) {
    while true {
      if requests.slots[index].error != .none, requests.slots[index].stage != .finished {
        requests.slots[index].stage = .unwinding
      }
      let progress: Progress
      switch requests.slots[index].stage {
      case .held:
        begin(index)
        progress = .more
      case .scanning: progress = scanOn(index)
      case .awaitingMarks: progress = awaitMarks(index)
      case .claiming: progress = claim(index)
      case .readingHeadEdge, .readingTailEdge: progress = mergeEdge(index)
      case .placing: progress = place(index)
      case .makingTable: progress = makeTable(index)
      case .writingTable: progress = installTable(index)
      case .allocating: progress = allocate(index)
      case .packing: progress = finishPacking(index)
      case .placingPacked: progress = placePacked(index)
      case .fillingHead, .fillingTail: progress = fill(index)
      case .gathering: progress = writeClusters(index)
      case .writingClusters: progress = finishClusters(index)
      case .committing: progress = commit(index)
      case .awaitingWrites: progress = finishWrite(index)
      case .nextZeroPiece: progress = nextZeroPiece(index)
      case .zeroingClusters: progress = zeroClusters(index)
      case .provisioning: progress = provision(index)
      case .mappingZeroes: progress = mapZeroes(index)
      case .awaitingPool: progress = finishPoolWork(index)
      case .collectingStatus: progress = collectStatus(index)
      case .awaitingFlush: progress = joinFlush(index)
      case .releasing: progress = release(index)
      case .resizing: progress = resizeOn(index)
      case .storingBitmaps: progress = storeBitmaps(index)
      case .standingStill: progress = standStill(index)
      case .unwinding: progress = unwind(index)
      case .finished:
        finish(index)
        return
      case .free, .receiving, .replying:
        preconditionFailure("a request that is not the image's to move was advanced")
      }
      if case .waits = progress { return }
    }
  }

  private mutating func finish(_ index: Int) {
    precondition(requests.slots[index].inFlightCount == 0, "a request finished with I/O in flight")
    dropClaim(index)
    if resize.slot == Int32(index) { endResize(index) }
    if store.work.slot == Int32(index), requests.slots[index].error != .none,
      !store.work.isOrdered
    {
      abandonBitmapWork(index)
    }
    finished.append(index, &requests.slots)
    wakeReleases()
  }

  // MARK: Waiting and waking

  mutating func wake(_ index: Int) { ready.append(index, &requests.slots) }

  /// Wakes a request for which an operation ended, unless a list will wake it. Stages look again
  /// at what they wait for, so waking one too often is harmless.
  private mutating func wakeUnlessListed(_ index: Int) {
    if !requests.slots[index].isInList { wake(index) }
  }

  /// Parks a request until the disk queue has room.
  mutating func waitForQueue(_ index: Int) -> Progress {
    queueWaiters.append(index, &requests.slots)
    return .waits
  }

  /// Gives the other requests a turn before this one goes on.
  mutating func yield(_ index: Int) -> Progress {
    deferred.append(index, &requests.slots)
    return .waits
  }

  // MARK: Failing

  /// Remembers the first error of a request; it unwinds when its operations have ended.
  mutating func fail(_ index: Int, _ error: BlockErrno) -> Progress {
    requests.slots[index].noteFailedScan()
    if requests.slots[index].error == .none { requests.slots[index].error = error }
    return .more
  }

  /// Undoes what an unfinished request holds, once nothing is in flight for it.
  private mutating func unwind(_ index: Int) -> Progress {
    if requests.slots[index].inFlightCount > 0 { return .waits }
    abandonAllocation(index)
    abandonTable(index)
    endPacking(index)
    requests.slots[index].stage = .finished
    return .more
  }

  /// Releases the buffers of a request and forgets it.
  mutating func retire(_ index: Int) {
    buffers.release(requests.slots[index].buffer)
    buffers.release(requests.slots[index].edges)
    buffers.release(requests.slots[index].packed.buffer)
    buffers.release(requests.slots[index].tableCopy)
    buffers.release(requests.slots[index].packedPayload.buffer)
    buffers.release(requests.slots[index].allocation.headFill)
    buffers.release(requests.slots[index].allocation.tailFill)
    requests.retire(index)
  }

  // MARK: Completions

  /// Takes the completions of the disk queue and moves whom they concern. Returns whether there
  /// were any.
  mutating func takeDiskCompletions() -> Bool {
    var tookAny = false
    while let completion = disks.nextCompletion() {
      tookAny = true
      deliver(completion)
    }
    if tookAny {
      pumpFlush()
      pumpMarks()
      ready.append(contentsOf: &queueWaiters, &requests.slots)
      ready.append(contentsOf: &cacheWaiters, &requests.slots)
    }
    return tookAny
  }

  private mutating func deliver(_ completion: DiskQueue.Completion) {
    let tag = IOTag(rawValue: completion.tag)
    let error = BlockErrno(systemErrno: completion.errno)
    guard let kind = tag.kind else { preconditionFailure("a completion has no kind") }
    switch kind {
    case .read: return readDone(tag, error)
    case .write:
      requests.slots[tag.index].writeCount -= 1
      if completion.losesWrites { lostWrites = true }
    case .clusterWrite: requests.slots[tag.index].clusterWriteCount -= 1
    case .tableWrite: requests.slots[tag.index].tableWriteCount -= 1
    case .tableLoad: return tableLoaded(tag.index, error)
    case .flushWrite: return flushOperationDone(kind, error)
    case .flushSync:
      // What failed is lost for good. A remote storage that did not answer in time keeps what it
      // has not made durable, and tells it itself when it could not.
      if completion.errno != 0, completion.errno != ETIMEDOUT || storages[0].file.remote == nil {
        flush.syncFailed = true
      }
      return flushOperationDone(kind, error)
    case .markWrite, .markSync: return markOperationDone(kind, tag.index, error)
    case .poolForSlot, .poolForGrowth:
      preconditionFailure("a pool completion came from the disk queue")
    }
    // Set at the end of a write, not at its start: a flush in between does not cover it.
    hasUnsyncedWrites = true
    settle(tag.index, error)
  }

  private mutating func readDone(_ tag: IOTag, _ error: BlockErrno) {
    requests.slots[tag.slot].readCount -= 1
    if error != .none { requests.slots[tag.slot].noteFailedRead(block: tag.block) }
    settle(tag.slot, error)
  }

  /// One operation of a request ended.
  private mutating func settle(_ index: Int, _ error: BlockErrno) {
    if error != .none, requests.slots[index].error == .none { requests.slots[index].error = error }
    wakeUnlessListed(index)
  }

  /// Takes the completions of the blocking pool.
  mutating func takePoolCompletions() {
    counters.poolCallCount += 1
    for completion in pool.takeCompletions() {
      let tag = IOTag(rawValue: completion.tag)
      switch tag.kind {
      case .poolForSlot:
        requests.slots[tag.index].poolCount -= 1
        requests.slots[tag.index].poolValue = completion.value
        wakeUnlessListed(tag.index)
      case .poolForGrowth: growthDone(errno: Int32(completion.value))
      default: preconditionFailure("a disk completion came from the pool")
      }
    }
  }

  /// Runs a call for a request on the blocking pool; the result comes as `poolValue`.
  mutating func submitToPool(_ index: Int, _ body: @escaping @Sendable () -> Int64) {
    requests.slots[index].poolCount += 1
    counters.poolCallCount += 1
    pool.submit(tag: IOTag(.poolForSlot, index).rawValue, body)
  }

  /// Has a remote storage do something for a request; the result comes as from the pool, but no
  /// thread of the pool waits for it.
  mutating func submitToRemote(
    _ index: Int, _ remote: any RemoteStorage, _ operation: RemoteOperation,
    value: @escaping @Sendable (Result<RemoteAnswer, RemoteFault>) -> Int64
  ) {
    requests.slots[index].poolCount += 1
    let pool = pool
    remote.start(operation) { answer in
      pool.report(tag: IOTag(.poolForSlot, index).rawValue, value: value(answer))
    }
  }
}
