// SPDX-License-Identifier: Apache-2.0
//
// Copy on write: giving guest clusters a place in the active layer. The new clusters are filled
// from below where the request does not cover them, written in one operation, and mapped when
// that has ended, so that a mapping never leads to bytes that are not there (Flush.swift makes
// both durable in that order). Spec: qcow2.rst, "Cluster mapping".

import BlockTypes
import LinuxIO
import Qcow2

extension ImageStack {
  /// Bytes between head and tail that are read, and not needed, so that one read brings both.
  private static var skippedByteCountMax: UInt64 { 16 << 10 }

  /// Begins giving up to `clusterCount` clusters from the cursor's on a place. Joins the request
  /// that is at the first of them, if there is one, and leaves the others to who is at them.
  mutating func beginAllocation(
    _ index: Int, _ clusterCount: Int, preallocatedAt host: UInt64?
  ) -> Progress {
    let start = requests.slots[index].placeCursor
      .alignedDown(to: layers[0].geometry.clusterByteCount)
    if let owner = allocationOwner(at: start) { return join(index, owner) }
    registerAllocation(
      index, guestStart: start, clusterCount: uncontendedCount(start, clusterCount), host: host)
    requests.slots[index].stage = .allocating
    return .more
  }

  /// Notes that a request is giving clusters a place; `host` is the one they have already.
  mutating func registerAllocation(
    _ index: Int, guestStart: UInt64, clusterCount: Int, host: UInt64?
  ) {
    requests.slots[index].allocation = ClusterAllocation(
      guestStart: guestStart, clusterCount: clusterCount, host: host ?? 0,
      reusesHost: host != nil)
    requests.slots[index].allocationPosition = allocations.append(index)
  }

  /// Whether some request is giving a place to a cluster of the range.
  func isBeingAllocated(_ range: ByteRange) -> Bool {
    for other in allocations.indices where allocationRange(Int(other)).overlaps(range) {
      return true
    }
    return false
  }

  /// The request that is giving a place to the cluster at `offset`.
  func allocationOwner(at offset: UInt64) -> Int? {
    for other in allocations.indices {
      let run = allocationRange(Int(other))
      if run.start <= offset, offset < run.end { return Int(other) }
    }
    return nil
  }

  /// How many of the `count` clusters from `start` on nobody else is giving a place.
  func uncontendedCount(_ start: UInt64, _ count: Int) -> Int {
    var count = count
    for other in allocations.indices {
      let otherStart = requests.slots[Int(other)].allocation.guestStart
      guard otherStart > start else { continue }
      count = min(count, Int((otherStart - start) >> UInt64(layers[0].geometry.clusterBits)))
    }
    return count
  }

  /// The guest bytes of the clusters that a request is giving a place.
  func allocationRange(_ index: Int) -> ByteRange {
    let start = requests.slots[index].allocation.guestStart
    let byteCount =
      UInt64(requests.slots[index].allocation.clusterCount) * layers[0].geometry.clusterByteCount
    return ByteRange(start: start, end: start + byteCount)
  }

  // MARK: Taking clusters

  mutating func allocate(_ index: Int) -> Progress {
    if !requests.slots[index].allocation.reusesHost {
      switch takeClusters(index, requests.slots[index].allocation.clusterCount) {
      case .waits: return .waits
      case .failed(let error): return fail(index, error)
      case .taken(let host, let count, let isFresh):
        requests.slots[index].allocation.host = host
        requests.slots[index].allocation.clusterCount = count
        requests.slots[index].allocation.isFresh = isFresh
      }
    }
    requests.slots[index].scan = Scan()
    requests.slots[index].stage = .fillingHead
    requests.slots[index].allocation.step = .gathering
    // Who waited because there was no place can join now.
    ready.append(contentsOf: &allocationWaiters, &requests.slots)
    return .more
  }

  // MARK: Filling

  /// Gets the bytes of the new clusters that lie before (or behind) the write.
  mutating func fill(_ index: Int) -> Progress {
    if requests.slots[index].scan.end == 0 {
      if case .waits = beginFill(index) { return .waits }
      if requests.slots[index].error != .none { return .more }
    }
    if requests.slots[index].scan.end != 0 {
      if case .waits = continueScan(index) { return .waits }
      if requests.slots[index].error != .none { return .more }
    }
    requests.slots[index].scan = Scan()
    let isHead = requests.slots[index].stage == .fillingHead
    if isHead, !requests.slots[index].allocation.fillIsWhole {
      requests.slots[index].stage = .fillingTail
      return .more
    }
    return waitForJoiners(index)
  }

  /// Begins to read the head or the tail, or both at once, if they are not zeroes.
  private mutating func beginFill(_ index: Int) -> Progress {
    let isHead = requests.slots[index].stage == .fillingHead
    let range = fillRange(index, isHead: isHead)
    switch fillSource(index, range) {
    case .waits: return .waits
    case .zeroes:
      setFillIsZero(index, isHead: isHead)
      return .more
    case .failed: return fail(index, .io)
    case .data: break
    }
    if isHead, placedPart(index, of: index).byteCount <= ImageStack.skippedByteCountMax {
      switch fillSource(index, fillRange(index, isHead: false)) {
      case .waits: return .waits
      case .zeroes: break
      case .failed: return fail(index, .io)
      case .data: requests.slots[index].allocation.fillIsWhole = true
      }
    }
    let isWhole = requests.slots[index].allocation.fillIsWhole
    return readFill(index, isWhole ? allocationRange(index) : range, isHead: isHead)
  }

  private mutating func readFill(_ index: Int, _ range: ByteRange, isHead: Bool) -> Progress {
    guard let buffer = buffers.acquire(byteCount: Int(range.byteCount)) else {
      return fail(index, .noMemory)
    }
    if isHead {
      requests.slots[index].allocation.headFill = buffer
    } else {
      requests.slots[index].allocation.tailFill = buffer
    }
    beginScan(index, range, into: buffer, stage: requests.slots[index].stage, then: .placing)
    return .more
  }

  private mutating func setFillIsZero(_ index: Int, isHead: Bool) {
    if isHead {
      requests.slots[index].allocation.headIsZero = true
    } else {
      requests.slots[index].allocation.tailIsZero = true
    }
  }

  /// The part of the new clusters before, or behind, the aligned range of the write.
  private func fillRange(_ index: Int, isHead: Bool) -> ByteRange {
    let run = allocationRange(index)
    if isHead { return ByteRange(start: run.start, end: requests.slots[index].placeCursor) }
    let end = min(requests.slots[index].placeEnd, run.end)
    return ByteRange(start: end, end: run.end)
  }

  private enum FillSource { case zeroes, data, waits, failed }

  /// Whether the fill is all zeroes, which needs neither a buffer nor, on fresh clusters, a write.
  private mutating func fillSource(_ index: Int, _ range: ByteRange) -> FillSource {
    if requests.slots[index].allocation.reusesHost { return .zeroes }
    var cursor = range.start
    while cursor < range.end {
      switch resolve(cursor, range.end) {
      case .zero(_, let byteCount, _): cursor += byteCount
      case .data, .compressed: return .data
      case .needsIndex(let pageStart):
        if case .waits = fillIndex(index, pageStart) { return .waits }
      case .damaged: return .failed
      case .needsTable(let layer, let pageOffset, let l1Index):
        _ = waitForTable(index, layer, pageOffset, .l2, l1Index)
        return .waits
      }
    }
    return .zeroes
  }

  // MARK: Writing and mapping

  /// Writes fill, payload and fill, with what joined, in one operation.
  mutating func writeClusters(_ index: Int) -> Progress {
    guard disks.hasRoom else { return waitForQueue(index) }
    guard mergeJoiners(index) else { return fail(index, .noMemory) }
    let slot = requests.slots[index]
    let written = slot.allocation.written
    let payload = placedPart(index, of: index)
    let bufferStart = Int(payload.start - slot.bufferStart)
    var pieces: [3 of DiskQueue.Piece] = [.none, .none, .none]
    if slot.allocation.fillIsWhole {
      slot.allocation.headFill.copy(
        Int(payload.start - written.start), from: slot.buffer, bufferStart,
        Int(payload.byteCount))
      pieces[0] = DiskQueue.Piece(slot.allocation.headFill, 0, Int(written.byteCount))
    } else {
      pieces[0] = DiskQueue.Piece(
        slot.allocation.headIsZero ? zeroes : slot.allocation.headFill, 0,
        Int(payload.start - written.start))
      pieces[1] = DiskQueue.Piece(slot.buffer, bufferStart, Int(payload.byteCount))
      pieces[2] = DiskQueue.Piece(
        slot.allocation.tailIsZero ? zeroes : slot.allocation.tailFill, 0,
        Int(written.end - payload.end))
    }
    disks.queueWrite(
      file: layers[0].file,
      at: slot.allocation.host + (written.start - slot.allocation.guestStart), from: pieces,
      isDurable: false, tag: IOTag(.clusterWrite, index).rawValue)
    requests.slots[index].clusterWriteCount += 1
    requests.slots[index].stage = .writingClusters
    return .waits
  }

  mutating func finishClusters(_ index: Int) -> Progress {
    if requests.slots[index].clusterWriteCount > 0 { return .waits }
    requests.slots[index].stage = .committing
    return .more
  }

  /// Maps the clusters, now that their bytes are in the file.
  mutating func commit(_ index: Int) -> Progress {
    if case .waits = mapAllocation(index, isZero: false) { return .waits }
    requests.slots[index].placeCursor = placedPart(index, of: index).end
    if requests.slots[index].flags.contains(.fua) { requests.slots[index].needsFlush = true }
    endAllocation(index, isMapped: true)
    if cache.isMostlyDirty { wantFlush() }
    requests.slots[index].stage = .placing
    return .more
  }

  /// Points the L2 entries of the clusters at their place; `.more` when that is done.
  mutating func mapAllocation(_ index: Int, isZero: Bool) -> Progress {
    let allocation = requests.slots[index].allocation
    let geometry = layers[0].geometry
    let offset = GuestOffset(byteOffset: allocation.guestStart)
    let l1Index = geometry.l1Index(of: offset)
    let l1Entry = L1Entry(rawValue: layers[0].l1[l1Index])
    precondition(
      !l1Entry.isEmpty && l1Entry.isCopied, "a cluster is mapped in a table that is not ours")
    let place = PagePlace(
      entryIndex: geometry.l2Index(of: offset), table: l1Entry.tableOffset.byteOffset,
      geometry: geometry)
    guard let page = cache.find(0, place.pageOffset), cache.pages[page].state == .ready else {
      return waitForTable(index, 0, place.pageOffset, .l2, l1Index)
    }
    let buffer = cache.pages[page].buffer
    for number in 0..<allocation.clusterCount {
      let at = (place.entryInPage + number) * 8
      let old = L2Entry(rawValue: buffer.loadBigEndian64(at: at))
      let host = HostOffset(
        byteOffset: allocation.host + UInt64(number) * geometry.clusterByteCount)
      if !allocation.reusesHost { freeHost(of: old) }
      let new = isZero ? L2Entry(zeroAllocatedAt: host) : L2Entry(normalAt: host)
      buffer.storeBigEndian64(new.rawValue, at: at)
      updateIndex(
        allocation.guestStart + UInt64(number) * geometry.clusterByteCount,
        isZero ? .zeroAllocated : .data, host: isZero ? 0 : host.byteOffset)
    }
    cache.markDirty(page)
    return .more
  }

  /// Ends an allocation, mapped or not, and lets those who wait for the clusters go on.
  mutating func endAllocation(_ index: Int, isMapped: Bool) {
    releaseJoiners(index, isMapped: isMapped)
    buffers.release(requests.slots[index].allocation.headFill)
    buffers.release(requests.slots[index].allocation.tailFill)
    requests.slots[index].allocation = ClusterAllocation()
    let position = requests.slots[index].allocationPosition
    requests.slots[index].allocationPosition = -1
    if let moved = allocations.remove(at: position) {
      requests.slots[Int(moved)].allocationPosition = position
    }
    ready.append(contentsOf: &allocationWaiters, &requests.slots)
  }

  /// Gives back the clusters of a request that failed before it could map them.
  mutating func abandonAllocation(_ index: Int) {
    guard requests.slots[index].allocationPosition >= 0 else { return }
    let allocation = requests.slots[index].allocation
    if !allocation.reusesHost, allocation.host != 0 {
      let bits = UInt64(layers[0].geometry.clusterBits)
      // Writes that joined may still be on their way to the clusters.
      releases.addUnmapped(
        cluster: allocation.host >> bits, count: UInt64(allocation.clusterCount),
        lastUser: requests.currentSequence)
      wakeReleases()
    }
    endAllocation(index, isMapped: false)
  }
}
