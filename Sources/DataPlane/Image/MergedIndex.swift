// SPDX-License-Identifier: Apache-2.0
//
// One lookup for the whole chain: which layer owns a guest cluster, and where in its file. Without
// it a read costs one table lookup for each layer that does not have the data.
//
// The index is made of pages of 512 entries that live in the table cache beside the tables, under
// the same budget. An entry covers one unit, the smallest cluster of the chain. A page is filled
// when a request first needs it, layer by layer from the top, and then kept right by the changes
// to the active layer (the layers below do not change). A page that was evicted is filled anew.
// Spec: qcow2.rst, "Cluster mapping". No I/O here: a table that is missing is waited for.

import BlockTypes
import LinuxIO
import Qcow2

/// One entry: kind in bits 61–63, layer in bits 47–60, host offset in 512-byte sectors below.
struct IndexEntry: Equatable {
  enum Kind: UInt64 {
    /// No layer has been found to own the unit yet.
    case unknown = 0
    /// No layer owns it: it reads as zeroes.
    case absent
    case data
    case zero
    case zeroAllocated
    case compressed
    /// Parts of the unit belong to different layers, because one of them ends inside it or has
    /// subclusters; or the table is damaged. The layers have to be asked one by one.
    case mixed
  }

  static let layersMax = 1 << 14
  private static let hostMask: UInt64 = 1 << 47 - 1

  let rawValue: UInt64
  init(rawValue: UInt64) { self.rawValue = rawValue }

  init(_ kind: Kind, layer: Int, host: UInt64) {
    precondition(layer < IndexEntry.layersMax, "a layer is too deep for the index")
    rawValue = kind.rawValue << 61 | UInt64(layer) << 47 | host >> 9 & IndexEntry.hostMask
  }

  static var unknown: IndexEntry { IndexEntry(rawValue: 0) }

  var kind: Kind {
    guard let kind = Kind(rawValue: rawValue >> 61) else {
      preconditionFailure("an index entry has no kind")
    }
    return kind
  }

  var layer: Int { Int(rawValue >> 47 & UInt64(IndexEntry.layersMax - 1)) }
  var host: UInt64 { (rawValue & IndexEntry.hostMask) << 9 }
}

/// The shape of the index of a chain.
struct IndexGeometry {
  static let entriesPerPage = TableCache.pageByteCountMax / 8
  /// What stands for the index where the table cache asks for a layer.
  static let cacheLayer = Int(Int16.max)

  /// log2 of the bytes that one entry covers.
  let unitBits: Int

  var unitByteCount: UInt64 { 1 << UInt64(unitBits) }
  var pageCoverageByteCount: UInt64 { unitByteCount * UInt64(IndexGeometry.entriesPerPage) }

  func pageStart(of offset: UInt64) -> UInt64 { offset.alignedDown(to: pageCoverageByteCount) }
}

extension ImageStack {
  // MARK: Looking up

  /// Resolves the start of `cursor ..< end` by the index.
  mutating func resolveByIndex(_ cursor: UInt64, _ end: UInt64) -> Resolution {
    if cursor >= diskByteCount {
      return .zero(layer: 0, byteCount: end - cursor, isProvisioned: false)
    }
    let start = index.pageStart(of: cursor)
    guard let page = cache.find(IndexGeometry.cacheLayer, start),
      cache.pages[page].state == .ready
    else { return .needsIndex(pageStart: start) }
    let limit = min(end, diskByteCount, start + index.pageCoverageByteCount)
    let buffer = cache.pages[page].buffer
    let first = Int((cursor - start) >> UInt64(index.unitBits))
    let entry = IndexEntry(rawValue: buffer.loadWord(at: first * 8))
    let byteCount = min(runEnd(entry, first, start, buffer), limit) - cursor
    let inUnit = cursor & (index.unitByteCount - 1)
    switch entry.kind {
    case .unknown: preconditionFailure("a page of the index was used before it was filled")
    case .absent: return .zero(layer: nil, byteCount: byteCount, isProvisioned: false)
    case .data: return .data(layer: entry.layer, host: entry.host + inUnit, byteCount: byteCount)
    case .zero: return .zero(layer: entry.layer, byteCount: byteCount, isProvisioned: false)
    case .zeroAllocated:
      return .zero(layer: entry.layer, byteCount: byteCount, isProvisioned: true)
    case .compressed:
      // Whole clusters, which may be much larger than a unit, are unpacked at a time.
      return resolveByLayers(cursor, cursor + byteCount)
    case .mixed:
      let clusterEnd = (cursor + 1).alignedUp(to: layers[entry.layer].geometry.clusterByteCount)
      return resolveByLayers(cursor, min(cursor + byteCount, clusterEnd))
    }
  }

  /// The guest offset where the run that starts with entry number `first` of a page ends.
  private func runEnd(
    _ entry: IndexEntry, _ first: Int, _ start: UInt64, _ buffer: IOBuffer
  ) -> UInt64 {
    // Data goes on where the file does; everything else repeats the same entry.
    let step = entry.kind == .data ? index.unitByteCount >> 9 : 0
    var next = first + 1
    var expected = entry.rawValue + step
    while next < IndexGeometry.entriesPerPage, buffer.loadWord(at: next * 8) == expected {
      next += 1
      expected += step
    }
    return start + UInt64(next) << UInt64(index.unitBits)
  }

  // MARK: Filling

  /// Fills the page of the index that starts at `pageStart` as far as the tables in memory allow;
  /// `.more` when it is whole.
  mutating func fillIndex(_ slot: Int, _ pageStart: UInt64) -> Progress {
    guard let page = indexPage(pageStart) else {
      cacheWaiters.append(slot, &requests.slots)
      return .waits
    }
    let end = min(pageStart + index.pageCoverageByteCount, diskByteCount)
    var isWhole = false
    while !isWhole, Int(cache.pages[page].fillLayer) < layers.count {
      let layer = Int(cache.pages[page].fillLayer)
      if case .waits = fillFromLayer(slot, page, layer, end) { return .waits }
      cache.pages[page].fillLayer += 1
      cache.pages[page].fillCursor = pageStart
      isWhole = !hasUnknown(page, pageStart, end)
    }
    settleUnknown(page)
    cache.endFilling(page)
    return .more
  }

  /// Drops the pages that nobody may be filling any more after a request failed on its way. Who
  /// still does begins anew.
  mutating func dropUnfinishedIndexPages() {
    guard cache.fillingCount > 0 else { return }
    for page in 0..<cache.pages.count where cache.pages[page].state == .filling {
      cache.endFilling(page)
      cache.remove(page)
    }
  }

  /// The page being filled, entered if it is not there; nil while the cache has no room.
  private mutating func indexPage(_ pageStart: UInt64) -> Int? {
    if let page = cache.find(IndexGeometry.cacheLayer, pageStart) { return page }
    // Pages being filled cannot be evicted, so they may not take the room of the tables. Each of
    // them waits for a table, whose completion wakes those who wait here.
    guard cache.fillingCount < cache.fillingMax else { return nil }
    guard let page = insertPage(IndexGeometry.cacheLayer, pageStart, .index, 0) else { return nil }
    cache.pages[page].buffer.zero(0, TableCache.pageByteCountMax)
    cache.beginFilling(page)
    cache.pages[page].fillLayer = 0
    cache.pages[page].fillCursor = pageStart
    return page
  }

  /// Takes over what one layer says of the units that are still unknown.
  private mutating func fillFromLayer(
    _ slot: Int, _ page: Int, _ layer: Int, _ end: UInt64
  ) -> Progress {
    while cache.pages[page].fillCursor < end {
      let cursor = cache.pages[page].fillCursor
      switch resolveInLayer(cursor, end, layer) {
      case .absent(let byteCount): cache.pages[page].fillCursor = cursor + byteCount
      case .found(.needsTable(let layer, let pageOffset, let l1Index)):
        return waitForTable(slot, layer, pageOffset, .l2, l1Index)
      case .found(let resolution):
        let byteCount = setEntries(page, cursor, end, layer, resolution)
        cache.pages[page].fillCursor = cursor + byteCount
      }
    }
    return .more
  }

  /// Writes what a layer answered into the unknown entries it covers; returns the bytes covered.
  ///
  /// A unit of which the answer covers only a part becomes `mixed`.
  private mutating func setEntries(
    _ page: Int, _ cursor: UInt64, _ end: UInt64, _ layer: Int, _ resolution: Resolution
  ) -> UInt64 {
    let kind: IndexEntry.Kind
    var byteCount = end - cursor
    var host: UInt64 = 0
    switch resolution {
    case .data(_, let start, let count): (kind, host, byteCount) = (.data, start, count)
    case .zero(_, let count, let isProvisioned):
      (kind, byteCount) = (isProvisioned ? .zeroAllocated : .zero, count)
    case .compressed(_, _, let count): (kind, byteCount) = (.compressed, count)
    case .damaged: (kind, byteCount) = (.mixed, min(byteCount, index.unitByteCount))
    case .needsTable, .needsIndex: preconditionFailure("a lookup without an answer was entered")
    }
    let unit = index.unitByteCount
    var at = cursor
    let answerEnd = cursor + byteCount
    while at < answerEnd {
      let unitStart = at.alignedDown(to: unit)
      let partEnd = min(unitStart + unit, answerEnd)
      let isWhole = at == unitStart && (partEnd == unitStart + unit || partEnd == diskByteCount)
      let entry =
        isWhole
        ? IndexEntry(kind, layer: layer, host: kind == .data ? host + (at - cursor) : 0)
        : IndexEntry(.mixed, layer: layer, host: 0)
      setIfUnknown(page, unitStart, entry)
      at = partEnd
    }
    return byteCount
  }

  private mutating func setIfUnknown(_ page: Int, _ unitStart: UInt64, _ entry: IndexEntry) {
    let at = Int((unitStart - cache.pages[page].hostOffset) >> UInt64(index.unitBits)) * 8
    if cache.pages[page].buffer.loadWord(at: at) == IndexEntry.unknown.rawValue {
      cache.pages[page].buffer.storeWord(entry.rawValue, at: at)
    }
  }

  private func hasUnknown(_ page: Int, _ pageStart: UInt64, _ end: UInt64) -> Bool {
    let count = Int((end - pageStart + index.unitByteCount - 1) >> UInt64(index.unitBits))
    let buffer = cache.pages[page].buffer
    for number in 0..<count where buffer.loadWord(at: number * 8) == 0 { return true }
    return false
  }

  /// What no layer owned is absent.
  private mutating func settleUnknown(_ page: Int) {
    let absent = IndexEntry(.absent, layer: 0, host: 0).rawValue
    let buffer = cache.pages[page].buffer
    for number in 0..<IndexGeometry.entriesPerPage where buffer.loadWord(at: number * 8) == 0 {
      buffer.storeWord(absent, at: number * 8)
    }
  }

  // MARK: Keeping it right

  /// A cluster of the active layer changed its entry: the index follows, where it has the page.
  mutating func updateIndex(_ guestStart: UInt64, _ kind: IndexEntry.Kind, host: UInt64) {
    guard usesIndex else { return }
    let unit = index.unitByteCount
    let end = min(guestStart + layers[0].geometry.clusterByteCount, diskByteCount)
    var at = guestStart
    while at < end {
      let pageStart = index.pageStart(of: at)
      let pageEnd = min(pageStart + index.pageCoverageByteCount, end)
      if let page = cache.find(IndexGeometry.cacheLayer, pageStart) {
        var number = Int((at - pageStart) >> UInt64(index.unitBits))
        while at < pageEnd {
          let entry = IndexEntry(
            kind, layer: 0, host: kind == .data ? host + (at - guestStart) : 0)
          cache.pages[page].buffer.storeWord(entry.rawValue, at: number * 8)
          number += 1
          at += unit
        }
      }
      at = max(at, pageEnd)
    }
  }
}
