// SPDX-License-Identifier: Apache-2.0
//
// A server without negotiation, and clients that know no other way. Spec: proto.md, "Oldstyle
// negotiation".

import Foundation
import TestSupport
import Testing

@Suite struct `An oldstyle server` {
  @Test func `serves who waits for size and flags and sends requests at once`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve("--oldstyle")
    let client = try WireClient(path: fixture.socket)
    let greeting = try client.socket.receive(152)
    #expect(greeting.prefix(16).elementsEqual(Array("NBDMAGIC".utf8) + wire(0x4202_8186_1253)))
    #expect(greeting[16..<24].elementsEqual(wire(UInt64(1 << 20))))
    #expect(greeting[28...].allSatisfy { $0 == 0 })
    #expect(try client.write(4_096, [1, 2, 3]) == 0)
    let outcome = try client.read(4_095, 5)
    #expect(outcome.data == [0, 1, 2, 3, 0])
    #expect(!outcome.isStructured)
    #expect(try client.call(.read, flags: WireFlag.dontFragment, length: 9).error == 22)
    try client.disconnect()
    #expect(server.stop() == 0)
  }

  @Test func `serves QEMU`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve("--oldstyle")
    let target = "nbd:unix:\(fixture.socket)"
    try run("qemu-io", "-f", "raw", "-c", "write -P 9 64k 64k", "-c", "flush", target)
    try run("qemu-img", "compare", "-f", "raw", "-F", "raw", fixture.image, target)
    #expect(server.stop() == 0)
  }

  @Test func `is not what anybody gets who did not ask for it`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve()
    let client = try WireClient(path: fixture.socket)
    try client.greet()
    #expect(client.handshakeFlags == 3)
    #expect(server.stop() == 0)
  }

  @Test func `prints no drive line, whose export name QEMU would refuse`() throws {
    let fixture = try ServeFixture()
    let text = try ServeFixture.refusal(fixture.arguments + ["--oldstyle", "--print-drive"])
    #expect(text.contains("--print-drive"))
  }
}
