// SPDX-License-Identifier: Apache-2.0
//
// The shape of replies on one connection: one place that knows which encoder a reply takes.
// Spec: proto.md, "Simple reply message", "Structured reply chunk message"; its branch
// extension-ext-header, "Extended reply chunk message". This file performs no I/O.

import BlockTypes

/// What a reply repeats of its request. Only extended replies repeat the offset.
@frozen public struct RequestIdentity: Hashable, Sendable {
  public var cookie: UInt64
  public var offset: UInt64

  @inlinable public init(cookie: UInt64, offset: UInt64) {
    self.cookie = cookie
    self.offset = offset
  }
}

/// How replies are framed; the handshake fixes it for the life of a connection.
///
/// Each function returns the bytes it wrote and traps when the span has fewer bytes at `offset`,
/// or when simple replies were agreed on and a chunk is asked for.
@frozen public enum ReplyFraming: UInt8, Hashable, Sendable {
  case simple
  case structured
  case extended

  /// Whether READ and BLOCK_STATUS are answered with chunks.
  @inlinable public var hasChunks: Bool { self != .simple }

  /// The whole reply to a command that returns no data, or an error of one that would.
  ///
  /// With structured replies only READ and BLOCK_STATUS have to fail with a chunk.
  @inlinable public func encodeResult(
    _ error: NBDErrno, of command: Command?, to request: RequestIdentity,
    into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    switch self {
    case .simple: break
    case .structured:
      if error != .none, command == .read || command == .blockStatus {
        return StructuredReply.encodeError(
          cookie: request.cookie, error: error, isDone: true, into: &span, at: offset)
      }
    case .extended:
      if error == .none { return ExtendedReply.encodeNone(to: request, into: &span, at: offset) }
      return ExtendedReply.encodeError(
        to: request, error: error, isDone: true, into: &span, at: offset)
    }
    return SimpleReply.encode(error: error, cookie: request.cookie, into: &span, at: offset)
  }

  /// The header of `byteCount` bytes of data at `diskOffset`, which follow it.
  @inlinable public func encodeDataHeader(
    to request: RequestIdentity, offset diskOffset: UInt64, byteCount: UInt32, isDone: Bool,
    into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    switch self {
    case .simple: preconditionFailure("a chunk was not negotiated")
    case .structured:
      StructuredReply.encodeOffsetDataHeader(
        cookie: request.cookie, offset: diskOffset, dataByteCount: byteCount, isDone: isDone,
        into: &span, at: offset)
    case .extended:
      ExtendedReply.encodeOffsetDataHeader(
        to: request, offset: diskOffset, dataByteCount: byteCount, isDone: isDone, into: &span,
        at: offset)
    }
  }

  /// `byteCount` zeroes at `diskOffset`.
  @inlinable public func encodeHole(
    to request: RequestIdentity, offset diskOffset: UInt64, byteCount: UInt32, isDone: Bool,
    into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    switch self {
    case .simple: preconditionFailure("a chunk was not negotiated")
    case .structured:
      StructuredReply.encodeHole(
        cookie: request.cookie, offset: diskOffset, byteCount: byteCount, isDone: isDone,
        into: &span, at: offset)
    case .extended:
      ExtendedReply.encodeHole(
        to: request, offset: diskOffset, byteCount: byteCount, isDone: isDone, into: &span,
        at: offset)
    }
  }

  /// The end of a READ of no bytes.
  @inlinable public func encodeNone(
    to request: RequestIdentity, into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    switch self {
    case .simple: preconditionFailure("a chunk was not negotiated")
    case .structured:
      StructuredReply.encodeNone(cookie: request.cookie, into: &span, at: offset)
    case .extended: ExtendedReply.encodeNone(to: request, into: &span, at: offset)
    }
  }

  /// The end of a READ that failed at `diskOffset`; what lies before was sent.
  @inlinable public func encodeErrorOffset(
    to request: RequestIdentity, error: NBDErrno, offset diskOffset: UInt64,
    into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    switch self {
    case .simple: preconditionFailure("a chunk was not negotiated")
    case .structured:
      StructuredReply.encodeErrorOffset(
        cookie: request.cookie, error: error, offset: diskOffset, isDone: true, into: &span,
        at: offset)
    case .extended:
      ExtendedReply.encodeErrorOffset(
        to: request, error: error, offset: diskOffset, isDone: true, into: &span, at: offset)
    }
  }

  /// The header of `extentCount` extents of a context, which follow it.
  @inlinable public func encodeStatusHeader(
    to request: RequestIdentity, contextID: UInt32, extentCount: Int, isDone: Bool,
    into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    switch self {
    case .simple: preconditionFailure("a chunk was not negotiated")
    case .structured:
      StructuredReply.encodeBlockStatusHeader(
        cookie: request.cookie, contextID: contextID, extentCount: extentCount, isDone: isDone,
        into: &span, at: offset)
    case .extended:
      ExtendedReply.encodeBlockStatusHeader(
        to: request, contextID: contextID, extentCount: extentCount, isDone: isDone, into: &span,
        at: offset)
    }
  }

  /// Bytes of one extent behind a status header.
  @inlinable public var extentByteCount: Int {
    self == .extended ? ExtendedReply.extentByteCount : StructuredReply.extentByteCount
  }
}
