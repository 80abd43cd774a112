// SPDX-License-Identifier: Apache-2.0
//
// Where the tables of a new, empty qcow2 image lie: header, refcount table, refcount blocks, L1,
// encryption header.
// Spec: qcow2.rst, "Host cluster management". This file performs no I/O.

import BlockTypes

/// The places of an empty image's tables, all of them contiguous from the header on.
public struct NewImageLayout: Hashable, Sendable {
  public let geometry: ClusterGeometry
  public let refcountTableClusterCount: UInt64
  public let refcountBlockCount: UInt64
  public let l1EntryCount: Int
  /// Bytes for the LUKS header and its key slots; 0 of an image that is not encrypted.
  public let encryptionByteCount: UInt64

  /// Lays out an image; throws when the disk is too large for its clusters.
  public init(
    geometry: ClusterGeometry, diskByteCount: UInt64, encryptionByteCount: UInt64 = 0
  ) throws(ImageError) {
    let l1EntryCountMax = Header.l1TableByteCountMax / 8
    guard diskByteCount <= UInt64(Int64.max),
      geometry.l1EntryCount(forDiskOf: diskByteCount) <= l1EntryCountMax
    else {
      throw ImageError(
        .refused,
        "a disk of \(diskByteCount) bytes is too large for clusters of "
          + "\(geometry.clusterByteCount) bytes; use larger clusters (-o cluster_size=SIZE)")
    }
    self.geometry = geometry
    self.l1EntryCount = geometry.l1EntryCount(forDiskOf: diskByteCount)
    self.encryptionByteCount = encryptionByteCount
    let others =
      1 + geometry.clusterCount(for: UInt64(l1EntryCount) * 8)
      + geometry.clusterCount(for: encryptionByteCount)
    (refcountBlockCount, refcountTableClusterCount) = Self.refcountClusterCounts(
      covering: others, geometry: geometry)
  }

  /// How many refcount blocks and table clusters count `others` clusters and themselves.
  ///
  /// Each round can only grow the counts, and one more block counts at least 64 clusters, so a few
  /// rounds reach the fixed point.
  public static func refcountClusterCounts(
    covering others: UInt64, geometry: ClusterGeometry
  ) -> (blocks: UInt64, tableClusters: UInt64) {
    var blocks: UInt64 = 1
    var tableClusters: UInt64 = 1
    while true {
      let total = others + blocks + tableClusters
      let perBlock = geometry.refcountBlockEntryCount
      let neededBlocks = (total + perBlock - 1) / perBlock
      let neededClusters = geometry.clusterCount(for: neededBlocks * 8)
      if neededBlocks <= blocks && neededClusters <= tableClusters {
        return (blocks, tableClusters)
      }
      blocks = max(blocks, neededBlocks)
      tableClusters = max(tableClusters, neededClusters)
    }
  }

  public var refcountTableOffset: HostOffset { cluster(1) }
  public var refcountBlocksOffset: HostOffset { cluster(1 + refcountTableClusterCount) }
  public var l1TableOffset: HostOffset {
    cluster(1 + refcountTableClusterCount + refcountBlockCount)
  }

  /// Where the LUKS header begins, if there is one.
  public var encryptionOffset: HostOffset {
    cluster(
      1 + refcountTableClusterCount + refcountBlockCount
        + geometry.clusterCount(for: UInt64(l1EntryCount) * 8))
  }

  /// Clusters in use, the header's included.
  public var clusterCount: UInt64 {
    1 + refcountTableClusterCount + refcountBlockCount
      + geometry.clusterCount(for: UInt64(l1EntryCount) * 8)
      + geometry.clusterCount(for: encryptionByteCount)
  }

  private func cluster(_ index: UInt64) -> HostOffset {
    HostOffset(byteOffset: index << UInt64(geometry.clusterBits))
  }

  /// The whole refcount table, pointing to the blocks.
  public func refcountTableBytes() -> [UInt8] {
    var bytes: [UInt8] = []
    for index in 0..<refcountBlockCount {
      bytes.appendBigEndian(
        refcountBlocksOffset.byteOffset + index << UInt64(geometry.clusterBits))
    }
    let byteCount = Int(refcountTableClusterCount << UInt64(geometry.clusterBits))
    return bytes + [UInt8](repeating: 0, count: byteCount - bytes.count)
  }

  /// The refcount blocks, one after another: 1 for each cluster in use.
  public func refcountBlockBytes() -> [UInt8] {
    var bytes = [UInt8](
      repeating: 0, count: Int(refcountBlockCount << UInt64(geometry.clusterBits)))
    for index in 0..<Int(clusterCount) {
      Refcount.store(1, to: &bytes, at: index, order: geometry.refcountOrder)
    }
    return bytes
  }

  /// Puts the places into a header.
  public func apply(to header: inout Header) {
    header.l1EntryCount = l1EntryCount
    header.l1TableOffset = l1TableOffset
    header.refcountTableOffset = refcountTableOffset
    header.refcountTableClusterCount = Int(refcountTableClusterCount)
    guard encryptionByteCount > 0 else { return }
    header.encryptionMethod = Header.encryptionLUKS
    let area = EncryptionExtension(offset: encryptionOffset, byteCount: encryptionByteCount)
    header.extensions.insert(area.headerExtension, at: 0)
  }
}
