// SPDX-License-Identifier: Apache-2.0
//
// The cache of table pages: finding, clock eviction, and what must never be evicted.

import LinuxIO
import Testing

@testable import DataPlane

/// A cache of the smallest size, filled with `count` pages at offsets 0, 4096, ….
private func filledCache(_ count: Int, state: TablePage.State = .ready) -> TableCache {
  var cache = TableCache(byteCount: 0)
  for number in 0..<count {
    guard let page = cache.insert(0, UInt64(number) * 4_096, .l2) else { continue }
    cache.pages[page].state = state
  }
  return cache
}

private let pageCount = TableCache.pagesMin

@Suite struct `The table cache` {
  @Test func `has at least 256 pages whatever its budget`() {
    let small = TableCache(byteCount: 1)
    let large = TableCache(byteCount: 8 << 20)
    let counts = (small.pages.count, large.pages.count)
    #expect(counts == (256, 2_048))
  }

  @Test func `finds each page that was entered, and no other`() {
    var cache = filledCache(pageCount)
    for number in 0..<pageCount {
      let offset = UInt64(number) * 4_096
      let found = cache.find(0, offset)
      #expect(found.map { cache.pages[$0].hostOffset } == offset)
    }
    let others = [cache.find(0, 512), cache.find(0, UInt64(pageCount) * 4_096), cache.find(1, 0)]
    #expect(others == [nil, nil, nil])
  }

  @Test func `tells layers apart at the same offset`() {
    var cache = TableCache(byteCount: 0)
    let first = cache.insert(0, 65_536, .l2)
    let second = cache.insert(1, 65_536, .l2)
    #expect(first != nil && second != nil && first != second)
    let found = [cache.find(0, 65_536), cache.find(1, 65_536)]
    #expect(found == [first, second])
  }

  @Test func `keeps the neighbours of a page in its bucket when that is removed`() throws {
    // 256 pages in 256 buckets at offsets that are multiples of one power of two: many collide.
    var cache = TableCache(byteCount: 0)
    var places: [UInt64: Int] = [:]
    for number in 0..<UInt64(pageCount) {
      let page = cache.insert(0, number << 41, .l2)
      let index: Int = try #require(page)
      places[number << 41] = index
    }
    for (offset, page) in places.sorted(by: { $0.key < $1.key }).prefix(128) {
      cache.remove(page)
      places[offset] = nil
      let gone = cache.find(0, offset)
      #expect(gone == nil)
    }
    for (offset, page) in places {
      let found = cache.find(0, offset)
      #expect(found == page)
    }
  }

  @Test func `enters a page as loading, clean and without a mark of the page before it`() throws {
    var cache = filledCache(pageCount)
    cache.pages[0].l1Index = 77
    for index in 0..<pageCount { cache.pages[index].isReferenced = false }
    let inserted = cache.insert(2, 1 << 30, .refcount)
    let page = cache.pages[try #require(inserted)]
    #expect(page.state == .loading)
    #expect(page.kind == .refcount)
    #expect(!page.isDirty && !page.isBeingWritten && !page.isReferenced)
    #expect(page.l1Index == 0)
    #expect(page.layer == 2)
  }

  @Test func `gives a page that was looked at a second chance`() {
    var cache = filledCache(pageCount)
    for index in 0..<pageCount { cache.pages[index].isReferenced = index < 3 }
    _ = cache.insert(0, 1 << 40, .l2)
    let kept = (0..<3).map { cache.find(0, UInt64($0) * 4_096) != nil }
    let evicted = cache.find(0, 3 * 4_096)
    #expect(kept == [true, true, true])
    #expect(evicted == nil)
  }

  @Test func `keeps a page that is looked at again and again`() {
    var cache = filledCache(pageCount)
    for number in 0..<10 * pageCount {
      let hot = cache.find(0, 0)
      #expect(hot != nil, "after \(number) others")
      if hot == nil { return }
      if let page = cache.insert(1, UInt64(number) * 4_096, .l2) {
        cache.pages[page].state = .ready
      }
    }
  }

  @Test func `forgets an evicted page`() {
    var cache = filledCache(pageCount)
    for number in 0..<pageCount { _ = cache.insert(1, UInt64(number) * 4_096, .l2) }
    // All of layer 0 gave way; the new ones are loading and stay.
    let old = (0..<pageCount).filter { cache.find(0, UInt64($0) * 4_096) != nil }
    let new = (0..<pageCount).filter { cache.find(1, UInt64($0) * 4_096) != nil }
    #expect(old.isEmpty)
    #expect(new.count == pageCount)
  }

  @Test func `evicts the one clean page among dirty ones`() {
    var cache = filledCache(pageCount)
    for index in 0..<pageCount where index != 200 { cache.markDirty(index) }
    #expect(cache.insert(0, 1 << 40, .l2) == 200)
    let dirty = cache.dirtyCount
    #expect(dirty == pageCount - 1)
  }

  @Test func `has no room when every page is dirty`() {
    var cache = filledCache(pageCount)
    for index in 0..<pageCount { cache.markDirty(index) }
    #expect(cache.insert(0, 1 << 40, .l2) == nil)
    let kept = (0..<pageCount).allSatisfy { cache.find(0, UInt64($0) * 4_096) == $0 }
    #expect(kept)
  }

  @Test func `has no room when every page is loading`() {
    var cache = filledCache(pageCount, state: .loading)
    #expect(cache.insert(0, 1 << 40, .l2) == nil)
  }

  @Test func `has no room when every page is being written`() {
    var cache = filledCache(pageCount)
    for index in 0..<pageCount { cache.pages[index].isBeingWritten = true }
    #expect(cache.insert(0, 1 << 40, .l2) == nil)
  }

  @Test func `does not evict a page that somebody waits for`() {
    var cache = filledCache(pageCount)
    var slots = FixedArray(count: pageCount) { _ in RequestSlot() }
    for index in 0..<pageCount { cache.pages[index].waiters.append(index, &slots) }
    #expect(cache.insert(0, 1 << 40, .l2) == nil)
    _ = cache.pages[9].waiters.popFirst(&slots)
    #expect(cache.insert(0, 1 << 40, .l2) == 9)
  }

  @Test func `uses a removed page again`() {
    var cache = filledCache(pageCount)
    for index in 0..<pageCount where index != 17 { cache.markDirty(index) }
    cache.remove(17)
    #expect(cache.insert(0, 1 << 40, .l2) == 17)
  }

  @Test func `hands over each dirty page once for a cut`() {
    var cache = filledCache(4)
    cache.markDirty(2)
    cache.markDirty(0)
    cache.markDirty(2)
    #expect(cache.takeDirtyPages() == [2, 0])
    #expect(cache.takeDirtyPages() == [])
    cache.markClean(2)
    let dirty = cache.dirtyCount
    #expect(dirty == 1)
  }

  @Test func `is mostly dirty from half of its pages on`() {
    var cache = filledCache(pageCount)
    for index in 0..<pageCount / 2 - 1 { cache.markDirty(index) }
    let before = cache.isMostlyDirty
    cache.markDirty(pageCount / 2)
    let after = cache.isMostlyDirty
    #expect(!before)
    #expect(after)
  }

  @Test func `traps when a dirty page is removed`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      var cache = filledCache(1)
      cache.markDirty(0)
      cache.remove(0)
    }
    #expect(said("a dirty page was dropped", result))
  }

  @Test func `traps when a page is changed before it is loaded`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      var cache = filledCache(1, state: .loading)
      cache.markDirty(0)
    }
    #expect(said("a page that is not loaded was changed", result))
  }

  @Test func `traps when a clean page is cleaned`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      var cache = filledCache(1)
      cache.markClean(0)
    }
    #expect(said("a clean page was cleaned", result))
  }
}
