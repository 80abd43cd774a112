// SPDX-License-Identifier: Apache-2.0
//
// Which host clusters of the active layer are in use: the refcount table in memory, the search
// for free clusters, the size of the file. The counts themselves live in the table cache.
// Spec: qcow2.rst, "Host cluster management".

import BlockTypes
import LinuxIO
import Qcow2

/// The allocation state of the active layer; unused for a raw one.
struct Allocator: ~Copyable {
  /// Growth of the file at one time, in bytes.
  static let growthByteCountMin: UInt64 = 1 << 20
  static let growthByteCountMax: UInt64 = 64 << 20

  /// Offsets of the refcount blocks, 0 where there is none.
  var table: FixedArray<UInt64>
  var tableOffset: UInt64
  var tableClusterCount: Int
  /// Blocks of the table, one page each, that changed since they were last written.
  var dirtyTablePages: Set<Int> = []

  /// No cluster below this one is free, as far as this session knows.
  var searchCluster: UInt64 = 0
  /// Clusters from here on were never written since the file grew over them: they read as zeroes.
  var freshCluster: UInt64
  /// The file ends here.
  var fileByteCount: UInt64
  /// The file keeps at least this length when it is trimmed at the end of the session.
  var keptByteCount: UInt64
  let canGrow: Bool

  /// Where packed clusters go.
  var packedTail = PackedTail()

  var growthIsRunning = false
  var growthTarget: UInt64 = 0
  var growthNeeded: UInt64 = 0
  var growthWaiters = SlotList()

  init(_ plan: ExportPlan) throws {
    let storage = plan.layers[0].storage
    let words = plan.isReadOnly ? [] : try plan.layers[0].readRefcountTable()
    let fileByteCount = try storage.file.byteCount()
    canGrow = try storage.file.isGrowable()
    self.fileByteCount = fileByteCount
    keptByteCount = fileByteCount
    table = FixedArray(count: words.count) { words[$0] }
    if case .qcow2(let header) = plan.layers[0].format {
      tableOffset = header.refcountTableOffset.byteOffset
      tableClusterCount = header.refcountTableClusterCount
      freshCluster = header.geometry.clusterCount(for: fileByteCount)
    } else {
      tableOffset = 0
      tableClusterCount = 0
      freshCluster = 0
    }
  }

  /// Whether a table entry names a cluster of a file that can exist: L1 and L2 entries have 56 bits
  /// for it, refcount table entries all 64.
  static func isPlace(_ host: UInt64, _ geometry: ClusterGeometry) -> Bool {
    host.isAligned(to: geometry.clusterByteCount) && host < 1 << 56
  }

  mutating func markTableDirty(_ blockIndex: Int, pageByteCount: Int) {
    dirtyTablePages.insert(blockIndex * 8 / pageByteCount)
  }
}

extension ImageStack {
  enum Taken {
    /// `count` consecutive clusters from `host` on have a reference count of one now.
    case taken(host: UInt64, count: Int, isFresh: Bool)
    /// The request waits and will be woken.
    case waits
    case failed(BlockErrno)
  }

  /// Takes up to `wanted` consecutive free clusters for a request.
  mutating func takeClusters(_ index: Int, _ wanted: Int) -> Taken {
    let geometry = layers[0].geometry
    let entryBits = UInt64(geometry.clusterBits + 3 - geometry.refcountOrder)
    if overlapGuard.isTripped { return .failed(.io) }
    while true {
      let cluster = allocator.searchCluster
      let blockIndex = Int(cluster >> entryBits)
      if blockIndex >= allocator.table.count { return growRefcountTable(index) }
      let block = allocator.table[blockIndex] & ~511
      if block == 0 {
        if let blocked = makeRefcountBlock(index, blockIndex) { return blocked }
        continue
      }
      guard Allocator.isPlace(block, geometry) else {
        return .failed(declareDamage("entry \(blockIndex) of the refcount table is \(block)"))
      }
      let place = CountPlace(cluster: cluster, block: block, geometry: geometry)
      guard let page = cache.find(0, place.pageOffset), cache.pages[page].state == .ready else {
        _ = waitForTable(index, 0, place.pageOffset, .refcount, 0)
        return .waits
      }
      guard let first = firstFree(page, place, geometry) else {
        allocator.searchCluster = cluster + UInt64(place.countsPerPage - place.indexInPage)
        continue
      }
      allocator.searchCluster = cluster + UInt64(first - place.indexInPage)
      return takeRun(index, page, first, wanted, place, geometry)
    }
  }

  /// Index of the first count of zero in the page, from the place on.
  private func firstFree(
    _ page: Int, _ place: CountPlace, _ geometry: ClusterGeometry
  ) -> Int? {
    let order = geometry.refcountOrder
    return cache.pages[page].buffer.withSpan(0, geometry.pageByteCount) { span in
      for count in place.indexInPage..<place.countsPerPage
      where Refcount.load(span, at: count, order: order) == 0 {
        return count
      }
      return nil
    }
  }

  /// Whether the cluster holds the header, the L1 table, the refcount table or the block that
  /// claims it to be free: counts that say so are damaged, and believing them would destroy the
  /// image.
  func holdsTables(_ cluster: UInt64, _ geometry: ClusterGeometry) -> Bool {
    let start = cluster * geometry.clusterByteCount
    let range = ByteRange(start: start, end: start + geometry.clusterByteCount)
    let l1 = ByteRange(
      start: layers[0].l1TableOffset,
      end: layers[0].l1TableOffset + UInt64(layers[0].l1.count * 8))
    let table = ByteRange(
      start: allocator.tableOffset,
      end: allocator.tableOffset + UInt64(allocator.table.count * 8))
    let entryBits = UInt64(geometry.clusterBits + 3 - geometry.refcountOrder)
    // A file may be longer than what its blocks can count.
    let index = Int(cluster >> entryBits)
    let block = index < allocator.table.count ? allocator.table[index] & ~511 : 0
    return cluster == 0 || range.overlaps(l1) || range.overlaps(table) || block == start
  }

  /// Takes the free clusters from `first` on, as many as lie in the page, the file and the wish.
  private mutating func takeRun(
    _ index: Int, _ page: Int, _ first: Int, _ wanted: Int, _ place: CountPlace,
    _ geometry: ClusterGeometry
  ) -> Taken {
    let cluster = allocator.searchCluster
    let clusterByteCount = geometry.clusterByteCount
    if mayHoldTables(cluster, geometry), let holder = holder(of: cluster, geometry) {
      return .failed(
        declareDamage(
          "the cluster at host offset \(cluster * clusterByteCount) is counted as free and holds "
            + holder))
    }
    let isFresh = cluster >= allocator.freshCluster
    var limit = min(wanted, place.countsPerPage - first)
    if !isFresh { limit = min(limit, Int(clamping: allocator.freshCluster - cluster)) }
    let order = geometry.refcountOrder
    let buffer = cache.pages[page].buffer
    var count = 1
    buffer.withSpan(0, geometry.pageByteCount) { span in
      while count < limit, !mayHoldTables(cluster + UInt64(count), geometry),
        Refcount.load(span, at: first + count, order: order) == 0
      {
        count += 1
      }
    }
    let end = (cluster + UInt64(count)) * clusterByteCount
    if end > allocator.fileByteCount {
      let fitting = Int(clamping: allocator.fileByteCount / clusterByteCount) - Int(cluster)
      guard fitting > 0 else { return growFile(index, to: end) }
      count = min(count, fitting)
    }
    buffer.withMutableSpan(0, geometry.pageByteCount) { span in
      for number in first..<first + count {
        Refcount.store(1, to: &span, at: number, order: order)
      }
    }
    cache.markDirty(page)
    let next = cluster + UInt64(count)
    allocator.searchCluster = next
    allocator.freshCluster = max(allocator.freshCluster, next)
    allocator.keptByteCount = max(allocator.keptByteCount, next * clusterByteCount)
    return .taken(host: cluster * clusterByteCount, count: count, isFresh: isFresh)
  }

  /// Makes the refcount block of a stretch of the file that has none. Nothing in that stretch is
  /// in use, so the block takes its first cluster and counts itself: no other block is needed.
  /// Returns nil when it is done.
  private mutating func makeRefcountBlock(_ index: Int, _ blockIndex: Int) -> Taken? {
    let geometry = layers[0].geometry
    let cluster = UInt64(blockIndex) * geometry.refcountBlockEntryCount
    let host = cluster * geometry.clusterByteCount
    let end = host + geometry.clusterByteCount
    if end > allocator.fileByteCount { return growFile(index, to: end) }
    // A table where nothing should be in use: the refcount table is damaged.
    if mayHoldTables(cluster, geometry), let holder = holder(of: cluster, geometry) {
      return .failed(
        declareDamage("no refcount block counts the cluster at host offset \(host), \(holder)"))
    }
    guard cache.find(0, host) == nil else {
      return .failed(declareDamage("no refcount block counts the table at host offset \(host)"))
    }
    let isFresh = cluster >= allocator.freshCluster
    guard disks.hasRoom else {
      _ = waitForQueue(index)
      return .waits
    }
    guard let page = insertPage(0, host, .refcount, 0) else {
      cacheWaiters.append(index, &requests.slots)
      return .waits
    }
    if !isFresh {
      // Rare, once for each block and only where the file had slack at its end: done at once.
      let failure = disks.writeNow(
        file: layers[0].file, at: host,
        DiskQueue.Piece(zeroes, 0, Int(geometry.clusterByteCount)))
      guard failure == 0 else {
        cache.remove(page)
        return .failed(BlockErrno(systemErrno: failure))
      }
    }
    let pageByteCount = geometry.pageByteCount
    cache.pages[page].buffer.zero(0, pageByteCount)
    cache.pages[page].state = .ready
    cache.pages[page].buffer.withMutableSpan(0, pageByteCount) { span in
      Refcount.store(1, to: &span, at: 0, order: geometry.refcountOrder)
    }
    cache.markDirty(page)
    allocator.table[blockIndex] = host
    overlapGuard.addRefcountBlock(cluster)
    allocator.markTableDirty(blockIndex, pageByteCount: pageByteCount)
    allocator.freshCluster = max(allocator.freshCluster, cluster + 1)
    allocator.keptByteCount = max(allocator.keptByteCount, end)
    hasUnsyncedWrites = true
    return nil
  }

  // MARK: Growing the file

  /// Extends the file so that it reaches `needed`, ahead of need, on the blocking pool.
  private mutating func growFile(_ index: Int, to needed: UInt64) -> Taken {
    guard allocator.canGrow else { return .failed(.noSpace) }
    allocator.growthWaiters.append(index, &requests.slots)
    guard !allocator.growthIsRunning else { return .waits }
    let step = min(
      max(allocator.fileByteCount / 8, Allocator.growthByteCountMin),
      Allocator.growthByteCountMax)
    let ahead = (allocator.fileByteCount + step).alignedUp(to: layers[0].geometry.clusterByteCount)
    allocator.growthIsRunning = true
    startGrowth(to: max(needed, ahead), needed: needed)
    return .waits
  }

  private mutating func startGrowth(to target: UInt64, needed: UInt64) {
    allocator.growthTarget = target
    allocator.growthNeeded = needed
    let storage = storages[0]
    let old = allocator.fileByteCount
    counters.poolCallCount += 1
    pool.submit(tag: IOTag(.poolForGrowth, 0).rawValue) {
      BlockingPool.errno { () throws(SystemError) in try storage.file.grow(from: old, to: target) }
    }
  }

  mutating func growthDone(errno: Int32) {
    if errno == 0 {
      allocator.growthIsRunning = false
      allocator.fileByteCount = allocator.growthTarget
      disks.setByteCount(allocator.fileByteCount, ofFile: layers[0].file)
      ready.append(contentsOf: &allocator.growthWaiters, &requests.slots)
      return
    }
    if allocator.growthTarget > allocator.growthNeeded {
      // Not so much at once, then: just what the first request needs.
      startGrowth(to: allocator.growthNeeded, needed: allocator.growthNeeded)
      return
    }
    allocator.growthIsRunning = false
    while let index = allocator.growthWaiters.popFirst(&requests.slots) {
      _ = fail(index, BlockErrno(systemErrno: errno))
      wake(index)
    }
  }
}

/// Where the reference count of a cluster lies: its page and its index there.
struct CountPlace {
  let pageOffset: UInt64
  let indexInPage: Int
  let countsPerPage: Int

  init(cluster: UInt64, block: UInt64, geometry: ClusterGeometry) {
    let countsPerPage = (geometry.pageByteCount * 8) >> geometry.refcountOrder
    let index = Int(cluster & (geometry.refcountBlockEntryCount - 1))
    pageOffset = block + UInt64(index / countsPerPage * geometry.pageByteCount)
    indexInPage = index % countsPerPage
    self.countsPerPage = countsPerPage
  }
}
