// SPDX-License-Identifier: Apache-2.0
//
// Places for packed clusters. They lie one behind the other, several of them in one host cluster,
// which counts each of them. They are written behind the last one and mapped when that has ended,
// as other clusters are (Write+Allocation.swift). What was packed is never overwritten: who writes
// to it anew gets a new place, and the old one's count is lowered (Release.swift).
//
// With direct I/O two packed clusters may share a block. Whoever comes second writes the first
// one's bytes again, out of memory, and never while the first one is being written: then it begins
// with the next block. Decision: tools/decisions/0030. Spec: qcow2.rst, "Compressed Clusters
// Descriptor".

import BlockTypes
import LinuxIO
import Qcow2

/// The end of the last packed cluster, behind which the next one goes.
///
/// It holds no count of its own. When its host cluster is about to become free, it is forgotten.
struct PackedTail {
  /// The first free byte of a host cluster that has packed bytes; 0: no cluster has room.
  var cursor: UInt64 = 0
  /// What the file holds of the cursor's block, where I/O goes by blocks, as far as it is in use.
  var block: IOBuffer = .empty
  /// The request that is writing that block; -1: none does.
  var writer: Int32 = -1

  mutating func forget() {
    cursor = 0
    writer = -1
  }
}

extension ImageStack {
  /// Begins giving `clusterCount` packed clusters from the cursor's on a place. Another request
  /// that is at the first of them is joined, and those further on are left to who is at them.
  mutating func beginPackedAllocation(_ index: Int, _ clusterCount: Int) -> Progress {
    let start = requests.slots[index].placeCursor
    if let owner = allocationOwner(at: start) {
      let placed = placedRange(owner)
      if placed.start <= start, start < placed.end { return join(index, owner) }
      allocationWaiters.append(index, &requests.slots)
      return .waits
    }
    registerAllocation(
      index, guestStart: start, clusterCount: uncontendedCount(start, clusterCount), host: nil)
    requests.slots[index].allocation.isPacked = true
    requests.slots[index].stage = .placingPacked
    return .more
  }

  /// Takes a place for the packed clusters, as many as fit, and writes them there. Nobody joins.
  mutating func placePacked(_ index: Int) -> Progress {
    guard disks.hasRoom else { return waitForQueue(index) }
    // So large a file has room for whole clusters only.
    if allocator.fileByteCount > L2Entry.compressedPlaceMax(in: layers[0].geometry) {
      packsWrites = false
      ready.append(contentsOf: &packingWaiters, &requests.slots)
      endAllocation(index, isMapped: false)
      requests.slots[index].stage = .placing
      return .more
    }
    switch takePackedPlace(index) {
    case .waits: return .waits
    case .failed(let error): return fail(index, error)
    case .taken(let host, let count, _):
      requests.slots[index].allocation.host = host
      requests.slots[index].allocation.clusterCount = count
      guard writePacked(index) else {
        allocator.packedTail.forget()
        return fail(index, .noMemory)
      }
      counters.allocationCount += 1
      counters.allocatedClusterCount += UInt64(count)
      counters.packedClusterCount += UInt64(count)
      counters.packedByteCount += UInt64(packedByteCount(index))
      return .waits
    }
  }

  /// The number of the allocation's first cluster in the payload.
  private func firstPacked(_ index: Int) -> Int {
    let start = requests.slots[index].allocation.guestStart
    let payload = requests.slots[index].packedPayload
    guard let number = payload.number(of: start, layers[0].geometry.clusterBits) else {
      preconditionFailure("a cluster that was not packed has a packed place")
    }
    return number
  }

  /// Bytes of all clusters of the allocation.
  private func packedByteCount(_ index: Int) -> Int {
    let payload = requests.slots[index].packedPayload
    let first = firstPacked(index)
    var byteCount = 0
    for number in first..<first + requests.slots[index].allocation.clusterCount {
      byteCount += payload.byteCount(number)
    }
    return byteCount
  }

  // MARK: Taking a place

  /// Takes a place for the first clusters of the allocation, at least one. Its host clusters count
  /// each of them.
  private mutating func takePackedPlace(_ index: Int) -> Taken {
    if overlapGuard.isTripped { return .failed(.io) }
    let geometry = layers[0].geometry
    let bits = UInt64(geometry.clusterBits)
    var room: ByteRange
    switch tailRoom(index) {
    case .waits: return .waits
    case .room(let range): room = range
    }
    let wanted = UInt64(packedByteCount(index))
    // Clusters from here on were taken for this, and count one that is not there yet.
    var untouched = room.end >> bits
    var takenEnd = untouched
    if wanted > room.byteCount {
      let missing = wanted - room.byteCount
      switch takeClusters(index, Int((missing + geometry.clusterByteCount - 1) >> bits)) {
      case .waits: return .waits
      case .failed(let error): return .failed(error)
      case .taken(let host, let count, _):
        let end = host + UInt64(count) << bits
        let isBehind = !room.isEmpty && host == room.end && canRaise(room.start >> bits)
        room = ByteRange(start: isBehind ? room.start : host, end: end)
        untouched = host >> bits
        takenEnd = end >> bits
      }
    }
    return fillRoom(index, room, untouched, takenEnd)
  }

  private enum TailRoom {
    case room(ByteRange)
    case waits
  }

  /// What is free of the host cluster of the last packed bytes; empty when there is nothing.
  private mutating func tailRoom(_ index: Int) -> TailRoom {
    let nothing = TailRoom.room(ByteRange(start: 0, end: 0))
    let cursor = allocator.packedTail.cursor
    if cursor == 0 { return nothing }
    let geometry = layers[0].geometry
    let end = cursor.alignedUp(to: geometry.clusterByteCount)
    let isBusy = allocator.packedTail.writer >= 0
    let start = isBusy ? cursor.alignedUp(to: alignment) : cursor
    guard start < end else { return nothing }
    let place = countPlace(ofCluster: cursor >> UInt64(geometry.clusterBits))
    guard let page = cache.find(0, place.pageOffset), cache.pages[page].state == .ready else {
      _ = waitForTable(index, 0, place.pageOffset, .refcount, 0)
      return .waits
    }
    let count = cache.pages[page].buffer.withSpan(0, geometry.pageByteCount) {
      Refcount.load($0, at: place.indexInPage, order: geometry.refcountOrder)
    }
    // With a count of 0 it would be somebody else's soon.
    guard count > 0, count < geometry.refcountMax else {
      allocator.packedTail.forget()
      return nothing
    }
    return .room(ByteRange(start: start, end: end))
  }

  /// Lays the clusters of the allocation into `room`, as far as they fit and can be counted. The
  /// host clusters `untouched ..< takenEnd` of it are new.
  private mutating func fillRoom(
    _ index: Int, _ room: ByteRange, _ untouched: UInt64, _ takenEnd: UInt64
  ) -> Taken {
    let bits = UInt64(layers[0].geometry.clusterBits)
    let payload = requests.slots[index].packedPayload
    let first = firstPacked(index)
    var untouched = untouched
    var cursor = room.start
    var count = 0
    while count < requests.slots[index].allocation.clusterCount {
      let end = cursor + UInt64(payload.byteCount(first + count))
      let host = cursor >> bits
      guard end <= room.end, host >= untouched || canRaise(host) else { break }
      if host < untouched { raiseCount(host) }
      // The others, if there are any, are new.
      untouched = max(untouched, (end - 1) >> bits + 1)
      cursor = end
      count += 1
    }
    precondition(count > 0, "a packed cluster does not fit into a cluster")
    if untouched < takenEnd {
      releases.addUnmapped(cluster: untouched, count: takenEnd - untouched)
      wakeReleases()
    }
    allocator.packedTail.writer = -1
    allocator.packedTail.cursor =
      cursor.isAligned(to: layers[0].geometry.clusterByteCount) ? 0 : cursor
    return .taken(host: room.start, count: count, isFresh: false)
  }

  // MARK: Counts

  /// Where the count of a cluster lies that was taken in this session.
  private func countPlace(ofCluster cluster: UInt64) -> CountPlace {
    let geometry = layers[0].geometry
    let entryBits = UInt64(geometry.clusterBits + 3 - geometry.refcountOrder)
    return CountPlace(
      cluster: cluster, block: allocator.table[Int(cluster >> entryBits)] & ~511,
      geometry: geometry)
  }

  /// Whether a cluster's count is in memory and not the largest there is.
  private mutating func canRaise(_ cluster: UInt64) -> Bool {
    let geometry = layers[0].geometry
    let place = countPlace(ofCluster: cluster)
    guard let page = cache.find(0, place.pageOffset), cache.pages[page].state == .ready else {
      return false
    }
    return cache.pages[page].buffer.withSpan(0, geometry.pageByteCount) {
      Refcount.load($0, at: place.indexInPage, order: geometry.refcountOrder)
    } < geometry.refcountMax
  }

  private mutating func raiseCount(_ cluster: UInt64) {
    let geometry = layers[0].geometry
    let place = countPlace(ofCluster: cluster)
    guard let page = cache.find(0, place.pageOffset) else {
      preconditionFailure("a count is raised that is not in memory")
    }
    cache.pages[page].buffer.withMutableSpan(0, geometry.pageByteCount) { span in
      let old = Refcount.load(span.bytes, at: place.indexInPage, order: geometry.refcountOrder)
      precondition(old > 0, "packed bytes lie in a cluster that is free")
      Refcount.store(old + 1, to: &span, at: place.indexInPage, order: geometry.refcountOrder)
    }
    cache.markDirty(page)
  }

  // MARK: Writing and mapping

  /// Writes the packed clusters, by whole blocks; false when there is no memory for that.
  private mutating func writePacked(_ index: Int) -> Bool {
    let payload = requests.slots[index].packedPayload
    let host = requests.slots[index].allocation.host
    let start = payload.start(firstPacked(index))
    let byteCount = packedByteCount(index)
    let written = ByteRange(start: host, end: host + UInt64(byteCount)).roundedOut(to: alignment)
    var piece = DiskQueue.Piece(payload.buffer, start, byteCount)
    if alignment > 1 {
      guard let blocks = buffers.acquire(byteCount: Int(written.byteCount)) else { return false }
      requests.slots[index].allocation.headFill = blocks
      let head = Int(host - written.start)
      if head > 0 { blocks.copy(0, from: allocator.packedTail.block, 0, head) }
      blocks.copy(head, from: payload.buffer, start, byteCount)
      blocks.zero(head + byteCount, Int(written.byteCount) - head - byteCount)
      piece = DiskQueue.Piece(blocks, 0, Int(written.byteCount))
      guard keepTailBlock(index, blocks, written) else { return false }
    }
    disks.queueWrite(
      file: layers[0].file, at: written.start, from: [piece, .none, .none], isDurable: false,
      tag: IOTag(.clusterWrite, index).rawValue)
    requests.slots[index].clusterWriteCount += 1
    requests.slots[index].stage = .writingClusters
    return true
  }

  /// Remembers the last block of a write if the next packed cluster may begin in it.
  private mutating func keepTailBlock(
    _ index: Int, _ blocks: IOBuffer, _ written: ByteRange
  ) -> Bool {
    let cursor = allocator.packedTail.cursor
    if cursor == 0 || cursor.isAligned(to: alignment) { return true }
    if allocator.packedTail.block.isEmpty {
      guard let block = buffers.acquire(byteCount: Int(alignment)) else { return false }
      allocator.packedTail.block = block
    }
    allocator.packedTail.block.copy(
      0, from: blocks, Int(written.byteCount - alignment), Int(alignment))
    allocator.packedTail.writer = Int32(index)
    return true
  }

  /// The last block is not being written any more.
  private mutating func endTailWrite(_ index: Int) {
    if allocator.packedTail.writer == Int32(index) { allocator.packedTail.writer = -1 }
  }

  /// Points the L2 entries of packed clusters at their bytes, which are in the file.
  mutating func mapPacked(_ index: Int, _ page: Int, _ place: PagePlace) {
    endTailWrite(index)
    let geometry = layers[0].geometry
    let payload = requests.slots[index].packedPayload
    let allocation = requests.slots[index].allocation
    let first = firstPacked(index)
    let buffer = cache.pages[page].buffer
    var host = allocation.host
    for number in 0..<allocation.clusterCount {
      let byteCount = payload.byteCount(first + number)
      let entry = L2Entry(
        compressedAt: HostOffset(byteOffset: host), byteCount: byteCount, in: geometry)
      let at = place.entryInPage + number
      if geometry.hasSubclusters {
        freeHost(of: buffer.extendedEntry(at).descriptor)
        buffer.storeExtendedEntry(ExtendedL2Entry(entry, .none), at)
      } else {
        freeHost(of: L2Entry(rawValue: buffer.loadBigEndian64(at: at * 8)))
        buffer.storeBigEndian64(entry.rawValue, at: at * 8)
      }
      updateIndex(
        allocation.guestStart + UInt64(number) << UInt64(geometry.clusterBits), .compressed,
        host: 0)
      host += UInt64(byteCount)
    }
    cache.markDirty(page)
  }

  /// Gives back the places of packed clusters that were not mapped.
  mutating func abandonPacked(_ index: Int) {
    endTailWrite(index)
    let bits = UInt64(layers[0].geometry.clusterBits)
    let payload = requests.slots[index].packedPayload
    let first = firstPacked(index)
    var host = requests.slots[index].allocation.host
    for number in 0..<requests.slots[index].allocation.clusterCount {
      let end = host + UInt64(payload.byteCount(first + number))
      releases.addUnmapped(cluster: host >> bits, count: (end - 1) >> bits - host >> bits + 1)
      host = end
    }
    wakeReleases()
  }

  /// The clusters of a range are about to become free: nothing is packed into them any more.
  mutating func forgetPackedTail(in clusters: Range<UInt64>) {
    let cursor = allocator.packedTail.cursor
    if cursor != 0, clusters.contains(cursor >> UInt64(layers[0].geometry.clusterBits)) {
      allocator.packedTail.forget()
    }
  }
}
