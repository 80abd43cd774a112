// SPDX-License-Identifier: Apache-2.0
//
// READ, and the reading that writes need: a scan resolves a guest range segment by segment and
// queues the reads of all of them. Spec: proto.md, "NBD_CMD_READ"; qcow2.rst, "Cluster mapping".

import BlockTypes
import Compression
import LinuxIO
import NBDProtocol
import Qcow2

extension ImageStack {
  mutating func startRead(_ index: Int) {
    let range = requests.slots[index].alignedRange(alignment)
    requests.slots[index].bufferStart = range.start
    beginScan(
      index, range, into: requests.slots[index].buffer, stage: .scanning, then: .finished)
  }

  /// Sets a request to reading `range`, as the guest sees it, into `buffer`.
  mutating func beginScan(
    _ index: Int, _ range: ByteRange, into buffer: IOBuffer, stage: Stage, then next: Stage
  ) {
    requests.slots[index].scan = Scan(
      cursor: range.start, end: range.end, buffer: buffer, bufferStart: range.start)
    requests.slots[index].stage = stage
    requests.slots[index].afterScan = next
  }

  mutating func scanOn(_ index: Int) -> Progress {
    if case .waits = continueScan(index) { return .waits }
    if requests.slots[index].error == .none {
      requests.slots[index].stage = requests.slots[index].afterScan
    }
    return .more
  }

  /// Reads on; `.more` when the whole range is in the buffer (or the request has failed).
  mutating func continueScan(_ index: Int) -> Progress {
    if requests.slots[index].packed.step != .none {
      if case .waits = continuePacked(index) { return .waits }
      if requests.slots[index].error != .none { return .more }
    }
    while requests.slots[index].scan.cursor < requests.slots[index].scan.end {
      let scan = requests.slots[index].scan
      guard disks.hasRoom else { return waitForQueue(index) }
      switch resolve(scan.cursor, scan.end) {
      case .data(let layer, let host, let byteCount):
        disks.queueRead(
          file: layers[layer].dataFile, at: host,
          into: DiskQueue.Piece(
            scan.buffer, Int(scan.cursor - scan.bufferStart), Int(byteCount)),
          cipher: layers[layer].cipher,
          tag: IOTag(readFor: index, block: scan.block).rawValue)
        requests.slots[index].readCount += 1
        requests.slots[index].scan.cursor += byteCount
      case .zero(_, let byteCount, _):
        addZeroes(index, byteCount)
        requests.slots[index].scan.cursor += byteCount
      case .compressed(let layer, let entry, let byteCount):
        return beginPacked(index, layer, entry, byteCount)
      case .needsTable(let layer, let pageOffset, let l1Index):
        return waitForTable(index, layer, pageOffset, .l2, l1Index)
      case .needsIndex(let pageStart):
        if case .waits = fillIndex(index, pageStart) { return .waits }
      case .damaged: return failDamaged(index, at: scan.cursor)
      }
    }
    return requests.slots[index].readCount > 0 ? .waits : .more
  }

  /// Delivers zeroes: as a hole of the reply where there is room to remember it, else as bytes.
  private mutating func addZeroes(_ index: Int, _ byteCount: UInt64) {
    let scan = requests.slots[index].scan
    if requests.slots[index].stage == .scanning, requests.slots[index].wantsHoles {
      if rememberHole(index, scan.cursor, byteCount) { return }
    }
    scan.buffer.zero(Int(scan.cursor - scan.bufferStart), Int(byteCount))
  }

  private mutating func rememberHole(_ index: Int, _ start: UInt64, _ byteCount: UInt64) -> Bool {
    let count = requests.slots[index].holeCount
    if count > 0 {
      let last = requests.slots[index].holes[count - 1]
      if last.offset + last.byteCount == start {
        requests.slots[index].holes[count - 1].byteCount += byteCount
        return true
      }
    }
    guard count < RequestSlot.holesMax else { return false }
    requests.slots[index].holes[count] = HoleRun(offset: start, byteCount: byteCount)
    requests.slots[index].holeCount = count + 1
    return true
  }

  // MARK: Tables

  /// Waits for a page of a table, which is read if nobody reads it yet.
  mutating func waitForTable(
    _ index: Int, _ layer: Int, _ pageOffset: UInt64, _ kind: TablePage.Kind, _ l1Index: Int
  ) -> Progress {
    if let page = cache.find(layer, pageOffset) {
      precondition(cache.pages[page].state == .loading, "a table in memory was waited for")
      cache.pages[page].waiters.append(index, &requests.slots)
      return .waits
    }
    guard disks.hasRoom else { return waitForQueue(index) }
    guard let page = insertPage(layer, pageOffset, kind, l1Index) else {
      cacheWaiters.append(index, &requests.slots)
      return .waits
    }
    let byteCount = layers[layer].geometry.pageByteCount
    disks.queueRead(
      file: layers[layer].file, at: pageOffset,
      into: DiskQueue.Piece(cache.pages[page].buffer, 0, byteCount),
      tag: IOTag(.tableLoad, page).rawValue)
    cache.pages[page].waiters.append(index, &requests.slots)
    return .waits
  }

  /// Enters a page in the cache; nil when there is no room until a flush has ended.
  mutating func insertPage(
    _ layer: Int, _ pageOffset: UInt64, _ kind: TablePage.Kind, _ l1Index: Int
  ) -> Int? {
    guard let page = cache.insert(layer, pageOffset, kind) else {
      wantFlush()
      return nil
    }
    if cache.pages[page].buffer.isEmpty {
      guard let buffer = buffers.acquire(byteCount: TableCache.pageByteCountMax) else {
        preconditionFailure("there is no memory for the table cache")
      }
      cache.pages[page].buffer = buffer
    }
    cache.pages[page].l1Index = Int32(l1Index)
    return page
  }

  mutating func tableLoaded(_ page: Int, _ error: BlockErrno) {
    precondition(cache.pages[page].state == .loading, "a table was loaded that nobody asked for")
    var error = error
    if error == .none, let problem = misplacement(ofPage: page) { error = declareDamage(problem) }
    if error == .none {
      cache.pages[page].state = .ready
      ready.append(contentsOf: &cache.pages[page].waiters, &requests.slots)
      return
    }
    while let index = cache.pages[page].waiters.popFirst(&requests.slots) {
      if index == ReleaseQueue.slot {
        releases.loadFailed = true
      } else {
        _ = fail(index, .io)
      }
      wake(index)
    }
    cache.remove(page)
    dropUnfinishedIndexPages()
  }

  // MARK: Compressed clusters

  /// Reads the packed bytes of a cluster; the next 512-byte border and the alignment round it out.
  private mutating func beginPacked(
    _ index: Int, _ layer: Int, _ entry: L2Entry, _ byteCount: UInt64
  ) -> Progress {
    let geometry = layers[layer].geometry
    let packed = entry.compressedRange(in: geometry)
    guard canHold(packed, layer) else { return fail(index, .io) }
    let rounded = packed.roundedOut(to: max(alignment, 512))
    let clusterByteCount = Int(geometry.clusterByteCount)
    guard
      let buffer = buffers.acquire(byteCount: Int(rounded.byteCount) + clusterByteCount)
    else { return fail(index, .noMemory) }
    let scan = requests.slots[index].scan
    requests.slots[index].packed = PackedCluster(
      step: .reading, buffer: buffer, packedStart: Int(packed.start - rounded.start),
      packedByteCount: Int(packed.byteCount), plainStart: Int(rounded.byteCount),
      wantedStart: Int(scan.cursor & (geometry.clusterByteCount - 1)),
      wantedByteCount: Int(byteCount))
    requests.slots[index].packed.clusterByteCount = clusterByteCount
    requests.slots[index].packed.codec = layers[layer].codec
    disks.queueRead(
      file: layers[layer].file, at: rounded.start,
      into: DiskQueue.Piece(buffer, 0, Int(rounded.byteCount)),
      tag: IOTag(readFor: index, block: scan.block).rawValue)
    requests.slots[index].readCount += 1
    return .waits
  }

  /// Whether packed bytes can be there: behind the header, and in the file but for what is left of
  /// its last cluster. Writers end a file with the last packed byte, and entries count sectors.
  private func canHold(_ packed: ByteRange, _ layer: Int) -> Bool {
    let clusterByteCount = layers[layer].geometry.clusterByteCount
    let fileByteCount = disks.byteCount(ofFile: layers[layer].file)
    return packed.start >= clusterByteCount && packed.start < fileByteCount
      && packed.end <= fileByteCount.alignedUp(to: clusterByteCount)
  }

  /// Unpacks what was read and copies the wanted part; `.more` when the scan can go on.
  private mutating func continuePacked(_ index: Int) -> Progress {
    if requests.slots[index].readCount > 0 || requests.slots[index].poolCount > 0 { return .waits }
    let packed = requests.slots[index].packed
    switch packed.step {
    case .none: return .more
    case .reading:
      requests.slots[index].packed.step = .unpacking
      submitToPool(index) {
        packed.buffer.withSpan(packed.packedStart, packed.packedByteCount) { source in
          packed.buffer.withMutableSpan(packed.plainStart, packed.clusterByteCount) { target in
            Int64(packed.codec.unpack(source, into: &target).rawValue)
          }
        }
      }
      return .waits
    case .unpacking:
      let value = UInt8(truncatingIfNeeded: requests.slots[index].poolValue)
      if let error = BlockErrno(rawValue: value), error != .none { return fail(index, error) }
      let scan = requests.slots[index].scan
      scan.buffer.copy(
        Int(scan.cursor - scan.bufferStart), from: packed.buffer,
        packed.plainStart + packed.wantedStart, packed.wantedByteCount)
      buffers.release(packed.buffer)
      requests.slots[index].packed = PackedCluster()
      requests.slots[index].scan.cursor += UInt64(packed.wantedByteCount)
      return .more
    }
  }
}
