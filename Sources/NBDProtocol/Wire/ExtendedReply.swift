// SPDX-License-Identifier: Apache-2.0
//
// The chunks of an extended reply: those of a structured one with a header of 32 bytes, which
// repeats the offset of the request and counts the payload in 64 bits. Spec: proto.md of the branch
// extension-ext-header, "Extended reply chunk message". This file performs no I/O.

import BlockTypes

/// Encodes the chunks of extended replies. Each function returns the bytes it wrote and traps when
/// the span has fewer bytes at `offset`.
@frozen public enum ExtendedReply {
  @inlinable public static var headerByteCount: Int { 32 }
  @inlinable public static var offsetDataHeaderByteCount: Int { 40 }
  @inlinable public static var holeByteCount: Int { 44 }
  @inlinable public static var errorByteCount: Int { 38 }
  @inlinable public static var errorOffsetByteCount: Int { 46 }
  @inlinable public static var blockStatusHeaderByteCount: Int { 40 }
  /// Bytes of one extent in a BLOCK_STATUS_EXT chunk.
  @inlinable public static var extentByteCount: Int { 16 }

  /// Writes the 32 bytes that start each chunk.
  @inlinable public static func encodeHeader(
    flags: UInt16, type: StructuredReply.ChunkType, to request: RequestIdentity,
    payloadByteCount: UInt64, into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    span.storeBigEndian(Magic.extendedReply, at: offset)
    span.storeBigEndian(flags, at: offset + 4)
    span.storeBigEndian(type.rawValue, at: offset + 6)
    span.storeBigEndian(request.cookie, at: offset + 8)
    span.storeBigEndian(request.offset, at: offset + 16)
    span.storeBigEndian(payloadByteCount, at: offset + 24)
    return headerByteCount
  }

  /// Writes the 40 bytes before the data of an OFFSET_DATA chunk, at least one byte.
  @inlinable public static func encodeOffsetDataHeader(
    to request: RequestIdentity, offset diskOffset: UInt64, dataByteCount: UInt32, isDone: Bool,
    into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    precondition(dataByteCount > 0, "an OFFSET_DATA chunk without data")
    let written = encodeHeader(
      flags: isDone ? StructuredReply.doneFlag : 0, type: .offsetData, to: request,
      payloadByteCount: UInt64(dataByteCount) + 8, into: &span, at: offset)
    span.storeBigEndian(diskOffset, at: offset + written)
    return offsetDataHeaderByteCount
  }

  /// Writes an OFFSET_HOLE chunk of 44 bytes; its size, at least 1, has 32 bits here too.
  @inlinable public static func encodeHole(
    to request: RequestIdentity, offset diskOffset: UInt64, byteCount: UInt32, isDone: Bool,
    into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    precondition(byteCount > 0, "an OFFSET_HOLE chunk of no bytes")
    let written = encodeHeader(
      flags: isDone ? StructuredReply.doneFlag : 0, type: .offsetHole, to: request,
      payloadByteCount: 12, into: &span, at: offset)
    span.storeBigEndian(diskOffset, at: offset + written)
    span.storeBigEndian(byteCount, at: offset + written + 8)
    return holeByteCount
  }

  /// Writes a NONE chunk of 32 bytes: alone it is success, and it is always DONE.
  @inlinable public static func encodeNone(
    to request: RequestIdentity, into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    encodeHeader(
      flags: StructuredReply.doneFlag, type: .none, to: request, payloadByteCount: 0, into: &span,
      at: offset)
  }

  /// Writes an ERROR chunk of 38 bytes without text.
  @inlinable public static func encodeError(
    to request: RequestIdentity, error: NBDErrno, isDone: Bool, into span: inout MutableRawSpan,
    at offset: Int
  ) -> Int {
    precondition(error != .none, "an ERROR chunk without an error")
    let written = encodeHeader(
      flags: isDone ? StructuredReply.doneFlag : 0, type: .error, to: request,
      payloadByteCount: 6, into: &span, at: offset)
    span.storeBigEndian(error.rawValue, at: offset + written)
    span.storeBigEndian(UInt16(0), at: offset + written + 4)
    return errorByteCount
  }

  /// Writes an ERROR_OFFSET chunk of 46 bytes without text: READ failed at `diskOffset`.
  @inlinable public static func encodeErrorOffset(
    to request: RequestIdentity, error: NBDErrno, offset diskOffset: UInt64, isDone: Bool,
    into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    precondition(error != .none, "an ERROR_OFFSET chunk without an error")
    let written = encodeHeader(
      flags: isDone ? StructuredReply.doneFlag : 0, type: .errorOffset, to: request,
      payloadByteCount: 14, into: &span, at: offset)
    span.storeBigEndian(error.rawValue, at: offset + written)
    span.storeBigEndian(UInt16(0), at: offset + written + 4)
    span.storeBigEndian(diskOffset, at: offset + written + 6)
    return errorOffsetByteCount
  }

  /// Writes the 40 bytes before the extents of a BLOCK_STATUS_EXT chunk; there is at least one.
  @inlinable public static func encodeBlockStatusHeader(
    to request: RequestIdentity, contextID: UInt32, extentCount: Int, isDone: Bool,
    into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    precondition(extentCount > 0, "a BLOCK_STATUS_EXT chunk without extents")
    let written = encodeHeader(
      flags: isDone ? StructuredReply.doneFlag : 0, type: .blockStatusExt, to: request,
      payloadByteCount: UInt64(8 + extentByteCount * extentCount), into: &span, at: offset)
    span.storeBigEndian(contextID, at: offset + written)
    span.storeBigEndian(UInt32(extentCount), at: offset + written + 4)
    return blockStatusHeaderByteCount
  }

  /// Writes the 16 bytes of one extent. The status of every context we know has 32 bits.
  @inlinable public static func encodeExtent(
    _ extent: Extent, into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    precondition(extent.byteCount > 0, "an extent of no bytes")
    span.storeBigEndian(extent.byteCount, at: offset)
    span.storeBigEndian(UInt64(extent.status), at: offset + 8)
    return extentByteCount
  }
}
