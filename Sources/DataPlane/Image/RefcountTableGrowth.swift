// SPDX-License-Identifier: Apache-2.0
//
// Moving the refcount table to a larger place when the file outgrows it. The new blocks and the
// new table are made durable, then the header is switched, then the old table is given back: a
// power cut at any point leaves one whole table in force. Spec: qcow2.rst, "Host cluster
// management".

import BlockTypes
import LinuxIO
import Qcow2

extension ImageStack {
  /// Makes the refcount table at least half as large again. The table of a 64 KiB-cluster image
  /// covers 16 TiB, and each move doubles what the next needs, so this blocks the loop: it is rare.
  mutating func growRefcountTable(_ index: Int) -> Taken {
    if flush.isRunning {
      // A flush writes pages of the old table; wait until it has ended.
      flush.idleWaiters.append(index, &requests.slots)
      return .waits
    }
    guard disks.hasRoom else {
      _ = waitForQueue(index)
      return .waits
    }
    let geometry = layers[0].geometry
    let plan = TableGrowth(
      oldEntryCount: allocator.table.count, geometry: geometry)
    guard plan.byteCount <= Header.refcountTableByteCountMax else { return .failed(.noSpace) }
    let start = UInt64(allocator.table.count) * geometry.refcountBlockEntryCount
    let startByte = start * geometry.clusterByteCount
    let end =
      startByte + UInt64(plan.blockCount + plan.tableClusterCount)
      * geometry.clusterByteCount
    guard allocator.canGrow else { return .failed(.noSpace) }
    let failure = moveTable(plan, startByte: startByte, end: end)
    return failure == .none ? takeClusters(index, 1) : .failed(failure)
  }

  /// Writes the new structure at `startByte`, which lies behind everything in use.
  private mutating func moveTable(
    _ growth: TableGrowth, startByte: UInt64, end: UInt64
  ) -> BlockErrno {
    let geometry = layers[0].geometry
    let clusterByteCount = geometry.clusterByteCount
    let file = storages[0]
    // Pages written here are clean afterwards: whatever becomes of the move, the next flush must
    // not take that for durable.
    hasUnsyncedWrites = true
    if end > allocator.fileByteCount {
      do throws(SystemError) {
        try file.file.grow(from: allocator.fileByteCount, to: end)
      } catch {
        return BlockErrno(systemErrno: error.errno)
      }
      allocator.fileByteCount = end
      disks.setByteCount(end, ofFile: layers[0].file)
    }
    let oldCount = allocator.table.count
    var newTable = FixedArray(count: growth.entryCount) { _ in UInt64(0) }
    for entry in 0..<oldCount { newTable[entry] = allocator.table[entry] }
    for block in 0..<growth.blockCount {
      newTable[oldCount + block] = startByte + UInt64(block) * clusterByteCount
    }
    guard let scratch = buffers.acquire(byteCount: Int(clusterByteCount)) else { return .noMemory }
    defer { buffers.release(scratch) }
    let used = growth.blockCount + growth.tableClusterCount
    for block in 0..<growth.blockCount {
      fillBlock(scratch, block: block, usedClusterCount: used)
      let failure = disks.writeNow(
        file: layers[0].file, at: newTable[oldCount + block],
        DiskQueue.Piece(scratch, 0, Int(clusterByteCount)))
      if failure != 0 { return BlockErrno(systemErrno: failure) }
    }
    let tableStart = startByte + UInt64(growth.blockCount) * clusterByteCount
    let entriesPerCluster = Int(clusterByteCount) / 8
    for cluster in 0..<growth.tableClusterCount {
      for entry in 0..<entriesPerCluster {
        scratch.storeBigEndian64(newTable[cluster * entriesPerCluster + entry], at: entry * 8)
      }
      let failure = disks.writeNow(
        file: layers[0].file, at: tableStart + UInt64(cluster) * clusterByteCount,
        DiskQueue.Piece(scratch, 0, Int(clusterByteCount)))
      if failure != 0 { return BlockErrno(systemErrno: failure) }
    }
    // Blocks that the old table did not name on disk yet are named by the new one, so their
    // content has to be durable too before the header is switched.
    let failure = writeDirtyRefcountPagesNow()
    if failure != .none { return failure }
    return switchTable(newTable, growth, tableStart: tableStart, end: end)
  }

  /// One new block: it counts the blocks and the table that the move itself placed.
  private func fillBlock(_ scratch: IOBuffer, block: Int, usedClusterCount: Int) {
    let geometry = layers[0].geometry
    let entryCount = Int(geometry.refcountBlockEntryCount)
    scratch.zero(0, Int(geometry.clusterByteCount))
    let used = min(max(usedClusterCount - block * entryCount, 0), entryCount)
    scratch.withMutableSpan(0, Int(geometry.clusterByteCount)) { span in
      for entry in 0..<used {
        Refcount.store(1, to: &span, at: entry, order: geometry.refcountOrder)
      }
    }
  }

  private mutating func writeDirtyRefcountPagesNow() -> BlockErrno {
    let pageByteCount = layers[0].geometry.pageByteCount
    for page in 0..<cache.pages.count
    where cache.pages[page].state == .ready && cache.pages[page].kind == .refcount
      && cache.pages[page].isDirty
    {
      let failure = disks.writeNow(
        file: layers[0].file, at: cache.pages[page].hostOffset,
        DiskQueue.Piece(cache.pages[page].buffer, 0, pageByteCount))
      if failure != 0 { return BlockErrno(systemErrno: failure) }
      cache.markClean(page)
    }
    return .none
  }

  private mutating func switchTable(
    _ newTable: consuming FixedArray<UInt64>, _ growth: TableGrowth, tableStart: UInt64,
    end: UInt64
  ) -> BlockErrno {
    let geometry = layers[0].geometry
    do throws(SystemError) {
      try storages[0].file.synchronize()
    } catch {
      lostWrites = true  // which of the pages above are durable is unknown now
      return BlockErrno(systemErrno: error.errno)
    }
    let failure = changeHeader {
      $0.refcountTableOffset = HostOffset(byteOffset: tableStart)
      $0.refcountTableClusterCount = growth.tableClusterCount
    }
    if failure != .none { return failure }
    releases.addUnmapped(
      cluster: allocator.tableOffset >> UInt64(geometry.clusterBits),
      count: UInt64(allocator.tableClusterCount))
    wakeReleases()
    let oldCount = allocator.table.count
    allocator.table = newTable
    for block in 0..<growth.blockCount {
      overlapGuard.addRefcountBlock(
        allocator.table[oldCount + block] >> UInt64(geometry.clusterBits))
    }
    allocator.tableOffset = tableStart
    allocator.tableClusterCount = growth.tableClusterCount
    allocator.dirtyTablePages.removeAll()
    let used = UInt64(growth.blockCount + growth.tableClusterCount)
    let next = UInt64(oldCount) * geometry.refcountBlockEntryCount + used
    allocator.searchCluster = next
    allocator.freshCluster = max(allocator.freshCluster, next)
    allocator.keptByteCount = max(allocator.keptByteCount, end)
    return .none
  }
}

/// The size of a larger refcount table and of the blocks that count it.
struct TableGrowth {
  let tableClusterCount: Int
  let blockCount: Int
  let entryCount: Int
  let byteCount: Int

  /// At least half as large again, and large enough to hold the blocks that it needs itself.
  init(oldEntryCount: Int, geometry: ClusterGeometry) {
    let perCluster = geometry.tableWordCount
    let perBlock = Int(geometry.refcountBlockEntryCount)
    var clusters = (oldEntryCount * 3 / 2 + perCluster) / perCluster
    var blocks = 1
    while true {
      blocks = 1
      while blocks * perBlock < blocks + clusters { blocks += 1 }
      if oldEntryCount + blocks <= clusters * perCluster { break }
      clusters += 1
    }
    tableClusterCount = clusters
    blockCount = blocks
    entryCount = clusters * perCluster
    byteCount = clusters * Int(geometry.clusterByteCount)
  }
}
