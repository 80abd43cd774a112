// SPDX-License-Identifier: Apache-2.0
//
// Copy on write: giving guest clusters a place in the active layer. The new clusters are filled
// from below where the request does not cover them (Write+Fill.swift), written in one operation,
// together with what joined (Write+Joining.swift), and mapped when that has ended, so that a
// mapping never leads to bytes that are not there (Flush.swift makes both durable in that order).
// Spec: qcow2.rst, "Cluster mapping".

import BlockTypes
import LinuxIO
import Qcow2

extension ImageStack {
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

  /// What of them is filled and mapped: everything, but for subclusters that stay where they are.
  func placedRange(_ index: Int) -> ByteRange {
    let run = allocationRange(index)
    return ByteRange(
      start: max(run.start, requests.slots[index].allocation.placedStart),
      end: min(run.end, requests.slots[index].allocation.placedEnd))
  }

  // MARK: Taking clusters

  mutating func allocate(_ index: Int) -> Progress {
    if layers[0].hasDataFile {
      requests.slots[index].allocation.host = requests.slots[index].allocation.guestStart
    } else if !requests.slots[index].allocation.reusesHost {
      switch takeClusters(index, requests.slots[index].allocation.clusterCount) {
      case .waits: return .waits
      case .failed(let error): return fail(index, error)
      case .taken(let host, let count, let isFresh):
        requests.slots[index].allocation.host = host
        requests.slots[index].allocation.clusterCount = count
        // Zeroes in the file are none for who decrypts them.
        requests.slots[index].allocation.isFresh = isFresh && layers[0].cipher < 0
        counters.allocationCount += 1
        counters.allocatedClusterCount += UInt64(count)
      }
    }
    requests.slots[index].scan = Scan()
    requests.slots[index].stage = .fillingHead
    requests.slots[index].allocation.step = .gathering
    // Who waited because there was no place can join now.
    ready.append(contentsOf: &allocationWaiters, &requests.slots)
    return .more
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
    guard
      disks.queueWrite(
        file: layers[0].dataFile,
        at: slot.allocation.host + (written.start - slot.allocation.guestStart), from: pieces,
        isDurable: false, cipher: layers[0].cipher, tag: IOTag(.clusterWrite, index).rawValue)
    else { return fail(index, .noMemory) }
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
    if allocation.isPacked {
      mapPacked(index, page, place)
      return .more
    }
    if geometry.hasSubclusters {
      mapSubclusters(index, page, place, isZero: isZero)
      return .more
    }
    let buffer = cache.pages[page].buffer
    for number in 0..<allocation.clusterCount {
      let at = (place.entryInPage + number) * 8
      let old = L2Entry(rawValue: buffer.loadBigEndian64(at: at))
      let host = HostOffset(
        byteOffset: allocation.host + UInt64(number) * geometry.clusterByteCount)
      if !allocation.reusesHost { freeHost(of: old) }
      let new = isZero ? zeroEntry(index, host) : L2Entry(normalAt: host)
      buffer.storeBigEndian64(new.rawValue, at: at)
      updateIndex(
        allocation.guestStart + UInt64(number) * geometry.clusterByteCount,
        isZero ? zeroKind(index) : .data, host: isZero ? 0 : host.byteOffset)
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
    if allocation.isPacked {
      if allocation.host != 0 { abandonPacked(index) }
    } else if !allocation.reusesHost, allocation.host != 0, !layers[0].hasDataFile {
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
