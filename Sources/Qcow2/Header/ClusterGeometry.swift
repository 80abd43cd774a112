// SPDX-License-Identifier: Apache-2.0
//
// Cluster geometry and the L1 and L2 indices of a qcow2 image.
// Spec: qcow2.rst, "Header", "Host cluster management", "Cluster mapping",
// "Extended L2 Entries". No I/O.

import BlockTypes

/// The sizes that follow from `cluster_bits`, `refcount_order` and the width of L2 entries.
@frozen public struct ClusterGeometry: Hashable, Sendable {
  /// log2 of the cluster's size in bytes, 9...21.
  public let clusterBits: Int
  /// log2 of the width of a reference count in bits, 0...6.
  public let refcountOrder: Int
  /// log2 of the size of an L2 entry in bytes: 4 where entries are extended, else 3.
  public let l2EntryBits: Int

  /// Smallest `cluster_bits` with extended L2 entries: a subcluster has at least 512 bytes.
  public static let extendedClusterBitsMin = 14

  /// Traps outside the ranges above: the header's decoder has refused such an image before.
  @inlinable public init(clusterBits: Int, refcountOrder: Int, hasSubclusters: Bool = false) {
    precondition((9...21).contains(clusterBits), "cluster_bits is outside 9...21")
    precondition((0...6).contains(refcountOrder), "refcount_order is outside 0...6")
    precondition(
      !hasSubclusters || clusterBits >= ClusterGeometry.extendedClusterBitsMin,
      "a cluster is too small for subclusters")
    self.clusterBits = clusterBits
    self.refcountOrder = refcountOrder
    self.l2EntryBits = hasSubclusters ? 4 : 3
  }

  /// Whether L2 entries are extended: each tells about the 32 subclusters of its cluster.
  @inlinable public var hasSubclusters: Bool { l2EntryBits == 4 }

  @inlinable public var clusterByteCount: UInt64 { 1 << UInt64(clusterBits) }

  /// log2 of what an L2 entry tells apart: a subcluster, or the cluster where there are none.
  @inlinable public var subclusterBits: Int { hasSubclusters ? clusterBits - 5 : clusterBits }

  /// Bytes of a subcluster; of a cluster where there are none.
  @inlinable public var subclusterByteCount: UInt64 { 1 << UInt64(subclusterBits) }

  /// Bytes of an L2 entry: 16 where entries are extended, else 8.
  @inlinable public var l2EntryByteCount: Int { 1 << l2EntryBits }

  /// Number of entries of one L2 table, which is one cluster.
  @inlinable public var l2EntryCount: Int { 1 << (clusterBits - l2EntryBits) }

  /// Number of 8-byte words of one cluster of any table.
  @inlinable public var tableWordCount: Int { 1 << (clusterBits - 3) }

  /// Guest bytes that one L2 table maps: `2^(2 * clusterBits - l2EntryBits)`.
  @inlinable public var l2CoverageByteCount: UInt64 {
    1 << UInt64(2 * clusterBits - l2EntryBits)
  }

  /// Number of reference counts in one refcount block, which is one cluster.
  @inlinable public var refcountBlockEntryCount: UInt64 {
    1 << UInt64(clusterBits + 3 - refcountOrder)
  }

  /// Largest value that a reference count of this width can hold.
  @inlinable public var refcountMax: UInt64 {
    refcountOrder == 6 ? .max : (1 << (1 << UInt64(refcountOrder))) - 1
  }

  /// Index of the L1 entry that covers `offset`.
  @inlinable public func l1Index(of offset: GuestOffset) -> Int {
    Int(offset.byteOffset >> UInt64(2 * clusterBits - l2EntryBits))
  }

  /// Index, within its L2 table, of the entry that covers `offset`.
  @inlinable public func l2Index(of offset: GuestOffset) -> Int {
    Int((offset.byteOffset >> UInt64(clusterBits)) & UInt64(l2EntryCount - 1))
  }

  /// Index, within its cluster, of the subcluster that holds `offset`; 0 where there are none.
  @inlinable public func subclusterIndex(of offset: GuestOffset) -> Int {
    Int((offset.byteOffset & (clusterByteCount - 1)) >> UInt64(subclusterBits))
  }

  /// Number of L1 entries that a disk of `byteCount` bytes needs.
  @inlinable public func l1EntryCount(forDiskOf byteCount: UInt64) -> Int {
    let coverage = l2CoverageByteCount
    return Int(byteCount / coverage) + (byteCount % coverage == 0 ? 0 : 1)
  }

  /// Number of clusters that hold `byteCount` bytes.
  @inlinable public func clusterCount(for byteCount: UInt64) -> UInt64 {
    let whole = byteCount >> UInt64(clusterBits)
    return byteCount.isAligned(to: clusterByteCount) ? whole : whole + 1
  }
}
