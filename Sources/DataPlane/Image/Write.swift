// SPDX-License-Identifier: Apache-2.0
//
// WRITE: unaligned edges are completed by reading, then each aligned byte finds its place; what
// has one is overwritten there, what has none is allocated (Write+Allocation.swift).
// Spec: proto.md, "NBD_CMD_WRITE"; qcow2.rst, "Cluster mapping".

import BlockTypes
import LinuxIO
import NBDProtocol
import Qcow2

extension ImageStack {
  mutating func startWrite(_ index: Int) {
    requests.slots[index].bufferStart = requests.slots[index].alignedRange(alignment).start
    requests.slots[index].stage = .claiming
    let start = requests.slots[index].offset
    let end = start + requests.slots[index].length
    prepareWrite(index, start, end, then: .awaitingWrites)
    requests.slots[index].afterScan = requests.slots[index].stage
    requests.slots[index].stage = .claiming
  }

  /// Sets a request that holds its claim to writing `start ..< end` of its buffer.
  mutating func prepareWrite(_ index: Int, _ start: UInt64, _ end: UInt64, then next: Stage) {
    let range = ByteRange(start: start, end: end).roundedOut(to: alignment)
    requests.slots[index].writeStart = start
    requests.slots[index].writeEnd = end
    requests.slots[index].placeCursor = range.start
    requests.slots[index].placeEnd = range.end
    requests.slots[index].afterWrite = next
    requests.slots[index].scan = Scan()
    if range.start < start {
      requests.slots[index].stage = .readingHeadEdge
    } else if end < range.end {
      requests.slots[index].stage = .readingTailEdge
    } else {
      requests.slots[index].stage = .placing
    }
  }

  // MARK: Edges

  /// Reads the aligned block at the head (or tail) of the write and puts the bytes that the client
  /// did not send beside those that it did.
  mutating func mergeEdge(_ index: Int) -> Progress {
    let isHead = requests.slots[index].stage == .readingHeadEdge
    let blockStart =
      isHead
      ? requests.slots[index].placeCursor : requests.slots[index].placeEnd - alignment
    if requests.slots[index].scan.end == 0 {
      if requests.slots[index].edges.isEmpty {
        guard let edges = buffers.acquire(byteCount: Int(alignment)) else {
          return fail(index, .noMemory)
        }
        requests.slots[index].edges = edges
      }
      beginScan(
        index, ByteRange(start: blockStart, end: blockStart + alignment),
        into: requests.slots[index].edges, stage: requests.slots[index].stage, then: .placing)
    }
    if case .waits = continueScan(index) { return .waits }
    if requests.slots[index].error != .none { return .more }
    copyEdge(index, isHead: isHead, blockStart: blockStart)
    requests.slots[index].scan = Scan()
    let hasTail = requests.slots[index].writeEnd < requests.slots[index].placeEnd
    requests.slots[index].stage = isHead && hasTail ? .readingTailEdge : .placing
    return .more
  }

  private mutating func copyEdge(_ index: Int, isHead: Bool, blockStart: UInt64) {
    let slot = requests.slots[index]
    let bufferStart = slot.bufferStart
    if isHead {
      slot.buffer.copy(
        Int(blockStart - bufferStart), from: slot.edges, 0, Int(slot.writeStart - blockStart))
    } else {
      let kept = slot.writeEnd - blockStart
      slot.buffer.copy(
        Int(slot.writeEnd - bufferStart), from: slot.edges, Int(kept), Int(alignment - kept))
    }
  }

  // MARK: Placing

  /// Where the next bytes of a write go.
  enum Place {
    /// `byteCount` bytes are overwritten at `host`; `isSettled` when that mapping is durable.
    case inPlace(host: UInt64, byteCount: UInt64, isSettled: Bool)
    /// This many clusters from the cursor's on need a place of their own.
    case unplaced(clusterCount: Int)
    /// The clusters own a place that reads as zeroes: preallocated.
    case preallocated(host: UInt64, clusterCount: Int)
    /// Subclusters need a place, of their own or in a cluster that is there.
    case unplacedSubclusters(SubclusterRun)
    case needsL2Table(l1Index: Int)
    case needsTable(pageOffset: UInt64, l1Index: Int)
    case damaged
  }

  mutating func place(_ index: Int) -> Progress {
    while requests.slots[index].placeCursor < requests.slots[index].placeEnd {
      let cursor = requests.slots[index].placeCursor
      guard disks.hasRoom else { return waitForQueue(index) }
      switch findPlace(cursor, requests.slots[index].placeEnd) {
      case .inPlace(let host, let byteCount, let isSettled):
        guard writeInPlace(index, host, byteCount, isSettled: isSettled) else {
          return fail(index, .noMemory)
        }
      case .unplaced(var clusterCount):
        if packsWrites {
          switch packNext(index, clusterCount) {
          case .moved(let progress): return progress
          case .plain(let count): clusterCount = count
          }
        }
        return beginAllocation(index, clusterCount, preallocatedAt: nil)
      case .preallocated(let host, let clusterCount):
        return beginAllocation(index, clusterCount, preallocatedAt: host)
      case .unplacedSubclusters(var run):
        if packsWrites, run.host == nil {
          switch packNext(index, clusterCount(of: run)) {
          case .moved(let progress): return progress
          case .plain(let count): shorten(&run, to: count)
          }
        }
        return beginAllocation(index, run)
      case .needsL2Table(let l1Index):
        requests.slots[index].tableIndex = l1Index
        requests.slots[index].afterTable = .placing
        requests.slots[index].stage = .makingTable
        return .more
      case .needsTable(let pageOffset, let l1Index):
        return waitForTable(index, 0, pageOffset, .l2, l1Index)
      case .damaged: return failDamaged(index, at: cursor)
      }
    }
    if packsWrites { endPacking(index) }
    requests.slots[index].stage = .awaitingWrites
    return .more
  }

  /// Queues a write to a place that is known; false when there is no memory for that.
  private mutating func writeInPlace(
    _ index: Int, _ host: UInt64, _ byteCount: UInt64, isSettled: Bool
  ) -> Bool {
    let cursor = requests.slots[index].placeCursor
    let isDurable = requests.slots[index].flags.contains(.fua)
    let piece = DiskQueue.Piece(
      requests.slots[index].buffer, Int(cursor - requests.slots[index].bufferStart),
      Int(byteCount))
    guard
      disks.queueWrite(
        file: layers[0].dataFile, at: host, from: [piece, .none, .none],
        isDurable: isDurable && isSettled, cipher: layers[0].cipher,
        tag: IOTag(.write, index).rawValue)
    else { return false }
    if isDurable && !isSettled { requests.slots[index].needsFlush = true }
    requests.slots[index].writeCount += 1
    requests.slots[index].placeCursor = cursor + byteCount
    return true
  }

  /// Finds the place of the first bytes of the aligned range `cursor ..< end` in the active layer.
  mutating func findPlace(_ cursor: UInt64, _ end: UInt64) -> Place {
    if layers[0].isRaw {
      return .inPlace(host: cursor, byteCount: end - cursor, isSettled: true)
    }
    let geometry = layers[0].geometry
    let offset = GuestOffset(byteOffset: cursor)
    let l1Index = geometry.l1Index(of: offset)
    let l1Entry = L1Entry(rawValue: layers[0].l1[l1Index])
    if l1Entry.isEmpty { return .needsL2Table(l1Index: l1Index) }
    guard l1Entry.isValid(in: geometry) else { return .damaged }
    let place = PagePlace(
      entryIndex: geometry.l2Index(of: offset), table: l1Entry.tableOffset.byteOffset,
      geometry: geometry)
    guard let page = cache.find(0, place.pageOffset), cache.pages[page].state == .ready else {
      return .needsTable(pageOffset: place.pageOffset, l1Index: l1Index)
    }
    var end = end
    if cache.pages[page].soundGeneration != overlapGuard.generation, !inspect(page) {
      if activeDamage(at: cursor) != nil { return .damaged }
      end = min(end, (cursor + 1).alignedUp(to: geometry.clusterByteCount))
    }
    let run =
      geometry.hasSubclusters
      ? placeSubclusters(cursor, end, page: page, place: place)
      : placeRun(cursor, end, page: page, place: place)
    // A table that a snapshot shares may not be changed: it gets a copy first.
    if !l1Entry.isCopied, run.changesMapping { return .needsL2Table(l1Index: l1Index) }
    return run
  }

  private func placeRun(
    _ cursor: UInt64, _ end: UInt64, page: Int, place: PagePlace
  ) -> Place {
    let geometry = layers[0].geometry
    let buffer = cache.pages[page].buffer
    let clusterByteCount = geometry.clusterByteCount
    let inCluster = cursor & (clusterByteCount - 1)
    let first = placeKind(buffer, place.entryInPage)
    let firstHost = L2Entry(rawValue: buffer.loadBigEndian64(at: place.entryInPage * 8))
      .hostOffset.byteOffset
    var count = 1
    var covered = clusterByteCount - inCluster
    while covered < end - cursor, place.entryInPage + count < place.entriesPerPage {
      let entry = L2Entry(
        rawValue: buffer.loadBigEndian64(at: (place.entryInPage + count) * 8))
      guard placeKind(buffer, place.entryInPage + count) == first else { break }
      if first != .unplaced,
        entry.hostOffset.byteOffset != firstHost + UInt64(count) * clusterByteCount
      {
        break
      }
      count += 1
      covered += clusterByteCount
    }
    if layers[0].hasDataFile, first == .inPlace || first == .preallocated,
      firstHost != cursor - inCluster
    {
      return .damaged
    }
    switch first {
    case .inPlace:
      return .inPlace(
        host: firstHost + inCluster, byteCount: min(covered, end - cursor),
        isSettled: isSettled(page))
    case .unplaced: return .unplaced(clusterCount: count)
    case .preallocated: return .preallocated(host: firstHost, clusterCount: count)
    case .damaged: return .damaged
    }
  }

  private func placeKind(_ buffer: IOBuffer, _ entryIndex: Int) -> PlaceKind {
    PlaceKind(
      L2Entry(rawValue: buffer.loadBigEndian64(at: entryIndex * 8)), layers[0].geometry,
      version: layers[0].version, hasDataFile: layers[0].hasDataFile)
  }

  /// Whether what the page says is in the file, and found there after a power cut.
  func isSettled(_ page: Int) -> Bool {
    !cache.pages[page].isDirty && !cache.pages[page].isBeingWritten
      && !flush.isUnreferenced(Int(cache.pages[page].l1Index))
  }

  // MARK: The end

  mutating func finishWrite(_ index: Int) -> Progress {
    if requests.slots[index].writeCount > 0 { return .waits }
    let next = requests.slots[index].afterWrite
    if next == .awaitingWrites {
      requests.slots[index].stage =
        requests.slots[index].needsFlush ? .awaitingFlush : .finished
    } else {
      requests.slots[index].stage = next
    }
    return .more
  }
}

extension ImageStack.Place {
  /// Whether the L2 table has to change before the bytes are reachable.
  var changesMapping: Bool {
    switch self {
    case .unplaced, .preallocated, .unplacedSubclusters: true
    case .inPlace, .needsL2Table, .needsTable, .damaged: false
    }
  }
}

/// What an L2 entry of the active layer means for a write.
private enum PlaceKind {
  case inPlace
  case unplaced
  case preallocated
  case damaged

  init(_ entry: L2Entry, _ geometry: ClusterGeometry, version: Int, hasDataFile: Bool) {
    switch entry.kind(in: geometry, version: version, hasDataFile: hasDataFile) {
    case .unallocated, .zeroPlain, .compressed: self = .unplaced
    // A cluster that is shared (by a snapshot) is replaced, not overwritten.
    case .normal: self = entry.isCopied ? .inPlace : .unplaced
    case .zeroAllocated: self = entry.isCopied ? .preallocated : .unplaced
    case .invalid: self = .damaged
    }
  }
}
