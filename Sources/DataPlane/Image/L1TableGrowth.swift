// SPDX-License-Identifier: Apache-2.0
//
// Moving the L1 table to a larger place, for a disk that grows. The new table is made durable, with
// the counts of its clusters, before the header names it, and the old one is given back afterwards:
// a power cut at any point leaves one whole table in force. Spec: qcow2.rst, "Header" (l1_size,
// l1_table_offset).

import BlockTypes
import LinuxIO
import Qcow2

extension ImageStack {
  /// Attempts to find clusters in one piece where such pieces were used before.
  private static var runsMax: Int { 64 }

  /// Takes clusters in one piece for the larger table.
  mutating func takeTable(_ index: Int) -> Progress {
    let geometry = layers[0].geometry
    let wanted = neededTableClusterCount
    if UInt64(wanted) < geometry.refcountBlockEntryCount {
      for _ in 0..<ImageStack.runsMax {
        switch takeClusters(index, wanted - resize.tableClusterCount) {
        case .waits: return .waits
        case .failed(let error): return fail(index, error)
        case .taken(let host, let count, _):
          let end =
            resize.tableHost + UInt64(resize.tableClusterCount) * geometry.clusterByteCount
          if resize.tableClusterCount > 0, host != end { abandonL1Table() }
          if resize.tableClusterCount == 0 { resize.tableHost = host }
          resize.tableClusterCount += count
        }
        if resize.tableClusterCount == wanted {
          resize.step = .securingTable
          return .more
        }
      }
    }
    abandonL1Table()
    resize.step = .takingLongTable
    return .more
  }

  /// The same behind all that is in use, where no holes are that are too short for the table, and
  /// no refcount blocks.
  mutating func takeLongTable(_ index: Int) -> Progress {
    switch takeLongRun(index, neededTableClusterCount) {
    case .waits: return .waits
    case .failed(let error): return fail(index, error)
    case .taken(let host, let count, _):
      resize.tableHost = host
      resize.tableClusterCount = count
      resize.step = .securingTable
      return .more
    }
  }

  private var neededTableClusterCount: Int {
    let entryCount = neededTableEntryCount(resize.newByteCount)
    return Int(layers[0].geometry.clusterCount(for: UInt64(entryCount * 8)))
  }

  /// Gives back what was taken for a table that is not to be.
  mutating func abandonL1Table() {
    guard resize.tableClusterCount > 0 else { return }
    releases.addUnmapped(
      cluster: resize.tableHost >> UInt64(layers[0].geometry.clusterBits),
      count: UInt64(resize.tableClusterCount))
    resize.tableClusterCount = 0
    wakeReleases()
  }

  /// Copies the table as it is in the file, names the copy in the header, and goes on with it. It
  /// blocks the loop, for tables of up to 32 MiB; it is rare.
  mutating func switchL1Table(_ index: Int) -> Progress {
    guard !flush.isRunning else {
      // A flush writes pages of the old table; wait until it has ended.
      flush.idleWaiters.append(index, &requests.slots)
      return .waits
    }
    guard disks.hasRoom else { return waitForQueue(index) }
    let failure = moveL1Table()
    if failure != .none { return fail(index, failure) }
    resize.step = .growingBitmaps
    return .more
  }

  private mutating func moveL1Table() -> BlockErrno {
    let clusterByteCount = layers[0].geometry.clusterByteCount
    let pageByteCount = UInt64(layers[0].geometry.pageByteCount)
    let oldOffset = layers[0].l1TableOffset
    let oldByteCount = UInt64(layers[0].l1.count * 8)
    let newByteCount = UInt64(resize.tableClusterCount) * clusterByteCount
    let entryCount = min(Int(newByteCount / 8), Header.l1TableByteCountMax / 8)
    let pieceByteCount = max(pageByteCount, 65_536)
    guard let scratch = buffers.acquire(byteCount: Int(pieceByteCount)) else { return .noMemory }
    defer { buffers.release(scratch) }
    // Entries whose tables are not durable yet are in memory only, and the next flush writes them.
    let failure = makeReadable(upTo: oldOffset + oldByteCount.alignedUp(to: pageByteCount))
    if failure != .none { return failure }
    hasUnsyncedWrites = true
    for start in stride(from: 0, to: newByteCount, by: UInt64.Stride(pieceByteCount)) {
      let known = oldByteCount > start ? min(oldByteCount - start, pieceByteCount) : 0
      if known > 0 {
        let failure = disks.readNow(
          file: layers[0].file, at: oldOffset + start,
          DiskQueue.Piece(scratch, 0, Int(known.alignedUp(to: pageByteCount))))
        if failure != 0 { return BlockErrno(systemErrno: failure) }
      }
      scratch.zero(Int(known), Int(pieceByteCount - known))
      let failure = disks.writeNow(
        file: layers[0].file, at: resize.tableHost + start,
        DiskQueue.Piece(scratch, 0, Int(min(newByteCount - start, pieceByteCount))))
      if failure != 0 { return BlockErrno(systemErrno: failure) }
    }
    do throws(SystemError) {
      try storages[0].file.synchronize()
    } catch {
      lostWrites = true
      return BlockErrno(systemErrno: error.errno)
    }
    return nameL1Table(entryCount)
  }

  private mutating func nameL1Table(_ entryCount: Int) -> BlockErrno {
    let newOffset = resize.tableHost
    let failure = changeHeader {
      $0.l1EntryCount = entryCount
      $0.l1TableOffset = HostOffset(byteOffset: newOffset)
    }
    if failure != .none {
      // The header may name either place: both stay taken.
      if lostWrites { resize.tableClusterCount = 0 }
      return failure
    }
    let oldCount = layers[0].l1.count
    var table = FixedArray(count: entryCount) { _ in UInt64(0) }
    for entry in 0..<oldCount { table[entry] = layers[0].l1[entry] }
    let bits = UInt64(layers[0].geometry.clusterBits)
    if oldCount > 0 {
      releases.addUnmapped(
        cluster: layers[0].l1TableOffset >> bits,
        count: layers[0].geometry.clusterCount(for: UInt64(oldCount * 8)))
    }
    layers[0].l1TableOffset = newOffset
    layers[0].l1 = table
    resize.tableClusterCount = 0
    wakeReleases()
    return .none
  }

  /// Lets the file end not before `end`: a new image may end in the middle of its L1 table.
  private mutating func makeReadable(upTo end: UInt64) -> BlockErrno {
    guard allocator.fileByteCount < end else { return .none }
    do throws(SystemError) {
      try storages[0].file.truncate(to: end)
    } catch {
      return BlockErrno(systemErrno: error.errno)
    }
    allocator.fileByteCount = end
    disks.setByteCount(end, ofFile: layers[0].file)
    return .none
  }
}
