// SPDX-License-Identifier: Apache-2.0
//
// Replies on the wire. Spec: proto.md, "Simple reply message", "Structured reply chunk message",
// "Structured reply types".

import NBDProtocol
import Testing

private let cookie: UInt64 = 0x0102_0304_0506_0708
private let cookieBytes: [UInt8] = [1, 2, 3, 4, 5, 6, 7, 8]

/// Encodes at offset 3 of a buffer of 0xEE, checks its surroundings, and returns what was written.
private func encoded(
  _ encode: (inout MutableRawSpan, Int) -> Int, sourceLocation: SourceLocation = #_sourceLocation
) -> [UInt8] {
  var bytes = [UInt8](repeating: 0xee, count: 64)
  var written = 0
  do {
    var span = bytes.mutableSpan
    var raw = span.mutableBytes
    written = encode(&raw, 3)
  }
  #expect(bytes[..<3].allSatisfy { $0 == 0xee }, sourceLocation: sourceLocation)
  #expect(bytes[(3 + written)...].allSatisfy { $0 == 0xee }, sourceLocation: sourceLocation)
  return Array(bytes[3..<3 + written])
}

/// The header of a chunk: magic, flags, type, cookie, length.
private func chunk(_ flags: UInt8, _ type: [UInt8], _ count: UInt8, _ payload: [UInt8]) -> [UInt8] {
  [0x66, 0x8e, 0x33, 0xef, 0, flags] + type + cookieBytes + [0, 0, 0, count] + payload
}

@Suite struct `a reply on the wire` {
  @Test func `simple: magic, error, cookie`() {  // proto.md "Simple reply message"
    let bytes = encoded { SimpleReply.encode(error: .ENOSPC, cookie: cookie, into: &$0, at: $1) }
    #expect(bytes == [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28] + cookieBytes)
  }

  @Test func `NONE: no payload, always DONE`() {  // proto.md "NBD_REPLY_TYPE_NONE"
    let bytes = encoded { StructuredReply.encodeNone(cookie: cookie, into: &$0, at: $1) }
    #expect(bytes == chunk(1, [0, 0], 0, []))
  }

  @Test(arguments: [true, false]) func `OFFSET_DATA: offset, then data`(_ isDone: Bool) {
    // proto.md "NBD_REPLY_TYPE_OFFSET_DATA"
    let bytes = encoded {
      StructuredReply.encodeOffsetDataHeader(
        cookie: cookie, offset: 0x1000, dataByteCount: 5, isDone: isDone, into: &$0, at: $1)
    }
    #expect(bytes == chunk(isDone ? 1 : 0, [0, 1], 13, [0, 0, 0, 0, 0, 0, 0x10, 0]))
  }

  @Test(arguments: [true, false]) func `OFFSET_HOLE: offset and size`(_ isDone: Bool) {
    // proto.md "NBD_REPLY_TYPE_OFFSET_HOLE"
    let bytes = encoded {
      StructuredReply.encodeHole(
        cookie: cookie, offset: 0x1000, byteCount: 0x200, isDone: isDone, into: &$0, at: $1)
    }
    #expect(
      bytes == chunk(isDone ? 1 : 0, [0, 2], 12, [0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0]))
  }

  @Test(arguments: [true, false]) func `ERROR: number and an empty text`(_ isDone: Bool) {
    // proto.md "NBD_REPLY_TYPE_ERROR"
    let bytes = encoded {
      StructuredReply.encodeError(
        cookie: cookie, error: .EINVAL, isDone: isDone, into: &$0, at: $1)
    }
    #expect(bytes == chunk(isDone ? 1 : 0, [0x80, 1], 6, [0, 0, 0, 22, 0, 0]))
  }

  @Test(arguments: [true, false]) func `ERROR_OFFSET: an error at a place`(_ isDone: Bool) {
    // proto.md "NBD_REPLY_TYPE_ERROR_OFFSET"
    let bytes = encoded {
      StructuredReply.encodeErrorOffset(
        cookie: cookie, error: .EIO, offset: 0x2000, isDone: isDone, into: &$0, at: $1)
    }
    #expect(
      bytes
        == chunk(isDone ? 1 : 0, [0x80, 2], 14, [0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0]))
  }

  @Test func `BLOCK_STATUS: context id, then pairs of length and status`() {
    // proto.md "NBD_REPLY_TYPE_BLOCK_STATUS"
    let bytes = encoded {
      var written = StructuredReply.encodeBlockStatusHeader(
        cookie: cookie, contextID: 1, extentCount: 2, isDone: true, into: &$0, at: $1)
      written += StructuredReply.encodeExtent(
        byteCount: 0x1000, status: 3, into: &$0, at: $1 + written)
      written += StructuredReply.encodeExtent(
        byteCount: 0x200, status: 0, into: &$0, at: $1 + written)
      return written
    }
    let extents: [UInt8] = [0, 0, 0x10, 0, 0, 0, 0, 3, 0, 0, 2, 0, 0, 0, 0, 0]
    #expect(bytes == chunk(1, [0, 5], 20, [0, 0, 0, 1] + extents))
  }

  @Test func `that the specification forbids is our own mistake and traps`() async {
    await #expect(processExitsWith: .failure) {
      _ = encoded {
        StructuredReply.encodeHole(
          cookie: 0, offset: 0, byteCount: 0, isDone: true, into: &$0, at: $1)
      }
    }
    await #expect(processExitsWith: .failure) {
      _ = encoded {
        StructuredReply.encodeError(cookie: 0, error: .none, isDone: true, into: &$0, at: $1)
      }
    }
  }
}
