// SPDX-License-Identifier: Apache-2.0
//
// The header of a request in the transmission phase, compact and extended. Spec: proto.md,
// "Request message"; its extension-ext-header branch, "Extended request message".
// This file performs no I/O.

import BlockTypes

/// One request as it came from the client: nothing but its magic has been checked.
///
/// `length` is wider than the compact header's 32 bits, so that extended headers fit here too. It
/// is the length of the effect, or of the payload where one follows.
@frozen public struct RequestHeader: Hashable, Sendable {
  public var flags: CommandFlags
  /// The number of the command, known or not.
  public var command: UInt16
  /// The client's name for the request, returned as it came.
  public var cookie: UInt64
  public var offset: UInt64
  public var length: UInt64

  @inlinable public init(
    flags: CommandFlags = [], command: UInt16, cookie: UInt64, offset: UInt64, length: UInt64
  ) {
    self.flags = flags
    self.command = command
    self.cookie = cookie
    self.offset = offset
    self.length = length
  }

  /// Bytes of a compact header on the wire.
  @inlinable public static var byteCount: Int { 28 }

  /// Decodes the 28 bytes at `offset`; nil when they do not start with the request magic.
  ///
  /// Traps when fewer than 28 bytes are there.
  @inlinable public init?(decoding bytes: RawSpan, at offset: Int) {
    precondition(
      offset >= 0 && bytes.byteCount - offset >= RequestHeader.byteCount,
      "a request header passes the end of its span")
    guard bytes.loadBigEndian(UInt32.self, at: offset) == Magic.request else { return nil }
    self.flags = CommandFlags(rawValue: bytes.loadBigEndian(UInt16.self, at: offset + 4))
    self.command = bytes.loadBigEndian(UInt16.self, at: offset + 6)
    self.cookie = bytes.loadBigEndian(UInt64.self, at: offset + 8)
    self.offset = bytes.loadBigEndian(UInt64.self, at: offset + 16)
    self.length = UInt64(bytes.loadBigEndian(UInt32.self, at: offset + 24))
  }

  /// Bytes of an extended header on the wire.
  @inlinable public static var extendedByteCount: Int { 32 }

  /// Decodes the 32 bytes of an extended header at `offset`; nil when they do not start with its
  /// magic.
  ///
  /// The layout is the compact one with a length of 64 bits. Traps when fewer bytes are there.
  @inlinable public init?(decodingExtended bytes: RawSpan, at offset: Int) {
    precondition(
      offset >= 0 && bytes.byteCount - offset >= RequestHeader.extendedByteCount,
      "an extended request header passes the end of its span")
    guard bytes.loadBigEndian(UInt32.self, at: offset) == Magic.extendedRequest else { return nil }
    self.flags = CommandFlags(rawValue: bytes.loadBigEndian(UInt16.self, at: offset + 4))
    self.command = bytes.loadBigEndian(UInt16.self, at: offset + 6)
    self.cookie = bytes.loadBigEndian(UInt64.self, at: offset + 8)
    self.offset = bytes.loadBigEndian(UInt64.self, at: offset + 16)
    self.length = bytes.loadBigEndian(UInt64.self, at: offset + 24)
  }
}
