// SPDX-License-Identifier: Apache-2.0
//
// A byte position in an image file. This file performs no I/O.

/// A byte offset on the host's side: a position in the file that holds a layer.
@frozen public struct HostOffset: Hashable, Comparable, Sendable {
  public let byteOffset: UInt64

  @inlinable public init(byteOffset: UInt64) { self.byteOffset = byteOffset }

  @inlinable public static func < (a: Self, b: Self) -> Bool { a.byteOffset < b.byteOffset }
}
