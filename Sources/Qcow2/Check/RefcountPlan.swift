// SPDX-License-Identifier: Apache-2.0
//
// A whole new refcount structure for an image whose references are known.
// Spec: qcow2.rst, "Host cluster management". This file performs no I/O.

import BlockTypes

/// Which refcount blocks a rebuilt image has, where they go and what they hold.
public struct RefcountPlan: Sendable {
  public let geometry: ClusterGeometry
  /// The clusters at the end of the file that the new blocks and then the new table occupy.
  public let newClusters: Range<UInt64>
  /// Indices in the refcount table of the blocks, ascending.
  public let blockIndices: [UInt64]
  public let tableClusterCount: UInt64

  /// Plans the structure.
  ///
  /// - Parameters:
  ///   - blocks: indices of the blocks that count clusters in use, besides the new ones.
  ///   - firstFreeCluster: behind everything in use.
  public init(
    blocks: Set<UInt64>, firstFreeCluster start: UInt64, geometry: ClusterGeometry
  ) throws(ImageError) {
    let perBlock = geometry.refcountBlockEntryCount
    var blocks = blocks
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
      guard
        tableClusters << UInt64(geometry.clusterBits) <= UInt64(Header.refcountTableByteCountMax)
      else {
        throw ImageError(.unsupported, "the file is too large for a refcount table of 8 MiB")
      }
    }
    self.geometry = geometry
    self.newClusters = start..<end
    self.blockIndices = blocks.sorted()
    self.tableClusterCount = tableClusters
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

  /// The clusters that the block at `position` counts.
  public func clusters(at position: Int) -> Range<UInt64> {
    let first = blockIndices[position] * geometry.refcountBlockEntryCount
    return first..<(first + geometry.refcountBlockEntryCount)
  }

  /// The content of the block at `position`; `counts` knows those of its clusters that are in use.
  public func blockBytes(at position: Int, counts: ClusterCounts) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: Int(geometry.clusterByteCount))
    let clusters = clusters(at: position)
    for cluster in clusters {
      let count = newClusters.contains(cluster) ? 1 : counts[cluster]
      guard count > 0 else { continue }
      Refcount.store(
        min(count, geometry.refcountMax), to: &bytes, at: Int(cluster - clusters.lowerBound),
        order: geometry.refcountOrder)
    }
    return bytes
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
