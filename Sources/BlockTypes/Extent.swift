// SPDX-License-Identifier: Apache-2.0
//
// A run of equal status, as BLOCK_STATUS and `map` report it. This file performs no I/O.

/// A maximal run of bytes whose status is the same.
@frozen public struct Extent: Hashable, Sendable {
  public var byteCount: UInt64
  /// The meaning belongs to the meta context that reports it.
  public var status: UInt32

  @inlinable public init(byteCount: UInt64, status: UInt32) {
    self.byteCount = byteCount
    self.status = status
  }
}
