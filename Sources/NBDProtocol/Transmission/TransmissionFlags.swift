// SPDX-License-Identifier: Apache-2.0
//
// What an export can do, in the 16 bits that the handshake sends.
// Spec: proto.md, "Transmission flags". This file performs no I/O.

/// The transmission flags of an export.
@frozen public struct TransmissionFlags: OptionSet, Hashable, Sendable {
  public let rawValue: UInt16

  @inlinable public init(rawValue: UInt16) { self.rawValue = rawValue }

  @inlinable public static var hasFlags: Self { Self(rawValue: 1 << 0) }
  @inlinable public static var readOnly: Self { Self(rawValue: 1 << 1) }
  @inlinable public static var sendFlush: Self { Self(rawValue: 1 << 2) }
  @inlinable public static var sendFUA: Self { Self(rawValue: 1 << 3) }
  @inlinable public static var rotational: Self { Self(rawValue: 1 << 4) }
  @inlinable public static var sendTrim: Self { Self(rawValue: 1 << 5) }
  @inlinable public static var sendWriteZeroes: Self { Self(rawValue: 1 << 6) }
  @inlinable public static var sendDF: Self { Self(rawValue: 1 << 7) }
  @inlinable public static var canMultiConn: Self { Self(rawValue: 1 << 8) }
  @inlinable public static var sendResize: Self { Self(rawValue: 1 << 9) }
  @inlinable public static var sendCache: Self { Self(rawValue: 1 << 10) }
  @inlinable public static var sendFastZero: Self { Self(rawValue: 1 << 11) }
  @inlinable public static var blockStatusPayload: Self { Self(rawValue: 1 << 12) }
}
