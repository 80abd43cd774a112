// SPDX-License-Identifier: Apache-2.0
//
// The golden tables of Tests/NBDProtocolTests against a running server: a slice of them, for what
// lies between the machines and the socket. Spec: proto.md, "Handshake phase", "Transmission
// phase".

import TestSupport
import Testing

/// The answers of Golden/handshake.txt by state, option and label.
private struct OptionTable {
  private var answers: [String: String] = [:]

  init() throws {
    var state = ""
    for line in try GoldenTable("handshake.txt").lines() {
      if line.hasPrefix("== ") {
        state = String(line.dropFirst(3))
      } else if let open = line.firstIndex(of: "["), let close = line.firstIndex(of: "]") {
        let option = line[..<open].dropLast()
        let answer = line[close...].dropFirst(2)
        for label in line[line.index(after: open)..<close].split(separator: "|") {
          answers["\(state)/\(option)/\(label)"] = String(answer)
        }
      }
    }
  }

  func answer(_ state: HandshakeState, _ one: OptionCase) throws -> String {
    try #require(answers["\(state.name)/\(one.name)/\(one.label)"], "\(state): \(one)")
  }
}

/// The states that a client can bring about in plain text.
private let states = HandshakeState.all(export: ServedDisk.exportName).filter {
  !$0.isStopping && !$0.isSecure && $0.access == .open
}

private func serve(_ state: HandshakeState) throws -> ServedDisk {
  switch state.tls {
  case .off: return try ServedDisk()
  case .offered: return try ServedDisk(tls: "offered")
  case .required: return try ServedDisk(tls: "required")
  }
}

extension ServedDisk {
  /// A disk on offer with TLS by keys, which no client here has.
  convenience init(tls: String) throws {
    let keys = try TemporaryFolder()
    try "anybody:0123456789abcdef0123456789abcdef\n".write(
      toFile: keys.path("keys.psk"), atomically: false, encoding: .utf8)
    try self.init(.raw, "--tls-psk", keys.path("keys.psk"), "--tls", tls)
  }

  /// A client in `state`.
  fileprivate func client(in state: HandshakeState) throws -> WireClient {
    let client = try greeted(flags: state.flags)
    for option in state.opening {
      try client.socket.send(option)
      var answer = try client.receiveOptionReply()
      while answer.type == OptionAnswer.metaContext { answer = try client.receiveOptionReply() }
      guard answer.type == OptionAnswer.ack else { throw WireError.violation(answer.text) }
    }
    return client
  }
}

@Suite struct `the golden table of the handshake` {
  private let table: OptionTable
  init() throws { table = try OptionTable() }

  @Test(arguments: states) private func `holds over a socket`(_ state: HandshakeState) throws {
    let disk = try serve(state)
    for option in OptionCase.options {
      for one in OptionCase.all(of: option, export: ServedDisk.exportName) {
        try check(one, state, disk, piecesOf: one.bytes.count)
      }
    }
    #expect(try disk.daemon.isAlive && (state.tls == .required || disk.serves()))
  }

  @Test(arguments: states.filter { $0.isFixed })
  private func `holds one byte at a time`(_ state: HandshakeState) throws {
    let disk = try serve(state)
    for option in OptionCase.options {
      let cases = OptionCase.all(of: option, export: ServedDisk.exportName)
      for one in cases where ["0", "exact", "exact+1"].contains(one.label) {
        try check(one, state, disk, piecesOf: 1)
      }
    }
  }

  /// Sends the case, and behind it what shows whether the stream is in step.
  private func check(
    _ one: OptionCase, _ state: HandshakeState, _ disk: ServedDisk, piecesOf pieceCount: Int
  ) throws {
    let expected = try table.answer(state, one)
    if expected.hasSuffix("TLS") { return }  // Tests/ServeTests goes on from here
    let client = try disk.client(in: state)
    for start in stride(from: 0, to: one.bytes.count, by: pieceCount) {
      let end = min(start + pieceCount, one.bytes.count)
      // Who is cut off at the header cannot send the rest.
      do { try client.socket.send(Array(one.bytes[start..<end])) } catch WireError.ended { break }
    }
    let parts = expected.split(separator: ";", maxSplits: 1).map(String.init)
    if parts.count == 2, parts[1].hasPrefix(" transmission: ") {
      try checkTransmission(client, parts[0], String(parts[1].dropFirst(15)), one, state)
    } else if expected.hasPrefix("hang-up: ") {
      // What comes behind cannot bring the connection back.
      do { try client.socket.send(WireClient.option(2)) } catch WireError.ended {}
      #expect(try client.socket.receiveUntilEnd().isEmpty, "\(state): \(one)")
    } else {
      if parts.count == 1 { try client.socket.send(WireClient.option(2)) }
      let text = try AnswerText.of(client.socket.receiveUntilEnd())
      let wanted = parts.count == 1 ? "\(expected), ACK" : parts[0]
      #expect(text == wanted, "\(state): \(one)")
    }
  }

  /// Reads, in the framing that was agreed on, and says goodbye.
  private func checkTransmission(
    _ client: WireClient, _ replies: String, _ framing: String, _ one: OptionCase,
    _ state: HandshakeState
  ) throws {
    let isExtended = framing.hasPrefix("extended")
    let isSimple = framing.hasPrefix("simple")
    let requests =
      isExtended
      ? WireClient.extendedHeader(0, cookie: 7, offset: 4096, length: 16)
        + WireClient.extendedHeader(2, cookie: 8)
      : WireClient.header(0, cookie: 7, offset: 4096, length: 16) + WireClient.header(2, cookie: 8)
    try client.socket.send(requests)
    var bytes = try client.socket.receiveUntilEnd()
    let replyByteCount = isExtended ? 56 : isSimple ? 32 : 44
    guard bytes.count > replyByteCount else {
      Issue.record("\(bytes.count) bytes came: \(state), \(one)")
      return
    }
    let reply = bytes.suffix(replyByteCount)
    bytes.removeLast(replyByteCount)
    #expect(try AnswerText.of(bytes) == replies, "\(state): \(one)")
    let magic = wire(isExtended ? 0x6e8a_278c : isSimple ? 0x6744_6698 : 0x668e_33ef as UInt32)
    #expect(reply.starts(with: magic), "\(state): \(one)")
    #expect(Array(reply.suffix(16)) == ServedDisk.expected(4096, 16), "\(state): \(one)")
  }
}

@Suite struct `a client that leaves in the middle` {
  @Test(arguments: states) private func `of any option, at any byte, hurts nobody`(
    _ state: HandshakeState
  ) throws {
    // CVE-2013-7441, CVE-2017-9524: clients that leave during negotiation
    let disk = try serve(state)
    for option in OptionCase.options {
      let cases = OptionCase.all(of: option, export: ServedDisk.exportName)
      let one = try #require(cases.first { $0.label == "exact" } ?? cases.first)
      for count in 0..<one.bytes.count {
        let client = try disk.client(in: state)
        try client.socket.send(Array(one.bytes[..<count]))
      }
    }
    #expect(disk.daemon.isAlive)
    if state.tls != .required { #expect(try disk.serves()) }
  }

  @Test(arguments: [false, true])
  func `of a request, at any byte, hurts nobody`(_ isExtended: Bool) throws {
    let disk = try ServedDisk()
    let good = try disk.client()
    let payload = filler(48)
    for command in WireCommand.allCases {
      let data = command == .write ? payload : []
      let length = command == .flush || command == .disconnect ? 0 : 48
      let bytes =
        isExtended
        ? WireClient.extendedHeader(command.rawValue, cookie: 1, offset: 0, length: UInt64(length))
        : WireClient.header(command.rawValue, cookie: 1, offset: 0, length: UInt32(length))
      for count in 0..<bytes.count + data.count {
        let client = try disk.client(extended: isExtended)
        try client.socket.send(Array((bytes + data)[..<count]))
      }
      #expect(try good.read(4096, 512).data == ServedDisk.expected(4096, 512))
    }
    #expect(try disk.serves())
  }
}

/// What the handshake agreed on, and the kind of export.
private struct Setting: CustomStringConvertible {
  var framing: String
  var isReadOnly: Bool
  var blockByteCount: Int

  static let all: [Setting] = ["simple", "structured", "extended"].flatMap { framing in
    [false, true].flatMap { isReadOnly in
      [1, 4096].map { Setting(framing: framing, isReadOnly: isReadOnly, blockByteCount: $0) }
    }
  }

  var isExtended: Bool { framing == "extended" }

  var description: String {
    "\(framing), \(isReadOnly ? "read-only" : "writable"), blocks of \(blockByteCount)"
  }

  func serve() throws -> ServedDisk {
    try ServedDisk(.raw, readOnly: isReadOnly, "--block-size", "\(blockByteCount)")
  }

  func client(of disk: ServedDisk) throws -> WireClient {
    let client = try disk.client(
      structured: framing == "structured", extended: isExtended,
      contexts: framing == "simple" ? [] : ["base:allocation", "qemu:allocation-depth"])
    client.countsPayloads = false
    return client
  }
}

@Suite struct `the golden table of requests` {
  private static let names = [
    "READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE", "WRITE_ZEROES", "BLOCK_STATUS", "RESIZE",
    "9", "65535",
  ]
  private static let numbers: [String: UInt32] = [
    "EPERM": 1, "EINVAL": 22, "ENOSPC": 28, "EOVERFLOW": 75,
  ]

  @Test(arguments: Setting.all) private func `holds over a socket`(_ setting: Setting) throws {
    let table = try RequestTable()
    let disk = try setting.serve()
    let client = try setting.client(of: disk)
    let combinations: [UInt16] = [
      0, WireFlag.fua, WireFlag.noHole, WireFlag.dontFragment, WireFlag.requestOne,
      WireFlag.fastZero, WireFlag.payloadLength, WireFlag.payloadLength | WireFlag.fua, 0x3f,
      1 << 6,
      1 << 15,
    ]
    for (index, name) in Self.names.enumerated() where name != "DISC" {
      let command = name == "65535" ? UInt16.max : UInt16(index)
      for flags in combinations {
        for place in RequestPlace.all(setting.isExtended, byteCount: ServedDisk.byteCount) {
          let subject = "\(setting): \(name) with \(flags), \(place)"
          let verdict = try #require(
            table.verdict("\(setting)", name, flags: flags, at: place), "\(subject)")
          try check(verdict, command, flags, place, subject, client, setting, disk)
        }
      }
    }
    // After a thousand refusals on one connection the stream is in step.
    #expect(try client.read(4096, 4096).error == 0)
    try client.disconnect()
    #expect(disk.daemon.isAlive)
  }

  private func check(
    _ verdict: String, _ command: UInt16, _ flags: UInt16, _ place: RequestPlace,
    _ subject: String, _ client: WireClient, _ setting: Setting, _ disk: ServedDisk
  ) throws {
    if verdict == "hang up" {
      let other = try setting.client(of: disk)
      let request = other.prepareWide(
        command, flags: flags, offset: place.offset, length: place.length)
      try other.socket.send(request.bytes)
      #expect(try other.socket.receiveUntilEnd().isEmpty, "\(subject)")
      return
    }
    var payloadByteCount: UInt64 = 0
    let counts = setting.isExtended && flags & WireFlag.payloadLength != 0
    if verdict.contains("dropped") || verdict.hasPrefix("take") || verdict == "do write" || counts {
      payloadByteCount = place.length
    }
    // The long ones once: the time goes into the copying, not into the deciding.
    if payloadByteCount > 4 << 20, flags != 0 { return }
    let request = client.prepareWide(
      command, flags: flags, offset: place.offset, length: place.length,
      payload: [UInt8](repeating: 0, count: Int(payloadByteCount)))
    try client.socket.send(request.bytes)
    let error = try client.wait(request.cookie).error
    if verdict.hasPrefix("do ") {
      let mayRefuse = flags & WireFlag.fastZero != 0 ? [0, WireErrno.notSupported] : [0]
      #expect(mayRefuse.contains(error), "\(subject)")
    } else if verdict.hasPrefix("take ") {
      #expect(error == WireErrno.invalid, "\(subject)")  // zeroes are no filter
    } else {
      let word = String(verdict.prefix { $0 != "," })
      #expect(Self.numbers[word] == error, "\(subject): \(verdict)")
    }
  }
}
