// SPDX-License-Identifier: Apache-2.0
//
// Moving the refcount table to another place: to a larger one when the file outgrows it, and when
// clusters are wanted in one piece that is longer than what a refcount block counts. The new blocks
// lie before the new table, and what was wanted behind it. They are made durable, then the header
// is switched, then the old table is given back: a power cut at any point leaves one whole table in
// force, and leaks at worst. Spec: qcow2.rst, "Host cluster management".

import BlockTypes
import LinuxIO
import Qcow2

extension ImageStack {
  /// Makes the refcount table at least half as large again. The table of a 64 KiB-cluster image
  /// covers 16 TiB, and each move doubles what the next needs, so this blocks the loop: it is rare.
  mutating func growRefcountTable(_ index: Int) -> Taken {
    guard
      let growth = TableGrowth(
        oldEntryCount: allocator.table.count, firstBlock: allocator.table.count,
        geometry: layers[0].geometry)
    else { return .failed(.noSpace) }
    switch moveRefcountTable(index, growth) {
    case .taken:
      allocator.searchCluster = growth.roomCluster
      return takeClusters(index, 1)
    case .waits: return .waits
    case .failed(let error): return .failed(error)
    }
  }

  /// Takes `count` clusters in one piece behind all that is in use. Where a refcount block begins
  /// the stretch that it counts, no longer piece fits between two: here the blocks lie before it.
  mutating func takeLongRun(_ index: Int, _ count: Int) -> Taken {
    let geometry = layers[0].geometry
    let entryCount = geometry.refcountBlockEntryCount
    var firstBlock = Int((allocator.freshCluster + entryCount - 1) / entryCount)
    for block in firstBlock..<max(firstBlock, allocator.table.count)
    where allocator.table[block] != 0 {
      firstBlock = block + 1
    }
    guard
      let growth = TableGrowth(
        oldEntryCount: allocator.table.count, firstBlock: firstBlock, roomClusterCount: count,
        geometry: geometry)
    else { return .failed(.noSpace) }
    return moveRefcountTable(index, growth)
  }

  /// Moves the table, and takes the room that the plan has behind it.
  private mutating func moveRefcountTable(_ index: Int, _ growth: TableGrowth) -> Taken {
    if overlapGuard.isTripped { return .failed(.io) }
    if flush.isRunning {
      // A flush writes pages of the old table; wait until it has ended.
      flush.idleWaiters.append(index, &requests.slots)
      return .waits
    }
    // A file that grows is as long as it was, for the pool, until it is done.
    guard !allocator.growthIsRunning else {
      allocator.growthWaiters.append(index, &requests.slots)
      return .waits
    }
    guard disks.hasRoom else {
      _ = waitForQueue(index)
      return .waits
    }
    guard allocator.canGrow || growth.endByte <= allocator.fileByteCount else {
      return .failed(.noSpace)
    }
    let failure = moveTable(growth)
    if failure != .none { return .failed(failure) }
    return .taken(host: growth.roomByte, count: growth.roomClusterCount, isFresh: false)
  }

  /// Writes the new structure, which lies behind everything in use.
  private mutating func moveTable(_ growth: TableGrowth) -> BlockErrno {
    let geometry = layers[0].geometry
    let clusterByteCount = geometry.clusterByteCount
    let file = storages[0]
    // Pages written here are clean afterwards: whatever becomes of the move, the next flush must
    // not take that for durable.
    hasUnsyncedWrites = true
    if growth.endByte > allocator.fileByteCount {
      do throws(SystemError) {
        try file.file.grow(from: allocator.fileByteCount, to: growth.endByte)
      } catch {
        return BlockErrno(systemErrno: error.errno)
      }
      allocator.fileByteCount = growth.endByte
      disks.setByteCount(growth.endByte, ofFile: layers[0].file)
    }
    let oldCount = allocator.table.count
    var newTable = FixedArray(count: growth.entryCount) { _ in UInt64(0) }
    for entry in 0..<oldCount { newTable[entry] = allocator.table[entry] }
    for block in 0..<growth.blockCount {
      newTable[growth.firstBlock + block] = growth.startByte + UInt64(block) * clusterByteCount
    }
    guard let scratch = buffers.acquire(byteCount: Int(clusterByteCount)) else { return .noMemory }
    defer { buffers.release(scratch) }
    for block in 0..<growth.blockCount {
      fillBlock(scratch, block: block, usedClusterCount: growth.clusterCount)
      let failure = disks.writeNow(
        file: layers[0].file, at: newTable[growth.firstBlock + block],
        DiskQueue.Piece(scratch, 0, Int(clusterByteCount)))
      if failure != 0 { return BlockErrno(systemErrno: failure) }
    }
    let entriesPerCluster = Int(clusterByteCount) / 8
    for cluster in 0..<growth.tableClusterCount {
      for entry in 0..<entriesPerCluster {
        scratch.storeBigEndian64(newTable[cluster * entriesPerCluster + entry], at: entry * 8)
      }
      let failure = disks.writeNow(
        file: layers[0].file, at: growth.tableByte + UInt64(cluster) * clusterByteCount,
        DiskQueue.Piece(scratch, 0, Int(clusterByteCount)))
      if failure != 0 { return BlockErrno(systemErrno: failure) }
    }
    // Blocks that the old table did not name on disk yet are named by the new one, so their
    // content has to be durable too before the header is switched.
    let failure = writeDirtyRefcountPagesNow()
    if failure != .none { return failure }
    return switchTable(newTable, growth)
  }

  /// One new block: it counts the blocks, the table and the room that the move itself placed.
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
    _ newTable: consuming FixedArray<UInt64>, _ growth: TableGrowth
  ) -> BlockErrno {
    let bits = UInt64(layers[0].geometry.clusterBits)
    do throws(SystemError) {
      try storages[0].file.synchronize()
    } catch {
      lostWrites = true  // which of the pages above are durable is unknown now
      return BlockErrno(systemErrno: error.errno)
    }
    let failure = changeHeader {
      $0.refcountTableOffset = HostOffset(byteOffset: growth.tableByte)
      $0.refcountTableClusterCount = growth.tableClusterCount
    }
    if failure != .none { return failure }
    releases.addUnmapped(
      cluster: allocator.tableOffset >> bits,
      count: UInt64(allocator.tableClusterCount))
    wakeReleases()
    allocator.table = newTable
    for block in growth.firstBlock..<growth.firstBlock + growth.blockCount {
      overlapGuard.addRefcountBlock(allocator.table[block] >> bits)
    }
    allocator.tableOffset = growth.tableByte
    allocator.tableClusterCount = growth.tableClusterCount
    allocator.dirtyTablePages.removeAll()
    allocator.freshCluster = max(allocator.freshCluster, growth.endByte >> bits)
    allocator.keptByteCount = max(allocator.keptByteCount, growth.endByte)
    return .none
  }
}

/// Where a moved refcount table lies, and how large it is: the blocks that count the stretch from
/// its start on, the table, and room that was asked for.
struct TableGrowth {
  let tableClusterCount: Int
  /// The index of the first new block in the table.
  let firstBlock: Int
  let blockCount: Int
  let roomClusterCount: Int
  let entryCount: Int
  let byteCount: Int
  /// Host offsets, in bytes.
  let startByte: UInt64
  let tableByte: UInt64
  let roomByte: UInt64
  let endByte: UInt64
  /// The cluster behind the table.
  let roomCluster: UInt64

  /// At least half as large again, and large enough to hold the blocks that it needs itself; nil
  /// where no table can be so large, or no file so long.
  init?(
    oldEntryCount: Int, firstBlock: Int, roomClusterCount: Int = 0, geometry: ClusterGeometry
  ) {
    let perCluster = geometry.tableWordCount
    let perBlock = Int(geometry.refcountBlockEntryCount)
    let stretchByteCount = geometry.refcountBlockEntryCount * geometry.clusterByteCount
    guard UInt64(firstBlock) <= Header.fileByteCountMax / stretchByteCount else { return nil }
    var clusters = (oldEntryCount * 3 / 2 + perCluster) / perCluster
    var blocks = 1
    while true {
      blocks = 1
      while blocks * perBlock < blocks + clusters + roomClusterCount { blocks += 1 }
      if firstBlock + blocks <= clusters * perCluster { break }
      clusters += 1
    }
    let clusterByteCount = geometry.clusterByteCount
    let start = UInt64(firstBlock) * geometry.refcountBlockEntryCount
    tableClusterCount = clusters
    self.firstBlock = firstBlock
    blockCount = blocks
    self.roomClusterCount = roomClusterCount
    entryCount = clusters * perCluster
    byteCount = clusters * Int(clusterByteCount)
    roomCluster = start + UInt64(blocks + clusters)
    startByte = start * clusterByteCount
    tableByte = (start + UInt64(blocks)) * clusterByteCount
    roomByte = roomCluster * clusterByteCount
    endByte = roomByte + UInt64(roomClusterCount) * clusterByteCount
    guard byteCount <= Header.refcountTableByteCountMax, endByte <= Header.fileByteCountMax else {
      return nil
    }
  }

  /// All that the move places.
  var clusterCount: Int { blockCount + tableClusterCount + roomClusterCount }
}
