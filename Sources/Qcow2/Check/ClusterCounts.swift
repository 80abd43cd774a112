// SPDX-License-Identifier: Apache-2.0
//
// How often each cluster of a file is referenced: a sparse array of counts whose memory follows
// what the image really references, with a limit. This file performs no I/O.

import BlockTypes

/// One count for each host cluster, in regions of pages that exist where counts are not zero.
public struct ClusterCounts: Sendable {
  public let clusterCount: UInt64
  private var regions: [[[UInt32]]]
  private var byteCount = 0
  private let byteCountMax: Int

  /// Counts in one page (1 KiB), and pages in one region (2 KiB of references to them).
  private static let pageEntryCount = 256
  private static let regionPageCount = 256
  private static let regionEntryCount = UInt64(pageEntryCount * regionPageCount)
  /// Clusters that a file can have at most: the list of regions takes 8 MiB then.
  public static let clusterCountMax: UInt64 = 1 << 36

  /// No counts yet.
  ///
  /// - Parameter byteCountMax: memory that the counts may take.
  public init(clusterCount: UInt64, byteCountMax: Int) throws(ImageError) {
    guard clusterCount <= Self.clusterCountMax else {
      throw ImageError(
        .unsupported, "the file spans \(clusterCount) clusters, too many to be checked")
    }
    self.clusterCount = clusterCount
    self.byteCountMax = byteCountMax
    self.regions = [[[UInt32]]](
      repeating: [], count: Int(clusterCount / Self.regionEntryCount) + 1)
  }

  private static func place(of cluster: UInt64) -> (region: Int, page: Int, index: Int) {
    let rest = Int(cluster % regionEntryCount)
    return (Int(cluster / regionEntryCount), rest / pageEntryCount, rest % pageEntryCount)
  }

  public subscript(cluster: UInt64) -> UInt64 {
    let place = Self.place(of: cluster)
    if regions[place.region].isEmpty || regions[place.region][place.page].isEmpty { return 0 }
    return UInt64(regions[place.region][place.page][place.index])
  }

  /// Adds `count` references to a cluster of the file and returns the sum, which stays at
  /// 2^32 - 1 when it would pass it.
  @discardableResult
  mutating func add(_ count: UInt32, to cluster: UInt64) throws(ImageError) -> UInt32 {
    precondition(cluster < clusterCount, "a reference passes the end of the file")
    let place = Self.place(of: cluster)
    if regions[place.region].isEmpty {
      try account(for: Self.regionPageCount * 8)
      regions[place.region] = [[UInt32]](repeating: [], count: Self.regionPageCount)
    }
    if regions[place.region][place.page].isEmpty {
      try account(for: Self.pageEntryCount * 4)
      regions[place.region][place.page] = [UInt32](repeating: 0, count: Self.pageEntryCount)
    }
    let old = regions[place.region][place.page][place.index]
    let (sum, overflows) = old.addingReportingOverflow(count)
    regions[place.region][place.page][place.index] = overflows ? .max : sum
    return overflows ? .max : sum
  }

  private mutating func account(for added: Int) throws(ImageError) {
    byteCount += added
    guard byteCount <= byteCountMax else {
      throw ImageError(
        .unsupported, "the image references more clusters than a file of its size can hold")
    }
  }

  /// Whether no cluster of `range` is referenced, found a page at a time.
  public func isEmpty(in range: Range<UInt64>) -> Bool {
    var cluster = range.lowerBound
    while cluster < range.upperBound {
      let place = Self.place(of: cluster)
      if regions[place.region].isEmpty {
        cluster = (cluster / Self.regionEntryCount + 1) * Self.regionEntryCount
        continue
      }
      let pageEnd =
        (cluster / UInt64(Self.pageEntryCount) + 1) * UInt64(Self.pageEntryCount)
      let end = min(range.upperBound, pageEnd)
      let page = regions[place.region][place.page]
      if !page.isEmpty {
        let entries = page[place.index..<(place.index + Int(end - cluster))]
        if entries.contains(where: { $0 != 0 }) { return false }
      }
      cluster = end
    }
    return true
  }

  /// The first cluster from `cluster` on that may be referenced: a step over empty regions.
  func nextCandidate(from cluster: UInt64) -> UInt64 {
    var cluster = cluster
    while cluster < clusterCount && regions[Int(cluster / Self.regionEntryCount)].isEmpty {
      cluster = (cluster / Self.regionEntryCount + 1) * Self.regionEntryCount
    }
    return min(cluster, clusterCount)
  }
}
