// SPDX-License-Identifier: Apache-2.0
//
// The 16-byte L2 table entry: a cluster descriptor and the bitmap of its 32 subclusters.
// Spec: qcow2.rst, "Extended L2 Entries". No I/O.

import BlockTypes

/// The second word of an extended L2 entry: two bits for each of the 32 subclusters.
@frozen public struct SubclusterBitmap: RawRepresentable, Hashable, Sendable {
  public let rawValue: UInt64

  /// Subclusters of one cluster.
  public static let subclusterCount = 32

  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public init(allocated: UInt32, zero: UInt32) {
    rawValue = UInt64(zero) << 32 | UInt64(allocated)
  }

  @inlinable public static var none: SubclusterBitmap { SubclusterBitmap(rawValue: 0) }
  @inlinable public static var allZero: SubclusterBitmap {
    SubclusterBitmap(allocated: 0, zero: .max)
  }

  /// Bits 0 to 31: the subcluster's bytes are in the host cluster.
  @inlinable public var allocated: UInt32 { UInt32(truncatingIfNeeded: rawValue) }
  /// Bits 32 to 63: the subcluster reads as zeroes.
  @inlinable public var zero: UInt32 { UInt32(truncatingIfNeeded: rawValue >> 32) }

  /// The bits of some subclusters, the first one lowest.
  @inlinable public static func mask(_ subclusters: Range<Int>) -> UInt32 {
    precondition(
      subclusters.lowerBound >= 0 && subclusters.upperBound <= subclusterCount,
      "a cluster has 32 subclusters")
    return UInt32(
      truncatingIfNeeded: (1 << UInt64(subclusters.upperBound))
        - (1 << UInt64(subclusters.lowerBound)))
  }

  /// These subclusters have their bytes in the host cluster now.
  @inlinable public func allocating(_ mask: UInt32) -> SubclusterBitmap {
    SubclusterBitmap(allocated: allocated | mask, zero: zero & ~mask)
  }

  /// These subclusters read as zeroes now.
  @inlinable public func zeroing(_ mask: UInt32) -> SubclusterBitmap {
    SubclusterBitmap(allocated: allocated & ~mask, zero: zero | mask)
  }

  /// These subclusters are not in this layer any more.
  @inlinable public func forgetting(_ mask: UInt32) -> SubclusterBitmap {
    SubclusterBitmap(allocated: allocated & ~mask, zero: zero & ~mask)
  }
}

/// One extended L2 entry in host byte order.
@frozen public struct ExtendedL2Entry: Hashable, Sendable {
  public let descriptor: L2Entry
  public let bitmap: SubclusterBitmap

  @inlinable public init(_ descriptor: L2Entry, _ bitmap: SubclusterBitmap) {
    self.descriptor = descriptor
    self.bitmap = bitmap
  }

  /// What the entry says of the whole cluster: `unallocated` (no host cluster; subclusters may
  /// read as zeroes), `normal` (a host cluster, and the bitmap tells what of it counts),
  /// `compressed`, or `invalid`: a subcluster both allocated and zero, one allocated without a host
  /// cluster, a compressed cluster with a bitmap, or bit 0 of the descriptor.
  ///
  /// - Parameter hasDataFile: clusters lie in an external data file, as in `L2Entry.kind`.
  @inlinable public func clusterKind(
    in geometry: ClusterGeometry, hasDataFile: Bool
  ) -> L2Entry.Kind {
    let kind = descriptor.kind(in: geometry, version: 3, hasDataFile: hasDataFile)
    switch kind {
    case .unallocated: return bitmap.allocated == 0 ? kind : .invalid
    case .normal: return bitmap.allocated & bitmap.zero == 0 ? kind : .invalid
    case .compressed: return bitmap == .none ? kind : .invalid
    case .zeroPlain, .zeroAllocated, .invalid: return .invalid
    }
  }

  /// What the entry, whose kind is `clusterKind`, says of one subcluster and how many of its
  /// neighbours behind it, itself included, are of the same kind.
  ///
  /// An `unallocated` subcluster of a `normal` cluster has a place for later writes.
  @inlinable public func run(
    from subcluster: Int, _ clusterKind: L2Entry.Kind
  ) -> (kind: L2Entry.Kind, count: Int) {
    let rest = SubclusterBitmap.subclusterCount - subcluster
    switch clusterKind {
    case .compressed, .invalid: return (clusterKind, rest)
    case .unallocated, .normal, .zeroPlain, .zeroAllocated: break
    }
    let allocated = bitmap.allocated >> UInt32(subcluster)
    let zero = bitmap.zero >> UInt32(subcluster)
    if allocated & 1 == 1 { return (.normal, min((~allocated).trailingZeroBitCount, rest)) }
    if zero & 1 == 1 {
      let kind: L2Entry.Kind = clusterKind == .normal ? .zeroAllocated : .zeroPlain
      return (kind, min((~zero).trailingZeroBitCount, rest))
    }
    return (.unallocated, min((allocated | zero).trailingZeroBitCount, rest))
  }
}
