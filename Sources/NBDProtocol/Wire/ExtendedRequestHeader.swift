// SPDX-License-Identifier: Apache-2.0
//
// Both headers of a request as a client sends them. Spec: proto.md, "Request message"; the draft
// of extended headers, "Extended request message". This file performs no I/O.

extension RequestHeader {
  /// Appends this header to `bytes`, compact (28 bytes) or extended (32 bytes).
  ///
  /// Traps when a compact header cannot hold the length: the client's rules checked it.
  public func append(to bytes: inout [UInt8], isExtended: Bool) {
    precondition(
      isExtended || length <= UInt64(UInt32.max), "a compact header cannot hold the length")
    bytes.appendBigEndian(isExtended ? Magic.extendedRequest : Magic.request)
    bytes.appendBigEndian(flags.rawValue)
    bytes.appendBigEndian(command)
    bytes.appendBigEndian(cookie)
    bytes.appendBigEndian(offset)
    if isExtended {
      bytes.appendBigEndian(length)
    } else {
      bytes.appendBigEndian(UInt32(length))
    }
  }
}
