// SPDX-License-Identifier: Apache-2.0
//
// No negotiation at all. Spec: proto.md, "Oldstyle negotiation".

import BlockTypes
import NBDProtocol
import Testing

@Suite struct `an oldstyle handshake` {
  @Test func `is 152 bytes and over`() {
    var handshake = ServerHandshake(exports: [disk, other], limits: RequestLimits())
    let magic: [UInt8] = Array("NBDMAGIC".utf8) + [0, 0, 0x42, 0x02, 0x81, 0x86, 0x12, 0x53]
    let flags: [UInt8] = [0, 0, 0x0c, 0x6d]  // DF needs structured replies
    let greeting = handshake.startOldstyle()
    #expect(greeting.count == 152)
    #expect(
      greeting
        == magic + bigEndian(UInt64(1 << 20)) + flags + [UInt8](repeating: 0, count: 124))
    #expect(handshake.outcome == .ready(Negotiated(exportIndex: 0)))
  }

  @Test func `leaves all that the client sends to the transmission phase`() {
    var handshake = ServerHandshake(exports: [disk], limits: RequestLimits())
    _ = handshake.startOldstyle()
    let bytes = clientFlags() + goOption("disk")
    let consumed = handshake.receive(bytes.span.bytes)
    #expect(consumed == 0)
    #expect(handshake.takeOutput().isEmpty)
  }
}
