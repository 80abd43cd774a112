// SPDX-License-Identifier: Apache-2.0
//
// A half-open range of bytes. This file performs no I/O.

/// The bytes `start ..< end`.
@frozen public struct ByteRange: Hashable, Sendable {
  public let start: UInt64
  public let end: UInt64

  /// Traps when `end` lies before `start`.
  @inlinable public init(start: UInt64, end: UInt64) {
    precondition(start <= end, "a byte range ends before it starts")
    self.start = start
    self.end = end
  }

  @inlinable public var byteCount: UInt64 { end - start }
  @inlinable public var isEmpty: Bool { start == end }

  @inlinable public func overlaps(_ other: ByteRange) -> Bool {
    start < other.end && other.start < end
  }

  /// The smallest range of whole `alignment` blocks that covers this one.
  @inlinable public func roundedOut(to alignment: UInt64) -> ByteRange {
    ByteRange(start: start.alignedDown(to: alignment), end: end.alignedUp(to: alignment))
  }

  /// The largest range of whole `alignment` blocks inside this one; may be empty.
  @inlinable public func roundedIn(to alignment: UInt64) -> ByteRange {
    let first = start.alignedUp(to: alignment)
    let last = end.alignedDown(to: alignment)
    return first < last ? ByteRange(start: first, end: last) : ByteRange(start: first, end: first)
  }
}
