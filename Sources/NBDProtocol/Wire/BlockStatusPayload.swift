// SPDX-License-Identifier: Apache-2.0
//
// The payload by which BLOCK_STATUS asks for some of the selected contexts only. Spec: proto.md of
// the branch extension-ext-header, "NBD_CMD_BLOCK_STATUS", NBD_CMD_FLAG_PAYLOAD_LEN.
// This file performs no I/O.

import BlockTypes

/// The length that the request is about, and the contexts that it wants to know.
@frozen public struct BlockStatusPayload: Hashable, Sendable {
  public var effectByteCount: UInt64
  public var contexts: MetaContextSet

  /// Bytes of a payload that names `contextCount` contexts.
  @inlinable public static func byteCount(contextCount: Int) -> Int { 8 + 4 * contextCount }

  /// Decodes the `byteCount` bytes at `offset`; nil when they name no context, one twice, or one
  /// that is not among `selected`, or when they do not end with an id.
  ///
  /// Traps when fewer bytes are there.
  @inlinable public init?(
    decoding bytes: RawSpan, at offset: Int, byteCount: Int, selected: MetaContextSet
  ) {
    precondition(
      offset >= 0 && byteCount >= 0 && bytes.byteCount - offset >= byteCount,
      "a payload passes the end of its span")
    guard byteCount >= BlockStatusPayload.byteCount(contextCount: 1),
      byteCount <= BlockStatusPayload.byteCount(contextCount: selected.count),
      (byteCount - 8).isMultiple(of: 4)
    else { return nil }
    effectByteCount = bytes.loadBigEndian(UInt64.self, at: offset)
    contexts = []
    for place in stride(from: offset + 8, to: offset + byteCount, by: 4) {
      let id = bytes.loadBigEndian(UInt32.self, at: place)
      guard selected.contains(wireID: id), !contexts.contains(wireID: id) else { return nil }
      contexts.insert(wireID: id)
    }
  }
}
