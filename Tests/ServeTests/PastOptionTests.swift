// SPDX-License-Identifier: Apache-2.0
//
// Faults that other NBD servers have had, replayed against the daemon: options. Each test is
// named after its fault. Source: the CVE records, and the commits that are named.

import Foundation
import TestSupport
import Testing

@Suite struct `Past faults of servers, by options`: ServedSuite {
  let fixture: ServeFixture
  let server: ServedProcess

  init() throws {
    fixture = try ServeFixture()
    server = try fixture.serve("--export-name", "disk")
  }

  @Test(arguments: [1, 6, 7] as [UInt32])
  func `CVE-2011-1925, CVE-2013-7441: a name that is not known`(option: UInt32) throws {
    for _ in 0..<20 {
      let client = try greeted()
      if option == 1 {
        try client.sendOption(1, Array("nowhere".utf8))
        #expect(try client.socket.receiveUntilEnd().isEmpty)
      } else {
        let data = WireClient.infoData("nowhere")
        #expect(try client.ask(option, data).type == OptionAnswer.unknown)
        try client.go()
      }
    }
    try expectHealth()
  }

  @Test func `CVE-2017-7539: random bytes at each state of the negotiation`() throws {
    var random = Generator(seed: 2017)
    let openings: [[UInt8]] = [
      [], wire(UInt32(3)), wire(UInt32(3)) + WireClient.option(8),
      wire(UInt32(3)) + WireClient.option(11),
      wire(UInt32(3)) + WireClient.option(7, WireClient.infoData("")),
    ]
    for round in 0..<1_000 {
      let socket = try WireSocket(connectingTo: fixture.socket)
      try socket.send(openings[round % openings.count] + random.bytes(upTo: 64))
      if round % 3 == 0 { socket.shutDownSending() }
    }
    try expectHealth()
  }

  @Test func `CVE-2017-9524: clients that say nothing or rubbish, and close`() throws {
    var random = Generator(seed: 9524)
    for round in 0..<1_000 {
      let socket = try WireSocket(connectingTo: fixture.socket)
      if round % 2 == 0 { try socket.send(random.bytes(upTo: 200)) }
      if round % 3 == 0 { socket.abandon() }
    }
    try expectHealth()
  }

  @Test(arguments: [0, 255, 256, 257, 4_095, 4_096, 4_097, 65_536])
  func `CVE-2017-15118: export names of every length`(count: Int) throws {
    let name = String(repeating: "n", count: count)
    for option in [6, 7, 9, 10] as [UInt32] {
      let client = try greeted()
      try client.negotiateStructuredReplies()
      let isQuery = option > 7
      let data = isQuery ? WireClient.metaData(name, []) : WireClient.infoData(name)
      let expected =
        count == 0
        ? OptionAnswer.ack : count <= 4_096 ? OptionAnswer.unknown : OptionAnswer.invalid
      #expect(try client.ask(option, data).type == expected, "option \(option)")
      if option != 7 || count > 0 { try client.go() }
    }
    let client = try greeted()
    try client.sendOption(1, Array(name.utf8))
    if count > 0 { #expect(try client.socket.receiveUntilEnd().isEmpty) }
    try expectHealth()
  }

  @Test(arguments: [[0], [0x64, 0], [0xff], [0xc0, 0x80], [0xed, 0xa0, 0x80]] as [[UInt8]])
  func `CVE-2017-15118: export names that are no strings`(name: [UInt8]) throws {
    for option in [6, 7, 9, 10] as [UInt32] {
      let client = try greeted()
      try client.negotiateStructuredReplies()
      let rest: [UInt8] = option > 7 ? [0, 0, 0, 0] : [0, 0]
      #expect(try client.ask(option, counted(name) + rest).type == OptionAnswer.invalid)
      try client.go()
    }
    let client = try greeted()
    try client.sendOption(1, name)
    #expect(try client.socket.receiveUntilEnd().isEmpty)
    try expectHealth()
  }

  @Test(arguments: [1 << 20, 1 << 31, 0xffff_ffff] as [UInt32])
  func `CVE-2017-15119: options of gigabytes are not read`(count: UInt32) throws {
    for option in [3, 7, 99] as [UInt32] {
      let client = try greeted()
      try client.socket.send(Array("IHAVEOPT".utf8) + wire(option, count))
      guard count > 1 << 20 else {
        try client.socket.send([UInt8](repeating: 0, count: Int(count)))
        #expect(try client.receiveAnswer(to: option).type >= 1 << 31)
        try client.go()
        continue
      }
      #expect(try client.socket.receiveUntilEnd().isEmpty, "option \(option)")
    }
    try expectHealth()
  }

  @Test func `CVE-2019-14851: every order of LIST, INFO, SET_META_CONTEXT and GO`() throws {
    let steps: [(option: UInt32, data: [UInt8])] = [
      (3, []), (6, WireClient.infoData("disk")), (6, WireClient.infoData("nowhere")),
      (10, WireClient.metaData("disk", ["base:allocation"])),
      (7, WireClient.infoData("nowhere")),
    ]
    for order in permutations(Array(steps.indices)) {
      let client = try greeted()
      try client.negotiateStructuredReplies()
      for index in order + order {
        let type = try client.ask(steps[index].option, steps[index].data).type
        let expected = index == 2 || index == 4 ? OptionAnswer.unknown : OptionAnswer.ack
        #expect(type == expected, "\(order), step \(index)")
      }
      try client.go("disk")
      #expect(try client.read(0, 512).error == 0)
    }
    try expectHealth()
  }

  @Test(arguments: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] as [UInt32])
  func `CVE-2020-10761: error texts stay short whatever the name`(option: UInt32) throws {
    for name in ["n", "\u{1b}", "ü", "\u{1f600}"] {
      let long = String(repeating: name, count: 4_096 / name.utf8.count)
      let data =
        switch option {
        case 1: Array(long.utf8)
        case 9, 10: WireClient.metaData(long, [long])
        default: WireClient.infoData(long)
        }
      let client = try greeted()
      try client.negotiateStructuredReplies()
      try client.sendOption(option, data)
      if option == 1 {
        #expect(try client.socket.receiveUntilEnd().isEmpty)
        continue
      }
      let answer = try client.receiveAnswer(to: option)
      #expect(option == 2 || answer.end.isError)
      #expect(answer.end.payload.count <= 512, "\(answer.end.payload.count) bytes")
    }
    try expectHealth()
  }

  @Test func `CVE-2022-26495: inner lengths beyond the outer ones`() throws {
    let name = Array("disk".utf8)
    for option in [6, 7, 9, 10] as [UInt32] {
      let tail: [UInt8] = option > 7 ? [0, 0, 0, 0] : [0, 0]
      for count in [5, 7, 9, 11, 4_096, 0x7fff_ffff, 0xffff_fffb, 0xffff_ffff] as [UInt32] {
        let client = try greeted()
        try client.negotiateStructuredReplies()
        #expect(
          try client.ask(option, wire(count) + name + tail).type == OptionAnswer.invalid,
          "option \(option), \(count)")
        try client.go()
      }
      for queries in [1, 2, 0xffff_ffff] as [UInt32] where option > 7 {
        let client = try greeted()
        try client.negotiateStructuredReplies()
        let data = counted(name) + wire(queries, UInt32.max)
        #expect(try client.ask(option, data).isAck == false)
        try client.go()
      }
    }
    try expectHealth()
  }

  @Test func `CVE-2022-26495: EXPORT_NAME of 2^32-1 bytes`() throws {
    let client = try greeted()
    try client.socket.send(Array("IHAVEOPT".utf8) + wire(1 as UInt32, UInt32.max))
    #expect(try client.socket.receiveUntilEnd().isEmpty)
    try expectHealth()
  }

  @Test func `CVE-2022-26496: 65,535 information requests, twice the same, odd sizes`() throws {
    let name = counted("disk")
    let all = (0...UInt16(65_534)).flatMap { wire($0) }
    let same = [[UInt8]](repeating: [0, 3], count: 65_535).flatMap { $0 }
    for option in [6, 7] as [UInt32] {
      for requests in [all, same] {
        let client = try greeted()
        #expect(try client.ask(option, name + wire(UInt16(65_535)) + requests).isAck)
        if option == 6 { try client.go() }
        #expect(try client.read(0, 512).error == 0)
        let other = try greeted()
        let odd = name + wire(UInt16(65_535)) + requests.dropLast()
        #expect(try other.ask(option, odd).type == OptionAnswer.invalid)
        try other.go()
      }
    }
    try expectHealth()
  }

  @Test(arguments: [9, 10] as [UInt32])
  func `qemu work item 4843: bytes behind the last query of META_CONTEXT`(option: UInt32) throws {
    for extra in [1, 3, 4, 100, 65_536] {
      let client = try greeted()
      try client.negotiateStructuredReplies()
      let data = WireClient.metaData("disk", ["base:allocation"])
      let answer = try client.ask(option, data + [UInt8](repeating: 0, count: extra))
      #expect(answer.type == OptionAnswer.invalid)
      try client.go()
      #expect(try client.call(.blockStatus, length: 4_096).error == WireErrno.invalid)
    }
    try expectHealth()
  }
}

@Suite struct `Past faults of servers that require TLS` {
  @Test func `nbdkit@282c3b03: the data of a refused option is taken out of the stream`() throws {
    let fixture = try TLSFixture()
    let server = try fixture.start(keys: "anybody:0123456789abcdef0123456789abcdef\n")
    for option in [3, 4, 6, 7, 8, 9, 10, 11, 99] as [UInt32] {
      for count in [0, 1, 6, 4_096, 1 << 20] {
        let client = try WireClient(path: fixture.socket)
        try client.greet()
        let answer = try client.ask(option, [UInt8](repeating: 0x49, count: count))
        #expect(answer.type == 0x8000_0005, "option \(option) with \(count) bytes")
        #expect(try client.ask(5).isAck)
      }
    }
    #expect(server.isAlive)
    #expect(server.stop() == 0)
  }
}

/// All orders of a few things.
private func permutations(_ items: [Int]) -> [[Int]] {
  guard let first = items.first else { return [[]] }
  return permutations(Array(items.dropFirst())).flatMap { rest in
    (0...rest.count).map { Array(rest[..<$0]) + [first] + Array(rest[$0...]) }
  }
}

/// SplitMix64: the same bytes for the same seed.
private struct Generator: RandomNumberGenerator {
  private var state: UInt64

  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
    return mixed ^ (mixed >> 31)
  }

  mutating func bytes(upTo count: Int) -> [UInt8] {
    (0..<Int.random(in: 0...count, using: &self)).map { _ in UInt8.random(in: 0...255, using: &self)
    }
  }
}
