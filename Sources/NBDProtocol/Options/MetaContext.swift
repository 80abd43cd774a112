// SPDX-License-Identifier: Apache-2.0
//
// The metadata contexts that BLOCK_STATUS can report, and sets of them.
// Spec: proto.md, "Metadata querying"; qemu docs/interop/nbd.rst. This file performs no I/O.

/// A metadata context that an export offers: a name, and the id that stands for it on the wire.
///
/// The ids of one export are different: 0 and 1 are the two contexts that every image has, those
/// from 2 on are its dirty bitmaps.
public struct MetaContext: Hashable, Sendable {
  /// What the context tells.
  @frozen public enum Kind: Hashable, Sendable {
    /// HOLE (bit 0) and ZERO (bit 1) over the whole chain.
    case baseAllocation
    /// 0 unallocated, 1 active layer, 2 first backing layer, and so on.
    case allocationDepth
    /// DIRTY (bit 0) where the bitmap of this number recorded a write.
    case dirtyBitmap(number: Int)
  }

  /// Dirty bitmaps that one export may offer: what is left of a `MetaContextSet`.
  public static var dirtyBitmapsMax: Int { MetaContextSet.contextsMax - 2 }

  public let kind: Kind
  public let name: String

  private init(_ kind: Kind, name: String) {
    self.kind = kind
    self.name = name
  }

  public static var baseAllocation: MetaContext {
    MetaContext(.baseAllocation, name: "base:allocation")
  }
  public static var allocationDepth: MetaContext {
    MetaContext(.allocationDepth, name: "qemu:allocation-depth")
  }

  /// The bitmap `name`, number `number` of its export from 0 on.
  ///
  /// Traps when the number or the name passes the limits: whoever offers bitmaps counts them.
  public static func dirtyBitmap(_ name: String, number: Int) -> MetaContext {
    precondition(
      (0..<dirtyBitmapsMax).contains(number), "bitmap \(number) is beyond \(dirtyBitmapsMax)")
    let whole = "qemu:dirty-bitmap:" + name
    precondition(
      !name.isEmpty && whole.utf8.count <= ExportName.byteCountMax && !whole.utf8.contains(0),
      "a bitmap's name is empty, too long, or holds NUL")
    return MetaContext(.dirtyBitmap(number: number), name: whole)
  }

  /// The contexts of every image.
  public static var ofEveryImage: [MetaContext] { [.baseAllocation, .allocationDepth] }

  /// The queries of LIST_META_CONTEXT that stand for this context among others.
  public var wildcards: [String] {
    switch kind {
    case .baseAllocation: ["base:"]
    case .allocationDepth: ["qemu:"]
    case .dirtyBitmap: ["qemu:", "qemu:dirty-bitmap:"]
    }
  }

  /// The id that the reply to SET_META_CONTEXT gives and that BLOCK_STATUS chunks repeat.
  public var wireID: UInt32 {
    switch kind {
    case .baseAllocation: MetaContextSet.baseAllocationID
    case .allocationDepth: MetaContextSet.allocationDepthID
    case .dirtyBitmap(let number): MetaContextSet.firstBitmapID + UInt32(number)
    }
  }
}

/// The contexts that one connection selected, by their ids.
@frozen public struct MetaContextSet: OptionSet, Hashable, Sendable {
  /// Contexts that one export may offer, and so the end of the ids.
  @inlinable public static var contextsMax: Int { 64 }
  @inlinable public static var baseAllocationID: UInt32 { 0 }
  @inlinable public static var allocationDepthID: UInt32 { 1 }
  /// The id of the dirty bitmap of number 0; the others follow.
  @inlinable public static var firstBitmapID: UInt32 { 2 }

  public let rawValue: UInt64

  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public static var baseAllocation: Self { Self(rawValue: 1 << baseAllocationID) }
  @inlinable public static var allocationDepth: Self { Self(rawValue: 1 << allocationDepthID) }

  /// The dirty bitmaps of the set.
  @inlinable public var dirtyBitmaps: Self {
    Self(rawValue: rawValue & (.max << UInt64(MetaContextSet.firstBitmapID)))
  }

  /// The number of the dirty bitmap with an id that is one's.
  @inlinable public static func bitmapNumber(ofID wireID: UInt32) -> Int {
    Int(wireID - firstBitmapID)
  }

  /// The set of `context` alone.
  public init(_ context: MetaContext) { rawValue = 1 << context.wireID }

  public func contains(_ context: MetaContext) -> Bool { contains(wireID: context.wireID) }

  /// Whether the context of this id, which may be anything, is in the set.
  @inlinable public func contains(wireID: UInt32) -> Bool {
    wireID < UInt32(MetaContextSet.contextsMax) && rawValue & (1 << wireID) != 0
  }

  /// Traps when the id is no context's.
  @inlinable public mutating func insert(wireID: UInt32) {
    precondition(wireID < UInt32(MetaContextSet.contextsMax), "there is no context \(wireID)")
    self = MetaContextSet(rawValue: rawValue | 1 << wireID)
  }

  /// Takes the context of the smallest id out of the set; nil when it is empty.
  @inlinable public mutating func popFirst() -> UInt32? {
    guard rawValue != 0 else { return nil }
    let id = UInt32(rawValue.trailingZeroBitCount)
    self = MetaContextSet(rawValue: rawValue & (rawValue - 1))
    return id
  }

  @inlinable public var count: Int { rawValue.nonzeroBitCount }
}
