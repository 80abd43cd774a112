// SPDX-License-Identifier: Apache-2.0
//
// WRITE_ZEROES and TRIM. Whole clusters (or subclusters: Zero+Subclusters.swift) change their L2
// entry; parts of them are written (or, for TRIM, left alone). A trimmed or zeroed cluster never
// shows the backing file again. Spec: proto.md, "NBD_CMD_WRITE_ZEROES", "NBD_CMD_TRIM"; qcow2.rst,
// "Standard Cluster Descriptor" (zero flag).

import BlockTypes
import LinuxIO
import NBDProtocol
import Qcow2

extension ImageStack {
  /// Largest run of zeroes that is written with one buffer.
  private static var zeroPieceByteCountMax: UInt64 { 1 << 20 }
  /// L2 entries that one request changes before others get a turn.
  private static var entriesPerTurnMax: Int { 4096 }
  /// What of a request is still done when the server stops: more of it is refused.
  private static var lastByteCountMax: UInt64 { 1 << 30 }
  /// Largest part of a raw file that one call on the blocking pool zeroes, so that others who need
  /// the pool have their turns.
  private static var spacePieceByteCountMax: UInt64 { 1 << 30 }

  mutating func startZero(_ index: Int) {
    requests.slots[index].stage = .claiming
    if layers[0].isRaw { return startRawZero(index) }
    let start = requests.slots[index].offset
    let end = start + requests.slots[index].length
    let clusterByteCount = layers[0].geometry.clusterByteCount
    // Space is taken for whole clusters only.
    let unit =
      requests.slots[index].flags.contains(.noHole)
      ? clusterByteCount : layers[0].geometry.subclusterByteCount
    // The last cluster of the disk is whole when all of it that exists is covered.
    let reach = end == diskByteCount ? end.alignedUp(to: clusterByteCount) : end
    var body = ByteRange(start: start, end: reach).roundedIn(to: unit)
    // Subclusters that lie wholly behind the disk are nobody's.
    let beginsBehind = body.start >= end
    if beginsBehind || requests.slots[index].command == .writeZeroes && mustWriteZeroes(index) {
      body = ByteRange(start: end, end: end)
    }
    requests.slots[index].zeroCursor = start
    requests.slots[index].bodyStart = body.start
    requests.slots[index].bodyEnd = body.end
    if requests.slots[index].command == .writeZeroes {
      if requests.slots[index].flags.contains(.fastZero), mustWriteZeroes(index) {
        requests.slots[index].error = .notSupported
      }
      if body.isEmpty {
        requests.slots[index].bodyStart = end
        requests.slots[index].bodyEnd = end
      }
      requests.slots[index].afterScan = .nextZeroPiece
    } else if body.isEmpty || !canForget {
      requests.slots[index].stage = .finished
    } else {
      requests.slots[index].zeroCursor = body.start
      requests.slots[index].afterScan = .zeroingClusters
    }
  }

  /// Whether an L2 entry can say that a cluster reads as zeroes: version 3 has a flag for it, and
  /// without a backing file an empty entry does.
  var canForget: Bool { layers[0].version >= 3 || layers.count == 1 }

  /// Whether no L2 entry says what is asked for: zeroes, and with NO_HOLE space for them too.
  private func mustWriteZeroes(_ index: Int) -> Bool {
    requests.slots[index].flags.contains(.noHole) ? layers[0].version < 3 : !canForget
  }

  // MARK: Pieces

  /// Picks the next part of a WRITE_ZEROES: written zeroes before and behind the body, changed
  /// entries inside it.
  mutating func nextZeroPiece(_ index: Int) -> Progress {
    let cursor = requests.slots[index].zeroCursor
    let bodyStart = requests.slots[index].bodyStart
    let bodyEnd = requests.slots[index].bodyEnd
    let end = requests.slots[index].offset + requests.slots[index].length
    if isStopping, requests.slots[index].unzeroedByteCount > ImageStack.lastByteCountMax {
      return fail(index, .shutdown)
    }
    if cursor >= end {
      requests.slots[index].stage =
        requests.slots[index].needsFlush ? .awaitingFlush : requests.slots[index].afterZero
      return .more
    }
    if cursor >= bodyStart, cursor < bodyEnd {
      requests.slots[index].stage = layers[0].isRaw ? .awaitingPool : .zeroingClusters
      return .more
    }
    return writeZeroPiece(index, cursor, limit: cursor < bodyStart ? bodyStart : end)
  }

  mutating func writeZeroPiece(
    _ index: Int, _ cursor: UInt64, limit: UInt64
  ) -> Progress {
    // Pieces end at aligned places, so that only the request's own ends are unaligned.
    let reach = (cursor + ImageStack.zeroPieceByteCountMax)
      .alignedDown(to: ImageStack.zeroPieceByteCountMax)
    let end = min(limit, reach)
    if !requests.slots[index].flags.contains(.noHole) {
      switch zeroRun(cursor, end) {
      case .zeroes(let byteCount):
        requests.slots[index].zeroCursor = cursor + byteCount
        // That they read as zeroes may be known to memory only.
        if requests.slots[index].flags.contains(.fua) { requests.slots[index].needsFlush = true }
        return .more
      case .other: break
      case .needsTable(let layer, let pageOffset, let l1Index):
        return waitForTable(index, layer, pageOffset, .l2, l1Index)
      case .needsIndex(let pageStart): return fillIndex(index, pageStart)
      case .damaged: return failDamaged(index, at: cursor)
      }
    }
    let aligned = ByteRange(start: cursor, end: end).roundedOut(to: alignment)
    if requests.slots[index].buffer.isEmpty {
      let byteCount = ImageStack.zeroPieceByteCountMax + 2 * max(alignment, 1)
      guard
        let buffer = buffers.acquire(
          byteCount: Int(min(byteCount, requests.slots[index].length + 2 * alignment)))
      else { return fail(index, .noMemory) }
      requests.slots[index].buffer = buffer
    }
    requests.slots[index].buffer.zero(0, Int(aligned.byteCount))
    requests.slots[index].bufferStart = aligned.start
    requests.slots[index].zeroCursor = end
    prepareWrite(index, cursor, end, then: .nextZeroPiece)
    return .more
  }

  private enum ZeroRun {
    case zeroes(byteCount: UInt64)
    case other
    case needsTable(layer: Int, pageOffset: UInt64, l1Index: Int)
    case needsIndex(pageStart: UInt64)
    case damaged
  }

  /// Whether the range starts with bytes that read as zeroes already.
  private mutating func zeroRun(_ cursor: UInt64, _ end: UInt64) -> ZeroRun {
    switch resolve(cursor, end) {
    case .zero(_, let byteCount, _): .zeroes(byteCount: byteCount)
    case .data, .compressed: .other
    case .needsTable(let layer, let pageOffset, let l1Index):
      .needsTable(layer: layer, pageOffset: pageOffset, l1Index: l1Index)
    case .needsIndex(let pageStart): .needsIndex(pageStart: pageStart)
    case .damaged: .damaged
    }
  }

  // MARK: Whole clusters

  /// Turns the clusters of the body into zero clusters (or empty entries where nothing lies below).
  mutating func zeroClusters(_ index: Int) -> Progress {
    let leavesNoHole =
      requests.slots[index].command == .writeZeroes
      && requests.slots[index].flags.contains(.noHole)
    var turn = 0
    while requests.slots[index].zeroCursor < requests.slots[index].bodyEnd {
      turn += 1
      if isStopping, requests.slots[index].unzeroedByteCount > ImageStack.lastByteCountMax {
        return fail(index, .shutdown)
      }
      if turn > ImageStack.entriesPerTurnMax { return takeBreath(index) }
      let progress = leavesNoHole ? provisionNext(index) : zeroNext(index)
      if case .waits = progress { return .waits }
      if requests.slots[index].stage != .zeroingClusters || requests.slots[index].error != .none {
        return .more
      }
    }
    if requests.slots[index].flags.contains(.fua) { requests.slots[index].needsFlush = true }
    if cache.isMostlyDirty { wantFlush() }
    let isTrim = requests.slots[index].command == .trim
    if isTrim {
      requests.slots[index].stage =
        requests.slots[index].needsFlush ? .awaitingFlush : .finished
    } else {
      requests.slots[index].stage = .nextZeroPiece
    }
    return .more
  }

  /// Gives others a turn in a request that may be as large as the disk. What it gave up so far is
  /// released meanwhile.
  ///
  /// Pages that are changed or being written cannot make room: a request that changed them all
  /// would keep everybody from the tables until they are in the file. So it waits for each flush,
  /// and asks for one when an eighth of the cache is changed.
  private mutating func takeBreath(_ index: Int) -> Progress {
    requests.renew(index)
    wakeReleases()
    if cache.dirtyCount >= cache.pages.count / 8 { wantFlush() }
    guard flush.isRunning || flush.isWanted else { return yield(index) }
    flush.idleWaiters.append(index, &requests.slots)
    return .waits
  }

  /// Deals with the next cluster, or with as many as need no change.
  private mutating func zeroNext(_ index: Int) -> Progress {
    let cursor = requests.slots[index].zeroCursor
    let bodyEnd = requests.slots[index].bodyEnd
    let geometry = layers[0].geometry
    let clusterByteCount = geometry.clusterByteCount
    let offset = GuestOffset(byteOffset: cursor)
    let l1Index = geometry.l1Index(of: offset)
    let l1Entry = L1Entry(rawValue: layers[0].l1[l1Index])
    let clusterStart = cursor.alignedDown(to: clusterByteCount)
    let cluster = ByteRange(start: clusterStart, end: clusterStart + clusterByteCount)
    if isBeingAllocated(cluster) {
      allocationWaiters.append(index, &requests.slots)
      return .waits
    }
    // Clusters that no layer has need no entry; a run of them is skipped in one step. Data is
    // looked at by the cluster: to find the end of its run for each of them would be quadratic.
    var resolution = resolve(cursor, min(cluster.end, bodyEnd, diskByteCount))
    if case .zero(let layer, _, let isProvisioned) = resolution, layer != 0 || !isProvisioned {
      resolution = resolve(cursor, min(bodyEnd, diskByteCount))
    }
    switch resolution {
    case .zero(let layer, let byteCount, let isProvisioned) where layer != 0 || !isProvisioned:
      let whole = byteCount.alignedDown(to: geometry.subclusterByteCount)
      requests.slots[index].zeroCursor =
        cursor + byteCount >= diskByteCount ? bodyEnd : cursor + max(whole, 0)
      if requests.slots[index].zeroCursor > cursor { return .more }
    case .needsTable(let layer, let pageOffset, let l1Index):
      return waitForTable(index, layer, pageOffset, .l2, l1Index)
    case .needsIndex(let pageStart): return fillIndex(index, pageStart)
    case .damaged: return failDamaged(index, at: cursor)
    case .zero, .data, .compressed: break
    }
    if l1Entry.isEmpty || !l1Entry.isCopied {
      requests.slots[index].tableIndex = l1Index
      requests.slots[index].afterTable = .zeroingClusters
      requests.slots[index].stage = .makingTable
      return .more
    }
    return forget(index, offset, l1Index, l1Entry)
  }

  /// Replaces one entry and gives up the cluster that it owned.
  private mutating func forget(
    _ index: Int, _ offset: GuestOffset, _ l1Index: Int, _ l1Entry: L1Entry
  ) -> Progress {
    let geometry = layers[0].geometry
    guard l1Entry.isValid(in: geometry) else { return fail(index, .io) }
    if layers[0].hasDataFile { return beginClearing(index) }
    let place = PagePlace(
      entryIndex: geometry.l2Index(of: offset), table: l1Entry.tableOffset.byteOffset,
      geometry: geometry)
    guard let page = cache.find(0, place.pageOffset), cache.pages[page].state == .ready else {
      return waitForTable(index, 0, place.pageOffset, .l2, l1Index)
    }
    if geometry.hasSubclusters { return forgetSubclusters(index, page, place) }
    let at = place.entryInPage * 8
    let buffer = cache.pages[page].buffer
    let old = L2Entry(rawValue: buffer.loadBigEndian64(at: at))
    let new: L2Entry = layers.count == 1 ? .unallocated : .zeroPlain
    if old != new {
      freeHost(of: old)
      buffer.storeBigEndian64(new.rawValue, at: at)
      cache.markDirty(page)
      updateIndex(offset.byteOffset, .zero, host: 0)
    }
    requests.slots[index].zeroCursor = offset.byteOffset + geometry.clusterByteCount
    return .more
  }

  // MARK: Raw files

  /// All of the request is for the pool, but for parts of blocks, which are written.
  private mutating func startRawZero(_ index: Int) {
    let start = requests.slots[index].offset
    let end = start + requests.slots[index].length
    requests.slots[index].zeroCursor = start
    requests.slots[index].bodyStart = start
    requests.slots[index].bodyEnd = end
    requests.slots[index].afterScan = .awaitingPool
    let block = storages[0].file.blockByteCount
    let whole = ByteRange(start: start, end: end).roundedIn(to: block)
    // A trim is rounded when it is done.
    guard requests.slots[index].command == .writeZeroes,
      whole != ByteRange(start: start, end: end)
    else { return }
    requests.slots[index].bodyStart = whole.isEmpty ? end : whole.start
    requests.slots[index].bodyEnd = whole.isEmpty ? end : whole.end
    requests.slots[index].afterScan = .nextZeroPiece
  }

  /// Zeroes or trims a raw file on the blocking pool.
  mutating func finishPoolWork(_ index: Int) -> Progress {
    if requests.slots[index].poolCount > 0 { return .waits }
    if !requests.slots[index].poolWasAsked {
      requests.slots[index].poolWasAsked = true
      askForSpaceWork(index)
      return .waits
    }
    requests.slots[index].poolWasAsked = false
    let errno = Int32(requests.slots[index].poolValue)
    hasUnsyncedWrites = true
    let isTrim = requests.slots[index].command == .trim
    if errno != 0, BlockErrno(systemErrno: errno) == .notSupported, !isTrim,
      !requests.slots[index].flags.contains(.fastZero)
    {
      // The filesystem has no way to zero a range: write the zeroes.
      let end = requests.slots[index].offset + requests.slots[index].length
      requests.slots[index].bodyStart = end
      requests.slots[index].bodyEnd = end
      requests.slots[index].flags.insert(.noHole)  // do not ask the layer what reads as zeroes
      requests.slots[index].needsFlush = requests.slots[index].flags.contains(.fua)
      requests.slots[index].stage = .nextZeroPiece
      return .more
    }
    // A trim is a hint: where it cannot be followed, nothing has changed.
    let error = BlockErrno(systemErrno: errno)
    if error != .none, !(isTrim && error == .notSupported) { return fail(index, error) }
    requests.slots[index].zeroCursor = spacePiece(index).end
    if requests.slots[index].zeroCursor < requests.slots[index].bodyEnd {
      if isStopping, requests.slots[index].unzeroedByteCount > ImageStack.lastByteCountMax {
        return fail(index, .shutdown)
      }
      return .more
    }
    if requests.slots[index].unzeroedByteCount > 0 {
      requests.slots[index].needsFlush = requests.slots[index].flags.contains(.fua)
      requests.slots[index].stage = .nextZeroPiece
      return .more
    }
    requests.slots[index].stage =
      requests.slots[index].flags.contains(.fua) ? .awaitingFlush : .finished
    return .more
  }

  /// The part of the request that is dealt with by the next call: pieces end at aligned places, so
  /// that only the request's own ends are unaligned.
  private mutating func spacePiece(_ index: Int) -> ByteRange {
    let cursor = requests.slots[index].zeroCursor
    let reach = (cursor + ImageStack.spacePieceByteCountMax)
      .alignedDown(to: ImageStack.spacePieceByteCountMax)
    return ByteRange(start: cursor, end: min(requests.slots[index].bodyEnd, reach))
  }

  private mutating func askForSpaceWork(_ index: Int) {
    let piece = spacePiece(index)
    let storage = storages[0]
    let isTrim = requests.slots[index].command == .trim
    let keepsSpace = !isTrim && requests.slots[index].flags.contains(.noHole)
    // A trim gives back whole blocks only; zeroing is exact to the byte.
    let range =
      isTrim ? piece.roundedIn(to: max(alignment, 4096)) : piece
    if let remote = storage.file.remote {
      let isFast = requests.slots[index].flags.contains(.fastZero)
      guard !range.isEmpty else { return submitToPool(index) { 0 } }
      return submitToRemote(
        index, remote,
        isTrim ? .trim(range) : .zero(range, keepsSpace: keepsSpace, isFast: isFast)
      ) { answer in
        if case .failure(let fault) = answer { Int64(fault.errno) } else { 0 }
      }
    }
    submitToPool(index) {
      BlockingPool.errno { () throws(SystemError) in
        if keepsSpace {
          try storage.file.zeroAndProvision(range)
        } else {
          try storage.file.punchHole(range)
        }
      }
    }
  }
}
