// SPDX-License-Identifier: Apache-2.0
//
// The 8-byte L2 table entry of a qcow2 image, which is also the first half of an extended one.
// Spec: qcow2.rst, "L2 table entry", "Standard Cluster Descriptor",
// "Compressed Clusters Descriptor". No I/O.

import BlockTypes

/// One L2 entry in host byte order.
@frozen public struct L2Entry: RawRepresentable, Hashable, Sendable {
  public let rawValue: UInt64

  /// What an entry says about its guest cluster.
  @frozen public enum Kind: UInt8, Sendable {
    /// Not in this layer: the backing file, or zeroes where there is none.
    case unallocated
    /// Reads as zeroes and owns no host cluster.
    case zeroPlain
    /// Reads as zeroes and owns a host cluster.
    case zeroAllocated
    case normal
    case compressed
    /// A reserved bit is set, or the host offset is unaligned or missing.
    case invalid
  }

  public static let copiedFlag: UInt64 = 1 << 63
  public static let compressedFlag: UInt64 = 1 << 62
  public static let zeroFlag: UInt64 = 1
  /// Bits 9 to 55: the host cluster offset of a standard descriptor.
  @usableFromInline static let offsetMask: UInt64 = 0x00ff_ffff_ffff_fe00

  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// The entry of a guest cluster stored at `host` whose reference count is exactly one.
  @inlinable public init(normalAt host: HostOffset) {
    self.rawValue = host.byteOffset | L2Entry.copiedFlag
  }

  /// The entry of a guest cluster that reads as zeroes and has `host` for later writes.
  @inlinable public init(zeroAllocatedAt host: HostOffset) {
    self.rawValue = host.byteOffset | L2Entry.copiedFlag | L2Entry.zeroFlag
  }

  /// The entry of a guest cluster whose `byteCount` packed bytes lie at `host`.
  ///
  /// They must be fewer than a cluster has and end at `compressedPlaceMax` or before. COPIED stays
  /// clear: what is packed is never overwritten.
  @inlinable public init(
    compressedAt host: HostOffset, byteCount: Int, in geometry: ClusterGeometry
  ) {
    let offset = host.byteOffset
    precondition(
      byteCount > 0 && offset + UInt64(byteCount) <= L2Entry.compressedPlaceMax(in: geometry),
      "a place does not fit into a compressed descriptor")
    // Sectors behind the one of the first byte; the length is below a cluster's, so they fit.
    let sectors = (offset + UInt64(byteCount) - 1) / 512 - offset / 512
    let offsetBits = UInt64(62 - (geometry.clusterBits - 8))
    self.rawValue = L2Entry.compressedFlag | sectors << offsetBits | offset
  }

  /// Packed bytes that end here at the latest have a descriptor: it has so many bits for their
  /// place, of which those above bit 55 are reserved.
  @inlinable public static func compressedPlaceMax(in geometry: ClusterGeometry) -> UInt64 {
    1 << UInt64(min(62 - (geometry.clusterBits - 8), 56))
  }

  @inlinable public static var unallocated: L2Entry { L2Entry(rawValue: 0) }
  @inlinable public static var zeroPlain: L2Entry { L2Entry(rawValue: zeroFlag) }

  /// The entry's kind under `geometry`, where bit 0 has a meaning only from version 3 on.
  ///
  /// Where entries are extended, this is the first word's half of the truth: it never says zero,
  /// and bit 0 is reserved (`ExtendedL2Entry`). With an external data file nothing is compressed,
  /// and COPIED tells that the cluster at host offset 0 is meant.
  @inlinable public func kind(
    in geometry: ClusterGeometry, version: Int, hasDataFile: Bool = false
  ) -> Kind {
    if rawValue == 0 { return .unallocated }
    // Bit 0 of a compressed descriptor belongs to its byte offset, so look at bit 62 first.
    if rawValue & L2Entry.compressedFlag != 0 { return hasDataFile ? .invalid : .compressed }
    let host = rawValue & L2Entry.offsetMask
    let reserved = rawValue & ~(L2Entry.offsetMask | L2Entry.copiedFlag | L2Entry.zeroFlag)
    if reserved != 0 || !host.isAligned(to: geometry.clusterByteCount) { return .invalid }
    if rawValue & L2Entry.zeroFlag != 0 {
      if version < 3 || geometry.hasSubclusters { return .invalid }
      return host == 0 ? .zeroPlain : .zeroAllocated
    }
    if host == 0 { return hasDataFile ? .normal : .invalid }  // COPIED without a cluster
    return .normal
  }

  /// Host offset of a standard descriptor; 0 when it owns none.
  @inlinable public var hostOffset: HostOffset {
    HostOffset(byteOffset: rawValue & L2Entry.offsetMask)
  }

  @inlinable public var isCompressed: Bool { rawValue & L2Entry.compressedFlag != 0 }

  /// Whether the host cluster's reference count is exactly one, so that it may be overwritten.
  @inlinable public var isCopied: Bool { rawValue & L2Entry.copiedFlag != 0 }

  /// Where a compressed cluster lies, and how many bytes hold it at most.
  ///
  /// The length counts whole 512-byte sectors from the sector of the first byte on, so the tail
  /// may belong to the next compressed cluster.
  @inlinable public func compressedRange(in geometry: ClusterGeometry) -> ByteRange {
    let offsetBits = UInt64(62 - (geometry.clusterBits - 8))
    let offset = rawValue & ((1 << offsetBits) - 1)
    let sectors = ((rawValue & (L2Entry.compressedFlag - 1)) >> offsetBits) + 1
    // At most 2^54 + 2^13 * 2^9, so the sum cannot overflow.
    return ByteRange(start: offset, end: offset - offset % 512 + sectors * 512)
  }
}
