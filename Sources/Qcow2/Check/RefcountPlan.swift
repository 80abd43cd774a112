// SPDX-License-Identifier: Apache-2.0
//
// A whole new refcount structure for an image whose references are known, placed at the end of the
// file. Spec: qcow2.rst, "Host cluster management". This file performs no I/O.

import BlockTypes

/// Which refcount blocks a rebuilt image has, where they go and what they hold.
public struct RefcountPlan: Sendable {
  public let geometry: ClusterGeometry
  /// The clusters at the end of the file that the new blocks and then the new table occupy.
  public let newClusters: Range<UInt64>
  /// Indices in the refcount table of the blocks, ascending.
  public let blockIndices: [UInt64]
  public let tableClusterCount: UInt64
  private let counts: ClusterCounts

  /// Plans the structure for `counts`, which must not count the old refcount structure.
  public init(
    counts: ClusterCounts, geometry: ClusterGeometry, fileByteCount: UInt64
  ) throws(ImageError) {
    let perBlock = geometry.refcountBlockEntryCount
    var start = geometry.clusterCount(for: fileByteCount)
    // A cluster that the end of the file cuts off may still be in use.
    while start < counts.clusterCount && counts[start] > 0 { start += 1 }
    var blocks: Set<UInt64> = []
    var first: UInt64 = 0
    while first < counts.clusterCount {
      let end = min(first + perBlock, counts.clusterCount)
      if !counts.isEmpty(in: first..<end) { blocks.insert(first / perBlock) }
      first = max(end, counts.nextCandidate(from: end) / perBlock * perBlock)
    }
    // The new clusters need counts too; each round can only add blocks at the end, and one block
    // counts at least 64 clusters, so a few rounds suffice.
    var tableClusters: UInt64 = 1
    var end = start
    while true {
      end = start + UInt64(blocks.count) + tableClusters
      let before = blocks.count
      for index in (start / perBlock)...((end - 1) / perBlock) { blocks.insert(index) }
      let highest = (end - 1) / perBlock
      let needed = geometry.clusterCount(for: (highest + 1) * 8)
      if blocks.count == before && needed == tableClusters { break }
      tableClusters = needed
    }
    guard tableClusters << UInt64(geometry.clusterBits) <= UInt64(Header.refcountTableByteCountMax)
    else {
      throw ImageError(.unsupported, "the file is too large for a refcount table of 8 MiB")
    }
    self.geometry = geometry
    self.newClusters = start..<end
    self.blockIndices = blocks.sorted()
    self.tableClusterCount = tableClusters
    self.counts = counts
  }

  public var tableOffset: HostOffset {
    HostOffset(
      byteOffset: (newClusters.upperBound - tableClusterCount) << UInt64(geometry.clusterBits))
  }

  /// Where the block at `position` in `blockIndices` goes.
  public func blockOffset(at position: Int) -> HostOffset {
    HostOffset(
      byteOffset: (newClusters.lowerBound + UInt64(position)) << UInt64(geometry.clusterBits))
  }

  /// The content of the block at `position` in `blockIndices`.
  public func blockBytes(at position: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: Int(geometry.clusterByteCount))
    let first = blockIndices[position] * geometry.refcountBlockEntryCount
    for index in 0..<Int(geometry.refcountBlockEntryCount) {
      let count = count(of: first + UInt64(index))
      if count > 0 { Refcount.store(count, to: &bytes, at: index, order: geometry.refcountOrder) }
    }
    return bytes
  }

  private func count(of cluster: UInt64) -> UInt64 {
    if newClusters.contains(cluster) { return 1 }
    return cluster < counts.clusterCount ? counts[cluster] : 0
  }

  /// The whole refcount table.
  public func tableBytes() -> [UInt8] {
    var bytes = [UInt8](
      repeating: 0, count: Int(tableClusterCount << UInt64(geometry.clusterBits)))
    for (position, index) in blockIndices.enumerated() {
      bytes.putBigEndian(blockOffset(at: position).byteOffset, at: Int(index) * 8)
    }
    return bytes
  }
}
