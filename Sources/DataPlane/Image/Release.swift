// SPDX-License-Identifier: Apache-2.0
//
// Giving host clusters back. A cluster that the guest gave up keeps its count and its bytes until
// (1) the table that forgot it is durable, and (2) every request that may have found it before has
// ended. Only then is its space punched out, and only after that is its count lowered, which makes
// it free for the next allocation. Spec: qcow2.rst, "Host cluster management".

import BlockTypes
import LinuxIO
import Qcow2

/// A run of consecutive clusters whose counts are to be lowered by one.
struct ReleasedRun {
  var cluster: UInt64
  var count: UInt64
  /// Requests up to this one may still use the clusters.
  var lastUser: UInt64
}

/// The runs on their way, in two steps, and the work on the first of them.
struct ReleaseQueue {
  /// The image's own slot, which waits for tables and the pool as a request does.
  static let slot = 0

  /// Forgotten in memory; the table that forgot them is not durable yet.
  var pending: [ReleasedRun] = []
  /// The same, taken along by the flush that runs now.
  var sealed: [ReleasedRun] = []
  /// Durably forgotten: to be released, from `firstReleasable` on, once their last user has ended.
  private(set) var releasable: [ReleasedRun] = []
  private var firstReleasable = 0
  /// Clusters of the first releasable run whose space is being punched out.
  var punchedCount: UInt64 = 0
  var isPunching = false
  var loadFailed = false

  var isEmpty: Bool { pending.isEmpty && sealed.isEmpty && next == nil }

  /// The run to be released next.
  var next: ReleasedRun? {
    firstReleasable < releasable.count ? releasable[firstReleasable] : nil
  }

  /// The sealed runs are durably forgotten now.
  mutating func unseal() {
    releasable.append(contentsOf: sealed)
    sealed.removeAll(keepingCapacity: true)
  }

  /// The first `count` clusters of the next run are done with.
  mutating func skip(_ count: UInt64) {
    releasable[firstReleasable].cluster += count
    releasable[firstReleasable].count -= count
    guard releasable[firstReleasable].count == 0 else { return }
    firstReleasable += 1
    if firstReleasable == releasable.count {
      releasable.removeAll(keepingCapacity: true)
      firstReleasable = 0
    }
  }

  mutating func add(cluster: UInt64, count: UInt64, lastUser: UInt64) {
    if let last = pending.last, last.cluster + last.count == cluster, last.lastUser == lastUser {
      pending[pending.count - 1].count += count
    } else {
      pending.append(ReleasedRun(cluster: cluster, count: count, lastUser: lastUser))
    }
  }

  /// Clusters that no durable table ever named: nothing has to become durable first.
  mutating func addUnmapped(cluster: UInt64, count: UInt64, lastUser: UInt64 = 0) {
    releasable.append(ReleasedRun(cluster: cluster, count: count, lastUser: lastUser))
  }
}

extension ImageStack {
  /// Gives up the host clusters of an L2 entry that was just replaced in memory.
  mutating func freeHost(of entry: L2Entry) {
    if layers[0].hasDataFile { return }
    let geometry = layers[0].geometry
    let bits = UInt64(geometry.clusterBits)
    switch entry.kind(in: geometry, version: layers[0].version) {
    case .unallocated, .zeroPlain, .invalid: return
    case .normal, .zeroAllocated:
      releases.add(
        cluster: entry.hostOffset.byteOffset >> bits, count: 1,
        lastUser: requests.currentSequence)
    case .compressed:
      // Each host cluster that the packed bytes touch counts this one compressed cluster.
      let packed = entry.compressedRange(in: geometry)
      let first = packed.start >> bits
      releases.add(
        cluster: first, count: ((packed.end - 1) >> bits) - first + 1,
        lastUser: requests.currentSequence)
    }
  }

  mutating func freeTable(_ entry: L1Entry) {
    releases.add(
      cluster: entry.tableOffset.byteOffset >> UInt64(layers[0].geometry.clusterBits), count: 1,
      lastUser: requests.currentSequence)
  }

  /// Starts releasing if there is something to release and the slot sleeps.
  mutating func wakeReleases() {
    guard releases.next != nil, !requests.slots[ReleaseQueue.slot].isInList,
      requests.slots[ReleaseQueue.slot].poolCount == 0
    else { return }
    wake(ReleaseQueue.slot)
  }

  /// Releases runs one after the other; the stage of the image's own slot.
  mutating func release(_ index: Int) -> Progress {
    if requests.slots[index].poolCount > 0 { return .waits }
    // Counts stay as they are while somebody else changes them.
    if standstill.isHolding { return .waits }
    while let run = releases.next {
      if overlapGuard.isTripped {
        // Nobody knows any more what is free: the clusters leak, which `check` repairs.
        releases.isPunching = false
        releases.punchedCount = 0
        releases.skip(run.count)
        continue
      }
      if let oldest = requests.oldestSequence(besides: index), oldest <= run.lastUser {
        return .waits  // `retire` wakes this again
      }
      if releases.loadFailed {
        // The counts cannot be read: the clusters leak, which `check` repairs.
        releases.loadFailed = false
        releases.isPunching = false
        releases.punchedCount = 0
        releases.skip(run.count)
        continue
      }
      if case .waits = releaseSome(index, run) { return .waits }
    }
    return .waits
  }

  /// Lowers the counts of the first clusters of `run` that lie in one page.
  private mutating func releaseSome(_ index: Int, _ run: ReleasedRun) -> Progress {
    let geometry = layers[0].geometry
    let entryBits = UInt64(geometry.clusterBits + 3 - geometry.refcountOrder)
    let blockIndex = Int(run.cluster >> entryBits)
    let block = blockIndex < allocator.table.count ? allocator.table[blockIndex] & ~511 : 0
    // The second is damage: a mapping led to the image's own tables.
    guard block != 0, Allocator.isPlace(block, geometry), !holdsTables(run.cluster, geometry) else {
      _ = declareDamage(
        "the cluster at host offset \(run.cluster * geometry.clusterByteCount) is to be freed, and "
          + "has no count or holds a table")
      releases.skip(1)
      return .more
    }
    let place = CountPlace(cluster: run.cluster, block: block, geometry: geometry)
    guard let page = cache.find(0, place.pageOffset), cache.pages[page].state == .ready else {
      return waitForTable(index, 0, place.pageOffset, .refcount, 0)
    }
    let reach = min(run.count, UInt64(place.countsPerPage - place.indexInPage))
    if !releases.isPunching, releases.punchedCount == 0 {
      let last = lastOwnedCount(page, place, run.cluster, Int(reach))
      if last > 0, startPunch(index, run.cluster, last) { return .waits }
      releases.punchedCount = max(last, 1)
    }
    releases.isPunching = false
    let count = min(releases.punchedCount, reach)
    lowerCounts(page, place, Int(count))
    releases.punchedCount = 0
    releases.skip(count)
    allocator.searchCluster = min(allocator.searchCluster, run.cluster)
    return .more
  }

  /// How many clusters from the place on have a count of exactly one, so that they become free.
  private func lastOwnedCount(
    _ page: Int, _ place: CountPlace, _ cluster: UInt64, _ limit: Int
  ) -> UInt64 {
    let geometry = layers[0].geometry
    return cache.pages[page].buffer.withSpan(0, geometry.pageByteCount) { span in
      var count = 0
      while count < limit, !holdsTables(cluster + UInt64(count), geometry),
        Refcount.load(span, at: place.indexInPage + count, order: geometry.refcountOrder) == 1
      {
        count += 1
      }
      return UInt64(count)
    }
  }

  /// Punches the clusters out of the file; false when the filesystem cannot.
  private mutating func startPunch(_ index: Int, _ cluster: UInt64, _ count: UInt64) -> Bool {
    let clusterByteCount = layers[0].geometry.clusterByteCount
    let range = ByteRange(
      start: cluster * clusterByteCount, end: (cluster + count) * clusterByteCount)
    let storage = storages[0]
    forgetPackedTail(in: cluster..<cluster + count)
    releases.isPunching = true
    releases.punchedCount = count
    submitToPool(index) {
      BlockingPool.errno { () throws(SystemError) in try storage.file.punchHole(range) }
    }
    return true
  }

  private mutating func lowerCounts(_ page: Int, _ place: CountPlace, _ count: Int) {
    let geometry = layers[0].geometry
    let order = geometry.refcountOrder
    var freeNumber: Int?
    cache.pages[page].buffer.withMutableSpan(0, geometry.pageByteCount) { span in
      for number in place.indexInPage..<place.indexInPage + count {
        let old = Refcount.load(span.bytes, at: number, order: order)
        // A count of zero here means the image was damaged before; it stays at zero.
        if old > 0 {
          Refcount.store(old - 1, to: &span, at: number, order: order)
        } else {
          freeNumber = number
        }
      }
    }
    cache.markDirty(page)
    if let freeNumber {
      _ = declareDamage(
        "a cluster that was in use has the count 0 (number \(freeNumber) at host offset "
          + "\(place.pageOffset))")
    }
  }
}
