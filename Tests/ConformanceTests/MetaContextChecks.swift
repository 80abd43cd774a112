// SPDX-License-Identifier: Apache-2.0
//
// Checks of structured replies and meta contexts, against a running server.
// Spec: proto.md, "NBD_OPT_SET_META_CONTEXT"; tests are named by their line in nbd-checks.

import TestSupport
import Testing

private let base = "base:allocation"

@Suite struct `the negotiation of structured replies and contexts` {
  let disk: ServedDisk
  init() throws { disk = try ServedDisk() }

  private func structuredClient() throws -> WireClient {
    let client = try disk.greeted()
    try client.negotiateStructuredReplies()
    return client
  }

  private func names(_ client: WireClient, _ queries: String...) throws -> [String] {
    let answer = try client.ask(9, WireClient.metaData("", queries))
    #expect(answer.isAck)
    let contexts = try answer.contexts()
    #expect(contexts.allSatisfy { $0.id == 0 })
    return contexts.map(\.name)
  }

  @Test func `structured.data: ERR_INVALID, and not negotiated`() throws {
    let client = try disk.greeted()
    #expect(try client.ask(8, [0]).type == OptionAnswer.invalid)
    try client.go()
    #expect(try client.read(0, 512).isStructured == false)
  }

  @Test func `structured.duplicate: ACK or ERR_INVALID, and still negotiated`() throws {
    let client = try structuredClient()
    #expect([OptionAnswer.ack, OptionAnswer.invalid].contains(try client.ask(8).type))
    try client.go()
    #expect(try client.read(0, 512).isStructured)
  }

  @Test func `meta.set-before-structured: ERR_INVALID`() throws {
    let client = try disk.greeted()
    #expect(
      try client.ask(10, WireClient.metaData("", [base])).type == OptionAnswer.invalid)
    try client.go()
  }

  @Test func `meta.list-before-structured: an answer or ERR_INVALID`() throws {
    let client = try disk.greeted()
    let type = try client.ask(9, WireClient.metaData("", [])).type
    #expect([OptionAnswer.ack, OptionAnswer.invalid].contains(type))
  }

  @Test func `meta.list-all: without queries, every context`() throws {
    #expect(Set(try names(structuredClient())) == [base, "qemu:allocation-depth"])
  }

  @Test func `meta.list-wildcard: a namespace stands for its contexts`() throws {
    #expect(try names(structuredClient(), "base:") == [base])
    #expect(try names(structuredClient(), "qemu:") == ["qemu:allocation-depth"])
  }

  @Test func `meta.list-exact: what is named`() throws {
    #expect(try names(structuredClient(), base) == [base])
    #expect(try names(structuredClient(), base, base) == [base])
  }

  @Test func `meta.unknown-namespace, meta.unknown-leaf: ignored, one ACK`() throws {
    let client = try structuredClient()
    #expect(try names(client, "x-none:y", "base:nope", "qemu:dirty-bitmap:none") == [])
    #expect(try client.setMetaContexts("", ["x-none:y", "base:nope"]) == [])
  }

  @Test func `meta.no-colon: ignored or ERR_INVALID, in step`() throws {
    let client = try structuredClient()
    let type = try client.ask(9, WireClient.metaData("", ["nocolon"])).type
    #expect([OptionAnswer.ack, OptionAnswer.invalid].contains(type))
    try client.go()
  }

  @Test(arguments: [9, 10] as [UInt32])
  func `meta.query-overrun, meta.trailing-junk: ERR_INVALID, in step`(_ number: UInt32) throws {
    let client = try structuredClient()
    let sound = WireClient.metaData("", [base])
    let malformed: [[UInt8]] = [
      sound + [0], sound + zeroes(9), sound.dropLast(), [], wire(UInt32.max),
      wire(UInt32(0), UInt32(1), UInt32.max) + [1], wire(UInt32(0), UInt32(2)) + counted(base),
    ]
    for data in malformed {
      #expect(try client.ask(number, data).type == OptionAnswer.invalid)
    }
    try client.go()
  }

  @Test func `meta.set: each selected context once with its id, then ACK`() throws {
    let client = try structuredClient()
    #expect(try client.setMetaContexts("", [base]) == [base])
    #expect(try client.setMetaContexts("", [base, "qemu:allocation-depth"]).count == 2)
  }

  @Test func `meta.set-wildcard: ignored`() throws {
    #expect(try structuredClient().setMetaContexts("", ["base:", "qemu:"]) == [])
  }

  @Test func `meta.set-duplicate: one context, one id`() throws {
    #expect(try structuredClient().setMetaContexts("", [base, base]) == [base])
  }

  @Test func `meta.set-zero: selects nothing`() throws {
    let client = try structuredClient()
    try client.setMetaContexts("", [base])
    #expect(try client.setMetaContexts("", []) == [])
    try client.go()
    #expect(try client.call(.blockStatus, length: 4096).error == WireErrno.invalid)
  }

  @Test func `meta.failed-set-clears: a failure leaves no context`() throws {
    let client = try structuredClient()
    try client.setMetaContexts("", [base])
    #expect(
      try client.ask(10, WireClient.metaData("nope", [base])).type == OptionAnswer.unknown)
    try client.go()
    #expect(try client.call(.blockStatus, length: 4096).error == WireErrno.invalid)
  }

  @Test func `meta.other-export: the empty name and the own name are one export`() throws {
    for (set, entered) in [("", "disk"), ("disk", "")] {
      let client = try structuredClient()
      try client.setMetaContexts(set, [base])
      try client.go(entered)
      #expect(try client.call(.blockStatus, length: 4096).error == 0)
    }
  }

  @Test(arguments: [9, 10] as [UInt32])
  func `meta.unknown-export: ERR_UNKNOWN`(_ number: UInt32) throws {
    let client = try structuredClient()
    let type = try client.ask(number, WireClient.metaData("nope", [base])).type
    #expect(type == OptionAnswer.unknown)
  }

  @Test(arguments: [9, 10] as [UInt32])
  func `meta.many-queries: ERR_TOO_BIG in step`(_ number: UInt32) throws {
    let client = try structuredClient()
    for count in [65, 1000, 20_000] {
      let queries = Array(repeating: "x:y", count: count)
      #expect(
        try client.ask(number, WireClient.metaData("", queries)).type == OptionAnswer.tooBig)
    }
    try client.go()
  }

  @Test(arguments: [9, 10] as [UInt32])
  func `meta.long-query, meta.non-utf8: an answer in step`(_ number: UInt32) throws {
    let client = try structuredClient()
    let long = "base:" + String(repeating: "q", count: 60_000)
    _ = try client.ask(number, WireClient.metaData("", [long]))
    _ = try client.ask(number, wire(UInt32(0), UInt32(1)) + counted([0x62, 0x3a, 0xff, 0xc0]))
    try client.go()
    #expect(try disk.serves())
  }
}
