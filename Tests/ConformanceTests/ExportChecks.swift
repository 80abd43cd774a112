// SPDX-License-Identifier: Apache-2.0
//
// Checks of LIST, INFO, GO, EXPORT_NAME and the transmission flags, against a running server.
// Spec: proto.md, "Option types", "Transmission flags"; tests are named by their line in
// nbd-checks.

import TestSupport
import Testing

@Suite struct `LIST and STARTTLS` {
  let disk: ServedDisk
  init() throws { disk = try ServedDisk() }

  @Test func `list.basic, list.has-export, list.names-work: each name can be entered`() throws {
    let client = try disk.greeted()
    let answer = try client.ask(3)
    #expect(answer.isAck)
    let servers = try answer.servers()
    #expect(servers.count == 1)
    for server in servers {
      #expect(try client.ask(6, WireClient.infoData(server.name)).isAck)
    }
  }

  @Test func `list.data: ERR_INVALID`() throws {
    let client = try disk.greeted()
    #expect(try client.ask(3, [0]).type == OptionAnswer.invalid)
    #expect(try client.ask(3).isAck)
  }

  @Test func `starttls.notls: ERR_POLICY, and the talk goes on in plain text`() throws {
    let client = try disk.greeted()
    #expect([OptionAnswer.policy, OptionAnswer.unsup].contains(try client.ask(5).type))
    try client.go()
    #expect(try client.read(0, 16).error == 0)
  }

  @Test func `an image served alone answers to the empty name and to its own`() throws {
    for name in ["", ServedDisk.exportName] {
      let client = try disk.greeted()
      #expect(try client.go(name).size == ServedDisk.byteCount)
    }
  }
}

@Suite struct `INFO and GO of a server` {
  let disk: ServedDisk
  init() throws { disk = try ServedDisk() }

  @Test func `info.basic: the export is told, and the talk goes on`() throws {
    let client = try disk.greeted()
    #expect(try client.ask(6, WireClient.infoData("")).facts().size == ServedDisk.byteCount)
    #expect(try client.ask(3).isAck)
  }

  @Test func `info.same-as-go: GO tells what INFO told`() throws {
    for requests in [[], [3], [0, 1, 2, 3], [9, 3]] as [[UInt16]] {
      let client = try disk.greeted()
      let told = try client.ask(6, WireClient.infoData("", requests)).replies.map(\.payload)
      let entered = try client.ask(7, WireClient.infoData("", requests)).replies.map(\.payload)
      #expect(Set(told) == Set(entered))
    }
  }

  @Test func `info.unknown-type: ignored`() throws {
    let client = try disk.greeted()
    let answer = try client.ask(6, WireClient.infoData("", [4, 5, 0x7fff, 0xffff]))
    #expect(try answer.facts().size == ServedDisk.byteCount)
  }

  @Test func `info.name: the name that LIST shows`() throws {
    let client = try disk.greeted()
    let name = try #require(client.ask(3).servers().first?.name)
    let facts = try client.ask(6, WireClient.infoData("", [1])).facts()
    #expect(facts.name == name)
  }

  @Test func `info.description: the text that LIST shows`() throws {
    let client = try disk.greeted()
    let text = try #require(client.ask(3).servers().first?.description)
    let facts = try client.ask(6, WireClient.infoData("", [2])).facts()
    #expect(facts.description ?? "" == text)
  }

  @Test func `info.block-size: powers of two in their order`() throws {
    let client = try disk.greeted()
    let facts = try client.ask(6, WireClient.infoData("", [3])).facts()
    let minimum = try #require(facts.minimumBlock)
    let preferred = try #require(facts.preferredBlock)
    let maximum = try #require(facts.maximumPayload)
    #expect(minimum.nonzeroBitCount == 1 && minimum <= 65_536)
    #expect(preferred.nonzeroBitCount == 1 && preferred >= max(minimum, 512))
    #expect(maximum >= preferred && maximum >= 1 << 25)
  }

  @Test(arguments: [6, 7, 9] as [UInt32])
  func `info.unknown-export: ERR_UNKNOWN with a short text`(_ number: UInt32) throws {
    let client = try disk.greeted()
    for name in ["nope", String(repeating: "x", count: 4096), "\u{1b}[2J", "disk/"] {
      let data = number == 9 ? WireClient.metaData(name, []) : WireClient.infoData(name)
      let answer = try client.ask(number, data)
      #expect(answer.type == OptionAnswer.unknown)
      #expect(answer.replies.isEmpty)
      #expect(answer.end.payload.count <= 1000)
      #expect(answer.end.payload.allSatisfy { $0 >= 0x20 })
    }
    try client.go()
  }

  @Test(arguments: [6, 7] as [UInt32])
  func `info.trailing-junk, info.short, info.name-overrun, info.count-overrun: ERR_INVALID`(
    _ number: UInt32
  ) throws {
    let client = try disk.greeted()
    let malformed: [[UInt8]] = [
      WireClient.infoData("", [3]) + [0], [], [0, 0, 0], [0, 0, 0, 0, 0],
      wire(UInt32(1)) + [0, 0], wire(UInt32.max) + [0, 0], WireClient.infoData("", [3]).dropLast(2),
      counted("disk") + [0, 9],
    ]
    for data in malformed {
      #expect(try client.ask(number, data).type == OptionAnswer.invalid)
    }
    try client.go()
  }

  @Test func `info.overlong-name: an error in step, or the end`() throws {
    let client = try disk.greeted()
    let name = String(repeating: "n", count: 4097)
    #expect(try client.ask(7, WireClient.infoData(name)).end.isError)
    try client.go()
  }

  @Test func `go.no-padding: nothing follows the ACK`() throws {
    for flags in [1, 3] as [UInt32] {
      let client = try disk.greeted(flags: flags)
      try client.go()
      #expect(!client.socket.hasInput(within: 0.05))
      #expect(try client.read(0, 16).data == ServedDisk.expected(0, 16))
    }
  }
}

@Suite struct `EXPORT_NAME of a server` {
  let disk: ServedDisk
  init() throws { disk = try ServedDisk() }

  @Test func `export-name.zeroes: 124 zeroes unless agreed otherwise`() throws {
    let client = try disk.greeted(flags: 1)
    #expect(try client.enterByName(expectsZeroes: true).allSatisfy { $0 == 0 })
    #expect(try client.read(0, 16).data == ServedDisk.expected(0, 16))
  }

  @Test func `export-name.no-zeroes: none when agreed`() throws {
    let client = try disk.greeted(flags: 3)
    try client.enterByName(ServedDisk.exportName)
    #expect(!client.socket.hasInput(within: 0.05))
    #expect(try client.read(0, 16).data == ServedDisk.expected(0, 16))
  }

  @Test func `export-name.same-as-go: size and flags agree`() throws {
    for structured in [false, true] {
      let byName = try WireClient.entered(
        path: disk.socketPath, structured: structured, entry: .exportName)
      let byGo = try WireClient.entered(path: disk.socketPath, structured: structured)
      #expect(byName.size == byGo.size)
      #expect(byName.transmissionFlags == byGo.transmissionFlags)
    }
  }

  @Test func `export-name.after-structured: structured replies stay negotiated`() throws {
    let client = try WireClient.entered(
      path: disk.socketPath, contexts: ["base:allocation"], entry: .exportName)
    let outcome = try client.read(0, 512)
    #expect(outcome.isStructured)
    #expect(try client.call(.blockStatus, length: 4096).error == 0)
  }

  @Test func `export-name.unknown: the session ends without a byte`() throws {
    for name in [Array("nope".utf8), Array("disk\0".utf8), [0xff, 0xfe], zeroes(5000)] {
      let client = try disk.greeted()
      try client.sendOption(1, name)
      #expect(try client.socket.receiveUntilEnd().isEmpty)
    }
    #expect(try disk.serves())
  }
}

@Suite struct `the flags of a server` {
  @Test(arguments: DiskKind.allCases, [false, true])
  func `flags.*: each flag keeps its rule`(_ kind: DiskKind, _ readOnly: Bool) throws {
    let disk = try ServedDisk(kind, readOnly: readOnly)
    let simple = try disk.client(structured: false).transmissionFlags
    let structured = try disk.client().transmissionFlags
    for flags in [simple, structured] {
      #expect(flags & ExportFlag.hasFlags != 0)  // flags.has-flags
      #expect(flags & 0xe000 == 0)  // flags.no-reserved
      #expect(flags & ExportFlag.payload == 0)  // flags.payload-needs-ext
      // flags.fast-zero-needs-wz
      #expect(flags & ExportFlag.sendFastZero == 0 || flags & ExportFlag.sendWriteZeroes != 0)
      #expect((flags & ExportFlag.readOnly != 0) == readOnly)
      #expect(flags & ExportFlag.canMultiConn != 0)
    }
    #expect(simple & ExportFlag.sendDF == 0)  // flags.df-needs-structured
    #expect(structured & ExportFlag.sendDF != 0)  // flags.df-with-structured
  }
}
