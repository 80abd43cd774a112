// SPDX-License-Identifier: Apache-2.0
//
// Rounding to powers of two. This file performs no I/O.

extension UInt64 {
  /// Rounds down to a multiple of `alignment`, which is a power of two.
  @inlinable public func alignedDown(to alignment: UInt64) -> UInt64 {
    self & ~(alignment &- 1)  // a power of two is at least 1, so this cannot wrap below 0
  }

  /// Rounds up to a multiple of `alignment`, which is a power of two.
  ///
  /// Traps when the result does not fit: callers check ranges against a disk size first.
  @inlinable public func alignedUp(to alignment: UInt64) -> UInt64 {
    (self + (alignment - 1)) & ~(alignment - 1)
  }

  /// Whether this is a multiple of `alignment`, which is a power of two.
  @inlinable public func isAligned(to alignment: UInt64) -> Bool { self & (alignment &- 1) == 0 }

  /// Whether exactly one bit is set.
  @inlinable public var isPowerOfTwo: Bool { nonzeroBitCount == 1 }
}
