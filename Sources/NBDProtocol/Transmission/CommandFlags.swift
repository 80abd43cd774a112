// SPDX-License-Identifier: Apache-2.0
//
// The flags of one request. Spec: proto.md, "Command flags". This file performs no I/O.

/// The flags of a request as sent, known or not.
@frozen public struct CommandFlags: OptionSet, Hashable, Sendable {
  public let rawValue: UInt16

  @inlinable public init(rawValue: UInt16) { self.rawValue = rawValue }

  /// The reply is sent when the data is durable.
  @inlinable public static var fua: Self { Self(rawValue: 1 << 0) }
  /// WRITE_ZEROES keeps the range provisioned.
  @inlinable public static var noHole: Self { Self(rawValue: 1 << 1) }
  /// READ is answered with at most one content chunk.
  @inlinable public static var dontFragment: Self { Self(rawValue: 1 << 2) }
  /// BLOCK_STATUS is answered with exactly one extent for each context.
  @inlinable public static var requestOne: Self { Self(rawValue: 1 << 3) }
  /// WRITE_ZEROES is fast or fails with ENOTSUP.
  @inlinable public static var fastZero: Self { Self(rawValue: 1 << 4) }
  /// `length` counts a payload; only with extended headers.
  @inlinable public static var payloadLength: Self { Self(rawValue: 1 << 5) }
}
