// SPDX-License-Identifier: Apache-2.0
//
// Pages of L2 tables and refcount blocks of all layers, and of the merged index, under one budget.
// A page is 4 KiB of a table, or the whole table where clusters are smaller. No I/O here.

import BlockTypes
import LinuxIO

/// A cached piece of a table.
struct TablePage {
  enum State: UInt8 {
    case unused, loading, ready
    /// A page of the merged index that is not whole yet.
    case filling
  }

  enum Kind: UInt8 { case l2, refcount, index }

  var state: State = .unused
  var kind: Kind = .l2
  /// Changed since it was last written.
  var isDirty = false
  /// A copy of it is being written.
  var isBeingWritten = false
  /// Looked at since the clock hand passed.
  var isReferenced = false
  var layer: Int32 = 0
  /// The L1 entry whose table this page belongs to (L2 pages).
  var l1Index: Int32 = 0
  var nextInBucket: Int32 = -1
  /// How far a page of the index is filled: the layer being asked, and the guest offset reached.
  var fillLayer: Int32 = 0
  var fillCursor: UInt64 = 0
  /// The guard's generation at which no entry of the L2 page led to a table; 0: never.
  var soundGeneration: UInt64 = 0
  /// Where the page lies in its file; for the index, the guest offset that it starts with.
  var hostOffset: UInt64 = 0
  var buffer: IOBuffer = .empty
  var waiters = SlotList()

  var canBeEvicted: Bool { state == .ready && !isDirty && !isBeingWritten && waiters.isEmpty }
}

/// A hash table of pages with clock eviction. Dirty pages stay until a flush has written them.
struct TableCache: ~Copyable {
  static let pageByteCountMax = 4096
  /// Enough for every request to make progress one page at a time.
  static let pagesMin = 256

  // Both are zero bytes, and cost no memory, as far as they were never used.
  var pages: FixedArray<TablePage>
  /// The first page of each chain, plus one; 0 for none.
  private var buckets: FixedArray<Int32>
  /// Pages that have been used and hold their memory.
  private(set) var usedCount = 0
  private var hand = 0
  private(set) var dirtyCount = 0
  /// Pages of the index that are not whole, and how many of them there may be: the rest of the
  /// cache is for the tables that they are filled from.
  private(set) var fillingCount = 0
  var fillingMax: Int { pages.count / 4 }
  /// Pages marked dirty since the last cut; some may be clean again.
  private var dirtyPages: [Int32] = []

  init(byteCount: Int) {
    let pageCount = max(byteCount / TableCache.pageByteCountMax, TableCache.pagesMin)
    precondition(TablePage.State.unused.rawValue == 0, "a page of zero bytes would be in use")
    pages = FixedArray(zeroedCount: pageCount)
    let bucketCount = 1 << (Int.bitWidth - (pageCount - 1).leadingZeroBitCount)
    buckets = FixedArray(zeroedCount: bucketCount)
  }

  /// Dirty pages from which on a flush should start by itself.
  var isMostlyDirty: Bool { dirtyCount >= pages.count / 2 }

  private func bucket(_ layer: Int, _ hostOffset: UInt64) -> Int {
    // Table offsets are multiples of 512; a multiplicative hash spreads what is left.
    let key = (hostOffset >> 9) ^ (UInt64(layer) << 48)
    return Int(truncatingIfNeeded: (key &* 0x9e37_79b9_7f4a_7c15) >> 32) & (buckets.count - 1)
  }

  /// The page that starts at `hostOffset` of `layer`, loaded or loading; nil when there is none.
  /// Marks it as looked at, which lets it outlive those that are not.
  mutating func find(_ layer: Int, _ hostOffset: UInt64) -> Int? {
    var index = buckets[bucket(layer, hostOffset)] - 1
    while index >= 0 {
      if pages[Int(index)].hostOffset == hostOffset, pages[Int(index)].layer == layer {
        if !pages[Int(index)].isReferenced { pages[Int(index)].isReferenced = true }
        return Int(index)
      }
      index = pages[Int(index)].nextInBucket
    }
    return nil
  }

  /// Makes room for a page and enters it, in state `loading` and with its buffer kept; nil when
  /// every page is dirty or in use.
  mutating func insert(_ layer: Int, _ hostOffset: UInt64, _ kind: TablePage.Kind) -> Int? {
    guard let index = vacantIndex() else { return nil }
    let buffer = pages[index].buffer
    let home = bucket(layer, hostOffset)
    pages[index] = TablePage()
    pages[index].buffer = buffer
    pages[index].state = .loading
    pages[index].kind = kind
    pages[index].layer = Int32(layer)
    pages[index].hostOffset = hostOffset
    pages[index].nextInBucket = buckets[home] - 1
    buckets[home] = Int32(index + 1)
    return index
  }

  private mutating func vacantIndex() -> Int? {
    if usedCount < pages.count {
      // Pages that were removed are reused by the clock; these have never been used.
      usedCount += 1
      return usedCount - 1
    }
    // Two rounds: the first one takes away the marks of pages in use.
    for _ in 0..<2 * pages.count {
      let index = hand
      hand = hand + 1 == pages.count ? 0 : hand + 1
      if pages[index].state == .unused { return index }
      guard pages[index].canBeEvicted else { continue }
      if pages[index].isReferenced {
        pages[index].isReferenced = false
        continue
      }
      remove(index)
      return index
    }
    return nil
  }

  /// Takes a page that is neither dirty nor waited for out of the table.
  mutating func remove(_ index: Int) {
    precondition(!pages[index].isDirty, "a dirty page was dropped")
    let home = bucket(Int(pages[index].layer), pages[index].hostOffset)
    var link = buckets[home] - 1
    if link == Int32(index) {
      buckets[home] = pages[index].nextInBucket + 1
    } else {
      while pages[Int(link)].nextInBucket != Int32(index) { link = pages[Int(link)].nextInBucket }
      pages[Int(link)].nextInBucket = pages[index].nextInBucket
    }
    pages[index].state = .unused
  }

  mutating func beginFilling(_ index: Int) {
    precondition(pages[index].state == .loading, "a page in use is to be filled")
    pages[index].state = .filling
    fillingCount += 1
  }

  mutating func endFilling(_ index: Int) {
    precondition(pages[index].state == .filling, "a page that is not being filled was filled")
    pages[index].state = .ready
    fillingCount -= 1
  }

  mutating func markDirty(_ index: Int) {
    precondition(pages[index].state == .ready, "a page that is not loaded was changed")
    guard !pages[index].isDirty else { return }
    pages[index].isDirty = true
    dirtyCount += 1
    dirtyPages.append(Int32(index))
  }

  /// Returns the dirty pages, for a cut that cleans them all.
  mutating func takeDirtyPages() -> [Int32] {
    var taken: [Int32] = []
    swap(&taken, &dirtyPages)
    return taken
  }

  mutating func markClean(_ index: Int) {
    precondition(pages[index].isDirty, "a clean page was cleaned")
    pages[index].isDirty = false
    dirtyCount -= 1
  }
}
