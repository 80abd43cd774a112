// SPDX-License-Identifier: Apache-2.0
//
// The 8-byte L1 table entry of a qcow2 image. Spec: qcow2.rst, "L1 table entry". No I/O.

import BlockTypes

/// One L1 entry in host byte order.
@frozen public struct L1Entry: RawRepresentable, Hashable, Sendable {
  public let rawValue: UInt64

  @usableFromInline static let offsetMask: UInt64 = 0x00ff_ffff_ffff_fe00
  public static let copiedFlag: UInt64 = 1 << 63

  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// An entry for an L2 table at `host` whose reference count is exactly one.
  @inlinable public init(tableAt host: HostOffset) {
    self.rawValue = host.byteOffset | L1Entry.copiedFlag
  }

  @inlinable public static var empty: L1Entry { L1Entry(rawValue: 0) }

  /// Host offset of the L2 table; 0 when there is none.
  @inlinable public var tableOffset: HostOffset {
    HostOffset(byteOffset: rawValue & L1Entry.offsetMask)
  }

  @inlinable public var isEmpty: Bool { rawValue & L1Entry.offsetMask == 0 }
  @inlinable public var isCopied: Bool { rawValue & L1Entry.copiedFlag != 0 }

  /// Whether reserved bits are clear and the table is cluster-aligned.
  @inlinable public func isValid(in geometry: ClusterGeometry) -> Bool {
    rawValue & ~(L1Entry.offsetMask | L1Entry.copiedFlag) == 0
      && tableOffset.byteOffset.isAligned(to: geometry.clusterByteCount)
  }
}
