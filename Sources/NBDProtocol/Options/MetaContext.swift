// SPDX-License-Identifier: Apache-2.0
//
// The metadata contexts that BLOCK_STATUS can report, and sets of them.
// Spec: proto.md, "Metadata querying"; qemu docs/interop/nbd.rst. This file performs no I/O.

/// A metadata context. The raw value is its id on the wire.
///
/// Dirty bitmaps come later: they will take ids from 2 on, one for each bitmap.
@frozen public enum MetaContext: UInt32, Hashable, Sendable, CaseIterable {
  /// HOLE (bit 0) and ZERO (bit 1) over the whole chain.
  case baseAllocation = 0
  /// 0 unallocated, 1 active layer, 2 first backing layer, and so on.
  case allocationDepth = 1

  public var name: String {
    switch self {
    case .baseAllocation: "base:allocation"
    case .allocationDepth: "qemu:allocation-depth"
    }
  }

  /// The query that stands for all contexts of this one's namespace, with its colon.
  public var wildcard: String {
    switch self {
    case .baseAllocation: "base:"
    case .allocationDepth: "qemu:"
    }
  }

  /// The id that the reply to SET_META_CONTEXT gives and that BLOCK_STATUS chunks repeat.
  @inlinable public var wireID: UInt32 { rawValue }
}

/// The contexts that one connection selected.
@frozen public struct MetaContextSet: OptionSet, Hashable, Sendable {
  public let rawValue: UInt8

  @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }

  @inlinable public static var baseAllocation: Self { Self(rawValue: 1 << 0) }
  @inlinable public static var allocationDepth: Self { Self(rawValue: 1 << 1) }

  /// The set of `context` alone.
  @inlinable public init(_ context: MetaContext) {
    switch context {
    case .baseAllocation: self = .baseAllocation
    case .allocationDepth: self = .allocationDepth
    }
  }

  @inlinable public func contains(_ context: MetaContext) -> Bool {
    contains(MetaContextSet(context))
  }

  @inlinable public var count: Int { rawValue.nonzeroBitCount }
}
