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
  /// Clusters are in use that no refcount block counts.
  public var needsMoreRefcountBlocks = false
  /// Why the persistent bitmaps cannot all be used; nil when they can.
  public var bitmapFlaw: String?
  /// The snapshots that cannot be used, by their index in the table, and why.
  public var snapshotFlaws: [Int: String] = [:]
  /// How many snapshots can be read before the table is damaged; nil when all can.
  public var readableSnapshotCount: Int?
  /// Whether the snapshot table has to be written anew: it lies on something else, or an entry has
  /// more extra data than it may.
  public var snapshotTableIsContested = false
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
  public enum Severity: Sendable {
    case corruption
    case leak
    /// Says more of something that is counted elsewhere.
    case remark
    /// Will be changed now.
    case repair
  }
  public let severity: Severity
  public let text: String

  public init(severity: Severity, text: String) {
    self.severity = severity
    self.text = text
  }
}
