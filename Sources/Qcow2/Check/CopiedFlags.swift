// SPDX-License-Identifier: Apache-2.0
//
// The COPIED flag of L1 and L2 entries: set exactly where the reference count is one.
// Spec: qcow2.rst, "L1 table entry", "L2 table entry". This file performs no I/O.

import BlockTypes

/// Says what the COPIED flags of an image must be.
public enum CopiedFlags {
  /// The cluster whose reference count decides about the flag of an L1 entry; nil for an empty one.
  public static func cluster(ofL1 entry: UInt64, geometry: ClusterGeometry) -> UInt64? {
    let l1 = L1Entry(rawValue: entry)
    return l1.isEmpty ? nil : l1.tableOffset.byteOffset >> UInt64(geometry.clusterBits)
  }

  /// The cluster that decides about the flag of an L2 entry; nil for an entry without a host
  /// cluster of its own.
  public static func cluster(
    ofL2 entry: UInt64, geometry: ClusterGeometry, version: Int
  ) -> UInt64? {
    let l2 = L2Entry(rawValue: entry)
    switch l2.kind(in: geometry, version: version) {
    case .normal, .zeroAllocated:
      return l2.hostOffset.byteOffset >> UInt64(geometry.clusterBits)
    case .unallocated, .zeroPlain, .compressed, .invalid: return nil
    }
  }

  /// The entry with the flag that its cluster's reference count demands.
  public static func corrected(_ entry: UInt64, count: UInt64) -> UInt64 {
    count == 1 ? entry | L2Entry.copiedFlag : entry & ~L2Entry.copiedFlag
  }
}
