// SPDX-License-Identifier: Apache-2.0
//
// What a check of an image found. This file performs no I/O.

/// The counters of a check, with the meaning that qemu-img gives them.
public struct CheckReport: Hashable, Sendable {
  /// Inconsistencies that can cost data.
  public var corruptionCount = 0
  /// Clusters that are counted but not used: wasted space, no harm.
  public var leakCount = 0
  /// Corruptions of L1 or L2 entries or of other tables, which new reference counts cannot cure.
  public var tableCorruptionCount = 0
  /// Whether the refcount structure itself is broken, so that it cannot be corrected in place.
  public var refcountStructureIsBroken = false
  public var totalClusterCount: UInt64 = 0
  public var allocatedClusterCount: UInt64 = 0
  public var fragmentedClusterCount: UInt64 = 0
  public var compressedClusterCount: UInt64 = 0
  /// The end of the last cluster in use.
  public var imageEndOffset: UInt64 = 0

  public init() {}

  public var isClean: Bool { corruptionCount == 0 && leakCount == 0 }
}

/// One thing that a check found, with the sentence that says it.
public struct CheckFinding: Hashable, Sendable {
  public enum Severity: Sendable { case corruption, leak }
  public let severity: Severity
  public let text: String
}
