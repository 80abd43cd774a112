// SPDX-License-Identifier: Apache-2.0
//
// The reply that carries an error number and, for READ, plain data behind it.
// Spec: proto.md, "Simple reply message". This file performs no I/O.

import BlockTypes

/// Encodes simple replies.
@frozen public enum SimpleReply {
  @inlinable public static var byteCount: Int { 16 }

  /// Writes the header at `offset`; the data of a READ that succeeded follows it.
  ///
  /// Returns 16. Traps when the span has fewer bytes there.
  @inlinable public static func encode(
    error: NBDErrno, cookie: UInt64, into span: inout MutableRawSpan, at offset: Int
  ) -> Int {
    span.storeBigEndian(Magic.simpleReply, at: offset)
    span.storeBigEndian(error.rawValue, at: offset + 4)
    span.storeBigEndian(cookie, at: offset + 8)
    return byteCount
  }
}
