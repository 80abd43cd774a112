// SPDX-License-Identifier: Apache-2.0
//
// How often each host cluster of a file is referenced, and what holds it. Memory is bounded: where
// it does not suffice for all clusters, fewer are counted, and the others in a later pass.
// Spec: qcow2.rst, "Host cluster management". This file performs no I/O.

import BlockTypes

/// One count for each host cluster of a window of the file, in pages that exist where counts are
/// not zero.
///
/// A page takes one byte for a count and one for marks; a page with a count of 255 or more takes
/// four bytes more for each.
public struct ClusterCounts: Sendable {
  /// What a cluster is used for. What nobody else may share comes after `data`.
  public enum Owner: UInt8, Sendable {
    case data = 0
    /// The header, an L1 table, the refcount table, the snapshot table, what belongs to bitmaps.
    case table = 1
    /// Snapshots share these among each other.
    case l2Table = 2
    case refcountBlock = 3
  }

  private struct Page {
    var counts: [UInt8]
    /// The owner in the low bits, and whether the count in the file is exactly one.
    var marks: [UInt8]
    /// Counts of 255 and more; empty where there are none.
    var wide: [UInt32] = []
  }

  /// The clusters that are counted; what is added to others is ignored.
  public private(set) var window: Range<UInt64>
  /// Windows begin and end at multiples of this many clusters, but for the end of the file.
  private let step: UInt64
  private let byteCountMax: Int
  private var byteCount: Int
  /// For each page of the window its number in `pages` plus one, 0 where there is none.
  private var directory: [Int32]
  private var pages: [Page] = []

  private static let pageEntryCount = 4096
  private static let ownerMask: UInt8 = 3
  private static let storedOnceMark: UInt8 = 1 << 7
  /// Clusters of a window at most: its directory takes 64 MiB then.
  public static let windowClusterCountMax: UInt64 = 1 << 36

  /// No counts yet, of the clusters from `start` on.
  ///
  /// - Parameters:
  ///   - clusterCount: of the file.
  ///   - step: a power of two; whole refcount blocks make the caller's work simple.
  ///   - byteCountMax: memory that the counts may take; one step is counted in any case.
  public init(
    from start: UInt64 = 0, clusterCount: UInt64, step: UInt64 = 1, byteCountMax: Int
  ) {
    precondition(start <= clusterCount, "counting starts behind the end of the file")
    self.step = max(step, UInt64(Self.pageEntryCount))
    precondition(start % self.step == 0, "a window starts inside a step")
    self.window = start..<min(clusterCount, start + Self.windowClusterCountMax)
    self.byteCountMax = byteCountMax
    let pageCount = (window.count + Self.pageEntryCount - 1) / Self.pageEntryCount
    self.directory = [Int32](repeating: 0, count: pageCount)
    self.byteCount = 4 * pageCount
  }

  private func page(of cluster: UInt64) -> (page: Int, index: Int)? {
    guard window.contains(cluster) else { return nil }
    let offset = Int(cluster - window.lowerBound)
    let number = Int(directory[offset / Self.pageEntryCount])
    return number == 0 ? nil : (number - 1, offset % Self.pageEntryCount)
  }

  /// The references to a cluster of the window.
  public subscript(cluster: UInt64) -> UInt64 {
    guard let place = page(of: cluster) else { return 0 }
    let count = pages[place.page].counts[place.index]
    return count < .max ? UInt64(count) : UInt64(pages[place.page].wide[place.index])
  }

  /// What holds a cluster of the window; `data` also where nothing does.
  func owner(of cluster: UInt64) -> Owner {
    guard let place = page(of: cluster) else { return .data }
    return Owner(rawValue: pages[place.page].marks[place.index] & Self.ownerMask) ?? .data
  }

  /// The first cluster of a range that cannot be a guest's, because something else holds it.
  func firstHeld(in clusters: Range<UInt64>) -> UInt64? {
    clusters.clamped(to: window).first { owner(of: $0) != .data }
  }

  /// Whether the reference count in the file is exactly one; known for clusters with references.
  func isStoredOnce(_ cluster: UInt64) -> Bool {
    guard let place = page(of: cluster) else { return false }
    return pages[place.page].marks[place.index] & Self.storedOnceMark != 0
  }

  mutating func markStoredOnce(_ cluster: UInt64) {
    guard let place = page(of: cluster) else { return }
    pages[place.page].marks[place.index] |= Self.storedOnceMark
  }

  /// Adds `times` references by one owner to each cluster of a range and returns those that
  /// something holds which does not go together with it. Sums stay at 2^32 - 1.
  @discardableResult
  mutating func add(
    _ times: UInt32, to clusters: Range<UInt64>, as owner: Owner = .data
  ) -> [UInt64] {
    var conflicts: [UInt64] = []
    var cluster = max(clusters.lowerBound, window.lowerBound)
    // The window may become smaller meanwhile.
    while cluster < min(clusters.upperBound, window.upperBound) {
      guard let place = makePage(of: cluster) else { continue }
      let end = min(clusters.upperBound - cluster, UInt64(Self.pageEntryCount - place.index))
      // Moved out and back: the arrays are changed in place.
      var page = Page(counts: [], marks: [])
      swap(&page, &pages[place.page])
      for index in place.index..<(place.index + Int(end)) {
        let old = page.counts[index]
        let held = page.marks[index] & Self.ownerMask
        if old != 0, held | owner.rawValue != 0,
          held != owner.rawValue || owner != .l2Table
        {
          conflicts.append(cluster + UInt64(index - place.index))
        }
        if old == 0 { page.marks[index] |= owner.rawValue }
        if UInt32(old) + min(times, 255) < 255 {
          page.counts[index] = old + UInt8(times)
        } else {
          widen(&page, index, times)
        }
      }
      swap(&page, &pages[place.page])
      cluster += end
    }
    return conflicts
  }

  /// Adds to a count that a byte does not hold any more.
  private mutating func widen(_ page: inout Page, _ index: Int, _ times: UInt32) {
    if page.wide.isEmpty {
      page.wide = [UInt32](repeating: 0, count: Self.pageEntryCount)
      byteCount += 4 * Self.pageEntryCount
    }
    let old = page.counts[index] == .max ? page.wide[index] : UInt32(page.counts[index])
    let (sum, overflows) = old.addingReportingOverflow(times)
    page.counts[index] = .max
    page.wide[index] = overflows ? .max : sum
  }

  /// The page of a cluster; nil when the window became smaller and ends before it.
  private mutating func makePage(of cluster: UInt64) -> (page: Int, index: Int)? {
    if let place = page(of: cluster) { return place }
    if byteCount + 2 * Self.pageEntryCount > byteCountMax { shrink(for: cluster) }
    guard window.contains(cluster) else { return nil }
    byteCount += 2 * Self.pageEntryCount
    let empty = [UInt8](repeating: 0, count: Self.pageEntryCount)
    pages.append(Page(counts: empty, marks: empty))
    directory[Int(cluster - window.lowerBound) / Self.pageEntryCount] = Int32(pages.count)
    return page(of: cluster)
  }

  /// Gives up the upper half of what is counted, the page of `cluster` included, if there is more
  /// than one step of it.
  private mutating func shrink(for cluster: UInt64) {
    let new = Int(cluster - window.lowerBound) / Self.pageEntryCount
    let used = directory.indices.filter { directory[$0] != 0 || $0 == new }
    let half = window.lowerBound + UInt64(used[used.count / 2] * Self.pageEntryCount)
    let end = max(half / step * step, window.lowerBound + step)
    guard let last = used.last,
      end <= window.lowerBound + UInt64(last * Self.pageEntryCount)
    else { return }
    window = window.lowerBound..<end
    var kept: [Page] = []
    let pageCount = Int((end - window.lowerBound) / UInt64(Self.pageEntryCount))
    byteCount = 4 * directory.count
    for index in 0..<pageCount where directory[index] != 0 {
      let page = pages[Int(directory[index]) - 1]
      byteCount += (page.wide.isEmpty ? 2 : 6) * Self.pageEntryCount
      kept.append(page)
      directory[index] = Int32(kept.count)
    }
    directory.removeLast(directory.count - pageCount)
    pages = kept
  }

  /// Whether no cluster of `range` is referenced, found a page at a time.
  public func isEmpty(in range: Range<UInt64>) -> Bool {
    var cluster = range.lowerBound
    while cluster < range.upperBound {
      let rest = Self.pageEntryCount - Int(cluster % UInt64(Self.pageEntryCount))
      let count = min(Int(range.upperBound - cluster), rest)
      if let place = page(of: cluster) {
        let entries = pages[place.page].counts[place.index..<(place.index + count)]
        if entries.contains(where: { $0 != 0 }) { return false }
      }
      cluster += UInt64(count)
    }
    return true
  }

  /// The first clusters of the blocks of `perBlock` clusters in which some cluster is referenced.
  public func blockStarts(_ perBlock: UInt64) -> [UInt64] {
    var starts: [UInt64] = []
    var first = window.lowerBound
    while first < window.upperBound {
      let end = min(first + perBlock, window.upperBound)
      if !isEmpty(in: first..<end) { starts.append(first) }
      first = max(end, nextCandidate(from: end) / perBlock * perBlock)
    }
    return starts
  }

  /// The first cluster from `cluster` on that may be referenced: a step over empty pages.
  func nextCandidate(from cluster: UInt64) -> UInt64 {
    guard cluster < window.upperBound else { return window.upperBound }
    var index = Int(cluster - window.lowerBound) / Self.pageEntryCount
    if directory[index] != 0 { return cluster }
    while index < directory.count && directory[index] == 0 { index += 1 }
    return min(
      window.upperBound, window.lowerBound + UInt64(index) * UInt64(Self.pageEntryCount))
  }
}
