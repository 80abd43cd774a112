// SPDX-License-Identifier: Apache-2.0
//
// Oldstyle: no negotiation at all, for clients that know nothing else.
// Spec: proto.md, "Oldstyle negotiation". This file performs no I/O.

extension ServerHandshake {
  /// The 152 bytes that an oldstyle server sends; the client is in the first export at once, with
  /// simple replies, and never says a word before its first request.
  ///
  /// Call it in place of `start`. Who asked for TLS must not be served like this.
  ///
  /// - Spec: proto.md, "Oldstyle negotiation": size, 32 bits of flags of which the lower half are
  ///   the transmission flags, 124 zeroes.
  public mutating func startOldstyle() -> [UInt8] {
    let traits = exports[0].traits
    var greeting: [UInt8] = []
    greeting.appendBigEndian(Magic.greeting)
    greeting.appendBigEndian(Magic.oldstyle)
    greeting.appendBigEndian(traits.byteCount)
    greeting.appendBigEndian(
      UInt32(traits.transmissionFlags(structuredReplies: false).rawValue))
    greeting.append(contentsOf: repeatElement(0, count: 124))
    enter(0, blockSizesAgreed: false)
    return greeting
  }
}
