// SPDX-License-Identifier: Apache-2.0
//
// A byte position on the virtual disk, as the guest sees it. This file performs no I/O.

/// A byte offset on the guest's side: a position on the virtual disk.
@frozen public struct GuestOffset: Hashable, Comparable, Sendable {
  public let byteOffset: UInt64

  @inlinable public init(byteOffset: UInt64) { self.byteOffset = byteOffset }

  @inlinable public static func < (a: Self, b: Self) -> Bool { a.byteOffset < b.byteOffset }
}
