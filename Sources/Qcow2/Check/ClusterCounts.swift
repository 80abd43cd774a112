// SPDX-License-Identifier: Apache-2.0
//
// How often each cluster of a file is referenced: a sparse array of counts whose memory follows
// what the image really references, with a limit. This file performs no I/O.

import BlockTypes

/// One count for each host cluster.
public struct ClusterCounts: Sendable {
  public let clusterCount: UInt64
  private var pages: [[UInt32]]
  private var pageCount = 0

  /// Counts in one page.
  static let pageEntryCount = 4096
  /// Clusters that a file can have at most: the directory of pages takes 128 MiB then.
  public static let clusterCountMax: UInt64 = 1 << 36
  /// Pages that can be in use at most: 1 GiB, which covers 16 TiB of 64 KiB clusters.
  static let pageCountMax = 65_536

  public init(clusterCount: UInt64) throws(ImageError) {
    guard clusterCount <= Self.clusterCountMax else {
      throw ImageError(
        .unsupported, "the file spans \(clusterCount) clusters, too many to be checked")
    }
    self.clusterCount = clusterCount
    self.pages = [[UInt32]](
      repeating: [], count: Int(clusterCount / UInt64(Self.pageEntryCount)) + 1)
  }

  public subscript(cluster: UInt64) -> UInt64 {
    let page = pages[Int(cluster / UInt64(Self.pageEntryCount))]
    return page.isEmpty ? 0 : UInt64(page[Int(cluster % UInt64(Self.pageEntryCount))])
  }

  /// Adds `count` references to a cluster of the file and returns the sum, which stays at
  /// 2^32 - 1 when it would pass it.
  @discardableResult
  mutating func add(_ count: UInt32, to cluster: UInt64) throws(ImageError) -> UInt32 {
    precondition(cluster < clusterCount, "a reference passes the end of the file")
    let page = Int(cluster / UInt64(Self.pageEntryCount))
    if pages[page].isEmpty {
      guard pageCount < Self.pageCountMax else {
        throw ImageError(.unsupported, "the image references too many clusters to be checked")
      }
      pageCount += 1
      pages[page] = [UInt32](repeating: 0, count: Self.pageEntryCount)
    }
    let index = Int(cluster % UInt64(Self.pageEntryCount))
    let (sum, overflows) = pages[page][index].addingReportingOverflow(count)
    pages[page][index] = overflows ? .max : sum
    return pages[page][index]
  }

  /// Forgets all references to a cluster.
  mutating func removeAll(from cluster: UInt64) {
    let page = Int(cluster / UInt64(Self.pageEntryCount))
    if pages[page].isEmpty { return }
    pages[page][Int(cluster % UInt64(Self.pageEntryCount))] = 0
  }

  /// Whether no cluster of `range` is referenced, found a page at a time.
  public func isEmpty(in range: Range<UInt64>) -> Bool {
    var cluster = range.lowerBound
    while cluster < range.upperBound {
      let page = Int(cluster / UInt64(Self.pageEntryCount))
      let end = min(range.upperBound, UInt64(page + 1) * UInt64(Self.pageEntryCount))
      if !pages[page].isEmpty {
        let first = Int(cluster % UInt64(Self.pageEntryCount))
        let entries = pages[page][first..<(first + Int(end - cluster))]
        if entries.contains(where: { $0 != 0 }) { return false }
      }
      cluster = end
    }
    return true
  }
}
