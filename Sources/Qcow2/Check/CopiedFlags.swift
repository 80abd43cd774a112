// SPDX-License-Identifier: Apache-2.0
//
// The COPIED flag of L1 and L2 entries: set exactly where the reference count is one.
// Spec: qcow2.rst, "L1 table entry", "L2 table entry". This file performs no I/O.

import BlockTypes

/// Says what the COPIED flags of an image must be.
public enum CopiedFlags {
  /// The L1 entry with the right flag, where `count` tells a cluster's reference count.
  public static func corrected(
    l1 entry: UInt64, geometry: ClusterGeometry, count: (UInt64) -> UInt64
  ) -> UInt64 {
    let l1 = L1Entry(rawValue: entry)
    if l1.isEmpty { return entry }
    return corrected(entry, host: l1.tableOffset, geometry, count)
  }

  /// The L2 entry with the right flag; entries without a host cluster of their own stay.
  public static func corrected(
    l2 entry: UInt64, geometry: ClusterGeometry, version: Int, count: (UInt64) -> UInt64
  ) -> UInt64 {
    let l2 = L2Entry(rawValue: entry)
    switch l2.kind(in: geometry, version: version) {
    case .normal, .zeroAllocated: return corrected(entry, host: l2.hostOffset, geometry, count)
    case .unallocated, .zeroPlain, .compressed, .invalid: return entry
    }
  }

  private static func corrected(
    _ entry: UInt64, host: HostOffset, _ geometry: ClusterGeometry, _ count: (UInt64) -> UInt64
  ) -> UInt64 {
    let isOne = count(host.byteOffset >> UInt64(geometry.clusterBits)) == 1
    return isOne ? entry | L2Entry.copiedFlag : entry & ~L2Entry.copiedFlag
  }
}
