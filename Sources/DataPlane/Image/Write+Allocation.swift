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
  /// Begins giving `clusterCount` clusters from the cursor's on a place; waits while another
  /// request is at one of them.
  mutating func beginAllocation(
    _ index: Int, _ clusterCount: Int, preallocatedAt host: UInt64?
  ) -> Progress {
    let clusterByteCount = layers[0].geometry.clusterByteCount
    let start = requests.slots[index].placeCursor.alignedDown(to: clusterByteCount)
    let end = start + UInt64(clusterCount) * clusterByteCount
    if isBeingAllocated(ByteRange(start: start, end: end)) {
      allocationWaiters.append(index, &requests.slots)
      return .waits
    }
    requests.slots[index].allocation = ClusterAllocation(
      guestStart: start, clusterCount: clusterCount, host: host ?? 0, isFresh: false,
      reusesHost: host != nil)
    requests.slots[index].allocationPosition = allocations.append(index)
    requests.slots[index].stage = .allocating
    return .more
  }

  /// Whether some request is giving a place to a cluster of the range.
  func isBeingAllocated(_ range: ByteRange) -> Bool {
    for other in allocations.indices where allocationRange(Int(other)).overlaps(range) {
      return true
    }
    return false
  }

  private func allocationRange(_ index: Int) -> ByteRange {
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
        counters.allocationCount += 1
        counters.allocatedClusterCount += UInt64(count)
      }
    }
    requests.slots[index].scan = Scan()
    requests.slots[index].stage = .fillingHead
    return .more
  }

  // MARK: Filling

  /// Gets the bytes of the new clusters that lie before (or behind) the write.
  mutating func fill(_ index: Int) -> Progress {
    let isHead = requests.slots[index].stage == .fillingHead
    let range = fillRange(index, isHead: isHead)
    if !range.isEmpty {
      if requests.slots[index].scan.end == 0 {
        switch fillSource(index, range) {
        case .waits: return .waits
        case .zeroes: setFillIsZero(index, isHead: isHead)
        case .failed: return fail(index, .io)
        case .data:
          guard let buffer = buffers.acquire(byteCount: Int(range.byteCount)) else {
            return fail(index, .noMemory)
          }
          if isHead {
            requests.slots[index].allocation.headFill = buffer
          } else {
            requests.slots[index].allocation.tailFill = buffer
          }
          beginScan(
            index, range, into: buffer, stage: requests.slots[index].stage, then: .placing)
        }
      }
      if requests.slots[index].scan.end != 0 {
        if case .waits = continueScan(index) { return .waits }
        if requests.slots[index].error != .none { return .more }
      }
    }
    requests.slots[index].scan = Scan()
    if isHead {
      requests.slots[index].stage = .fillingTail
      return .more
    }
    return writeClusters(index)
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

  /// Writes fill, payload and fill in one operation.
  private mutating func writeClusters(_ index: Int) -> Progress {
    guard disks.hasRoom else { return waitForQueue(index) }
    let slot = requests.slots[index]
    let run = allocationRange(index)
    let end = min(slot.placeEnd, run.end)
    let headByteCount = Int(slot.placeCursor - run.start)
    let tailByteCount = Int(run.end - end)
    var host = slot.allocation.host
    var pieces: [3 of DiskQueue.Piece] = [.none, .none, .none]
    if headByteCount > 0 {
      if slot.allocation.headIsZero && slot.allocation.isFresh {
        host += UInt64(headByteCount)
      } else {
        pieces[0] = DiskQueue.Piece(
          slot.allocation.headIsZero ? zeroes : slot.allocation.headFill, 0, headByteCount)
      }
    }
    pieces[1] = DiskQueue.Piece(
      slot.buffer, Int(slot.placeCursor - slot.bufferStart), Int(end - slot.placeCursor))
    if tailByteCount > 0, !(slot.allocation.tailIsZero && slot.allocation.isFresh) {
      pieces[2] = DiskQueue.Piece(
        slot.allocation.tailIsZero ? zeroes : slot.allocation.tailFill, 0, tailByteCount)
    }
    disks.queueWrite(
      file: layers[0].file, at: host, from: pieces, isDurable: false,
      tag: IOTag(.clusterWrite, index).rawValue)
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
      let host = allocation.host + UInt64(number) * geometry.clusterByteCount
      if !allocation.reusesHost { freeHost(of: old) }
      buffer.storeBigEndian64(
        L2Entry(normalAt: HostOffset(byteOffset: host)).rawValue, at: at)
      updateIndex(
        allocation.guestStart + UInt64(number) * geometry.clusterByteCount, .data, host: host)
    }
    cache.markDirty(page)
    requests.slots[index].placeCursor = min(
      requests.slots[index].placeEnd, allocationRange(index).end)
    if requests.slots[index].flags.contains(.fua) { requests.slots[index].needsFlush = true }
    endAllocation(index)
    if cache.isMostlyDirty { wantFlush() }
    requests.slots[index].stage = .placing
    return .more
  }

  /// Ends an allocation, mapped or not, and lets those who wait for the clusters try again.
  private mutating func endAllocation(_ index: Int) {
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
      releases.addUnmapped(
        cluster: allocation.host >> bits, count: UInt64(allocation.clusterCount))
      wakeReleases()
    }
    endAllocation(index)
  }
}
