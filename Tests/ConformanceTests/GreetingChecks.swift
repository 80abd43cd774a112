// SPDX-License-Identifier: Apache-2.0
//
// Checks of the greeting and of the option framing, against a running server.
// Spec: proto.md, "Handshake phase"; each test is named by its line in nbd-checks.

import TestSupport
import Testing

@Suite struct `the greeting of a server` {
  let disk: ServedDisk
  init() throws { disk = try ServedDisk() }

  @Test func `greet.no-fixed-newstyle: EXPORT_NAME alone works`() throws {
    let client = try disk.greeted(flags: 0)
    let zeroes = try client.enterByName(expectsZeroes: true)
    #expect(zeroes.allSatisfy { $0 == 0 })
    #expect(try client.read(0, 512).data == ServedDisk.expected(0, 512))
    let wrong = try disk.greeted(flags: 0)
    try wrong.sendOption(3)
    #expect(try wrong.socket.receiveUntilEnd().isEmpty)
  }
}

@Suite struct `options in general` {
  let disk: ServedDisk
  init() throws { disk = try ServedDisk() }

  @Test func `opt.unknown, opt.peek-export: ERR_UNSUP, and the next message is understood`() throws
  {
    let client = try disk.greeted()
    for number in [0, 4, 12, 99, 0x7fff_ffff, 0xffff_ffff] as [UInt32] {
      #expect(try client.ask(number).type == OptionAnswer.unsup)
    }
    try client.go()
  }

  @Test func `opt.unknown-payload: data of an unknown option is skipped`() throws {
    let client = try disk.greeted()
    for count in [1, 4096, 65_536, 1 << 20] {
      #expect(try client.ask(99, zeroes(count)).type == OptionAnswer.unsup)
    }
    try client.go()
  }

  @Test func `a client that never stops asking is cut off`() throws {  // nbd.md 1.2, option count
    let client = try disk.greeted()
    #expect(throws: WireError.self) {
      for _ in 0..<10_000 { try client.ask(77) }
    }
    #expect(try disk.serves())
  }

  @Test(arguments: [3, 7, 10, 99] as [UInt32])
  func `opt.oversize: too long is ERR_TOO_BIG or the end, at once`(_ number: UInt32) throws {
    for count in [33 << 20, 1 << 31, 0xffff_ffff] as [UInt32] {
      let client = try disk.greeted()
      try client.socket.send(Array("IHAVEOPT".utf8) + wire(number, count))
      #expect(try client.socket.receiveUntilEnd().isEmpty)
    }
    #expect(try disk.serves())
  }

  @Test func `opt.truncated-eof: closing inside an option hurts nobody`() throws {
    let bytes = WireClient.option(7, WireClient.infoData("disk", [3]))
    for count in 0..<bytes.count {
      let client = try disk.greeted()
      try client.socket.send(Array(bytes[..<count]))
    }
    #expect(try disk.serves())
    #expect(disk.daemon.isAlive)
  }

  @Test func `opt.abort, opt.abort-data: ACK, then the end`() throws {
    for data in [[], [1, 2, 3], zeroes(100_000)] as [[UInt8]] {
      let client = try disk.greeted()
      #expect(try client.ask(2, data).isAck)
      #expect(try client.socket.receiveUntilEnd().isEmpty)
    }
  }

  @Test func `several options in one segment are answered in order`() throws {
    let client = try disk.greeted()
    try client.socket.send(
      WireClient.option(99) + WireClient.option(8)
        + WireClient.option(7, WireClient.infoData("", [3])))
    #expect(try client.receiveAnswer(to: 99).type == OptionAnswer.unsup)
    #expect(try client.receiveAnswer(to: 8).isAck)
    #expect(try client.receiveAnswer(to: 7).isAck)
  }
}
