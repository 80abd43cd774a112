// SPDX-License-Identifier: Apache-2.0
//
// The chunks of a structured reply. Spec: proto.md, "Structured reply chunk message" and
// "Structured reply types". This file performs no I/O.

import BlockTypes

/// Encodes the chunks of structured replies. Each function returns the bytes it wrote and traps
/// when the span has fewer bytes at `offset`.
@frozen public enum StructuredReply {
  /// What a chunk holds. Numbers with bit 15 are errors.
  @frozen public enum ChunkType: UInt16, Sendable {
    case none = 0
    case offsetData = 1
    case offsetHole = 2
    case blockStatus = 5
    /// With extended headers only.
    case blockStatusExt = 6
    case error = 0x8001
    case errorOffset = 0x8002
  }

  /// The flag of the last chunk of a reply.
  @inlinable public static var doneFlag: UInt16 { 1 }

  @inlinable public static var headerByteCount: Int { 20 }
  @inlinable public static var offsetDataHeaderByteCount: Int { 28 }
  @inlinable public static var holeByteCount: Int { 32 }
  @inlinable public static var errorByteCount: Int { 26 }
  @inlinable public static var errorOffsetByteCount: Int { 34 }
  @inlinable public static var blockStatusHeaderByteCount: Int { 24 }
  /// Bytes of one extent in a BLOCK_STATUS chunk.
  @inlinable public static var extentByteCount: Int { 8 }

  /// Writes the 20 bytes that start each chunk.
  @inlinable public static func encodeHeader(
    flags: UInt16, type: ChunkType, cookie: UInt64, payloadByteCount: UInt32,
    into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    span.storeBigEndian(Magic.structuredReply, at: offset)
    span.storeBigEndian(flags, at: offset + 4)
    span.storeBigEndian(type.rawValue, at: offset + 6)
    span.storeBigEndian(cookie, at: offset + 8)
    span.storeBigEndian(payloadByteCount, at: offset + 16)
    return headerByteCount
  }

  /// Writes the 28 bytes before the data of an OFFSET_DATA chunk.
  ///
  /// `dataByteCount` is at least 1: an empty READ is answered with `encodeNone`.
  @inlinable public static func encodeOffsetDataHeader(
    cookie: UInt64, offset diskOffset: UInt64, dataByteCount: UInt32, isDone: Bool,
    into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    precondition(dataByteCount > 0, "an OFFSET_DATA chunk without data")
    let written = encodeHeader(
      flags: isDone ? doneFlag : 0, type: .offsetData, cookie: cookie,
      payloadByteCount: dataByteCount + 8, into: &span, at: offset)
    span.storeBigEndian(diskOffset, at: offset + written)
    return offsetDataHeaderByteCount
  }

  /// Writes an OFFSET_HOLE chunk of 32 bytes: `byteCount`, at least 1, zeroes at `diskOffset`.
  @inlinable public static func encodeHole(
    cookie: UInt64, offset diskOffset: UInt64, byteCount: UInt32, isDone: Bool,
    into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    precondition(byteCount > 0, "an OFFSET_HOLE chunk of no bytes")
    let written = encodeHeader(
      flags: isDone ? doneFlag : 0, type: .offsetHole, cookie: cookie, payloadByteCount: 12,
      into: &span, at: offset)
    span.storeBigEndian(diskOffset, at: offset + written)
    span.storeBigEndian(byteCount, at: offset + written + 8)
    return holeByteCount
  }

  /// Writes a NONE chunk of 20 bytes, which ends a reply (always DONE).
  @inlinable public static func encodeNone(
    cookie: UInt64, into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    encodeHeader(
      flags: doneFlag, type: .none, cookie: cookie, payloadByteCount: 0, into: &span, at: offset)
  }

  /// Writes an ERROR chunk of 26 bytes without text.
  @inlinable public static func encodeError(
    cookie: UInt64, error: NBDErrno, isDone: Bool, into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    precondition(error != .none, "an ERROR chunk without an error")
    let written = encodeHeader(
      flags: isDone ? doneFlag : 0, type: .error, cookie: cookie, payloadByteCount: 6,
      into: &span, at: offset)
    span.storeBigEndian(error.rawValue, at: offset + written)
    span.storeBigEndian(UInt16(0), at: offset + written + 4)
    return errorByteCount
  }

  /// Writes an ERROR_OFFSET chunk of 34 bytes without text: READ failed at `diskOffset`.
  @inlinable public static func encodeErrorOffset(
    cookie: UInt64, error: NBDErrno, offset diskOffset: UInt64, isDone: Bool,
    into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    precondition(error != .none, "an ERROR_OFFSET chunk without an error")
    let written = encodeHeader(
      flags: isDone ? doneFlag : 0, type: .errorOffset, cookie: cookie, payloadByteCount: 14,
      into: &span, at: offset)
    span.storeBigEndian(error.rawValue, at: offset + written)
    span.storeBigEndian(UInt16(0), at: offset + written + 4)
    span.storeBigEndian(diskOffset, at: offset + written + 6)
    return errorOffsetByteCount
  }

  /// Writes the 24 bytes before the extents of a BLOCK_STATUS chunk; there is at least one.
  @inlinable public static func encodeBlockStatusHeader(
    cookie: UInt64, contextID: UInt32, extentCount: Int, isDone: Bool,
    into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    precondition(extentCount > 0, "a BLOCK_STATUS chunk without extents")
    let written = encodeHeader(
      flags: isDone ? doneFlag : 0, type: .blockStatus, cookie: cookie,
      payloadByteCount: UInt32(4 + extentByteCount * extentCount), into: &span, at: offset)
    span.storeBigEndian(contextID, at: offset + written)
    return blockStatusHeaderByteCount
  }

  /// Writes the 8 bytes of one extent.
  @inlinable public static func encodeExtent(
    byteCount: UInt32, status: UInt32, into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    precondition(byteCount > 0, "an extent of no bytes")
    span.storeBigEndian(byteCount, at: offset)
    span.storeBigEndian(status, at: offset + 4)
    return extentByteCount
  }
}
