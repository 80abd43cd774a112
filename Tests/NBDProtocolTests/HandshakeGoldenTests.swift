// SPDX-License-Identifier: Apache-2.0
//
// Each state of the handshake times each option times each length: what the machine answers is in
// Golden/handshake.txt. Whole, cut, in pieces and pipelined, the answers are the same.
// Spec: proto.md, "Handshake phase", "Option types".

import BlockTypes
import NBDProtocol
import TestSupport
import Testing

private let exportName = "disk"

/// The machine in a state, and all that it has sent since.
private struct Opened {
  var machine: ServerHandshake
  var sent: [UInt8] = []
  var consumed = 0

  /// - Parameter exports: the first one is `exportName`.
  init(_ state: HandshakeState, _ exports: [ExportDescription] = []) throws {
    let disk = ExportDescription(
      name: exportName, traits: ExportTraits(byteCount: 40 << 20),
      contexts: [.baseAllocation, .allocationDepth])
    let tls: TLSPolicy =
      switch state.tls {
      case .off: .off
      case .offered: .offered
      case .required: .required
      }
    let access: ExportAccess =
      switch state.access {
      case .open: .open
      case .needsTLS: .needsTLS
      case .refused: .refused(reason: "no")
      }
    machine = ServerHandshake(
      exports: [disk] + exports, limits: RequestLimits(), tls: tls,
      access: Array(repeating: access, count: 1 + exports.count))
    _ = machine.start()
    receive(clientFlags(state.flags))
    for option in state.opening {
      sent = []
      receive(option)
      try #require(parse(sent).replies.last?.type == ReplyType.ack)
    }
    if state.isSecure { machine.continueOverTLS(refusal: state.isRefused ? "no" : nil) }
    machine.isStopping = state.isStopping
    try #require(machine.outcome == .negotiating)
    sent = []
    consumed = 0
  }

  mutating func receive(_ bytes: [UInt8]) { receive(bytes[...]) }

  mutating func receive(_ bytes: ArraySlice<UInt8>) {
    consumed += machine.receive(bytes.span.bytes)
    sent += machine.takeOutput()
  }

  var isOver: Bool { machine.outcome != .negotiating }

  /// The answer as a line of the golden table has it.
  func text() throws -> String {
    let replies = try AnswerText.of(sent)
    switch machine.outcome {
    case .negotiating: return replies.isEmpty ? "waits for the data" : replies
    case .startsTLS: return "\(replies); TLS"
    case .finished: return "\(replies); end"
    case .hangUp(let violation):
      let reason =
        if case .optionTooLong = violation { "announced too much" } else { "\(violation)" }
      return (replies.isEmpty ? "" : "\(replies); ") + "hang-up: \(AnswerText.shortened(reason))"
    case .ready(let negotiated):
      let contexts = (0..<64).filter { negotiated.contexts.contains(wireID: $0) }
      return "\(replies); transmission: \(negotiated.framing)"
        + (negotiated.blockSizesAgreed ? ", block sizes" : "")
        + (contexts.isEmpty ? "" : ", contexts \(contexts)")
    }
  }
}

private let states = HandshakeState.all(export: exportName)

private func cases() -> [OptionCase] {
  OptionCase.options.flatMap { OptionCase.all(of: $0, export: exportName) }
}

@Suite struct `each state times each option times each length` {
  @Test func `is answered as Golden/handshake.txt has it`() throws {
    var lines: [String] = []
    for flags in [0, 1, 2, 3, 4, 7, 1 << 31, .max, 0x4948_4156] as [UInt32] {
      var talk = Talk()
      talk.send(clientFlags(flags))
      let answer = talk.violation.map { "hang-up: \($0)" } ?? "goes on"
      lines.append("flags 0x\(String(flags, radix: 16)): \(answer)")
    }
    for state in states {
      lines.append("== \(state)")
      for option in OptionCase.options {
        var groups: [(labels: [String], answer: String)] = []
        for one in OptionCase.all(of: option, export: exportName) {
          var opened = try Opened(state)
          opened.receive(one.bytes)
          let answer = try opened.text()
          if groups.last?.answer == answer {
            groups[groups.count - 1].labels.append(one.label)
          } else {
            groups.append(([one.label], answer))
          }
        }
        for group in groups {
          let labels = group.labels.joined(separator: "|")
          lines.append("\(OptionCase.name(of: option)) [\(labels)] \(group.answer)")
        }
      }
    }
    let difference = try GoldenTable("handshake.txt").difference(
      from: lines,
      title: """
        What the server's handshake answers: state, option, [lengths or oddities], answer.
        Written by STRATA_WRITE_GOLDEN=1 swift test --filter NBDProtocolTests
        """)
    #expect(difference == [], "\(difference.joined(separator: "\n"))")
  }

  @Test(arguments: states) func `leaves the stream in step, or closes`(_ state: HandshakeState)
    throws
  {
    for one in cases() {
      var opened = try Opened(state)
      opened.receive(one.bytes)
      // All bytes are taken, but those of options that end it at their header.
      if !opened.isOver { #expect(opened.consumed == one.bytes.count, "\(one)") }
      guard !opened.isOver, state.isFixed, !one.label.hasPrefix("2^3") else { continue }
      opened.sent = []
      opened.receive(option(2))
      #expect(parse(opened.sent).replies == [Reply(option: 2, type: ReplyType.ack)], "\(one)")
      #expect(opened.machine.outcome == .finished, "\(one)")
    }
  }

  @Test(arguments: states)
  func `keeps replies short, and names the option that they are for`(_ state: HandshakeState) throws
  {
    // CVE-2020-10761: long names in error texts
    for one in cases() {
      var opened = try Opened(state)
      opened.receive(one.bytes)
      let (replies, rest) = parse(opened.sent)
      for reply in replies {
        #expect(reply.option == one.option, "\(one)")
        #expect(reply.payload.count <= (reply.type < 1 << 31 ? 8192 : 512), "\(one)")
      }
      #expect(rest.isEmpty || one.option == 1, "\(one)")
      #expect(replies.dropLast().allSatisfy { $0.type < 1 << 31 && $0.type != 1 }, "\(one)")
    }
  }

  @Test(arguments: states)
  func `is answered the same byte by byte, and never before its last byte`(
    _ state: HandshakeState
  ) throws {
    for one in cases() where one.bytes.count <= 300 || one.label == "4096" {
      var whole = try Opened(state)
      whole.receive(one.bytes)
      var slow = try Opened(state)
      for index in one.bytes.indices where !slow.isOver {
        // Cut here: nothing was answered yet, and what was said is taken.
        if index >= 16, !slow.sent.isEmpty { Issue.record("\(one) is answered at byte \(index)") }
        slow.receive(one.bytes[index...index])
      }
      #expect(slow.sent == whole.sent, "\(one)")
      #expect(slow.machine.outcome == whole.machine.outcome, "\(one)")
      #expect(slow.consumed == whole.consumed, "\(one)")
    }
  }

  @Test(arguments: states)
  func `is answered the same when many come in one piece`(_ state: HandshakeState) throws {
    var generator = SeededGenerator(state: 4)
    let short = cases().filter { $0.bytes.count <= 5000 }
    for round in 0..<100 {
      let some = (0..<8).map { _ in short.randomElement(using: &generator)! }
      var apart = try Opened(state)
      for one in some where !apart.isOver { apart.receive(one.bytes) }
      let bytes = some.flatMap(\.bytes)
      var together = try Opened(state)
      together.receive(bytes)
      // STARTTLS is the exception: what comes behind it in one piece ends the connection.
      if apart.machine.outcome == .startsTLS, apart.consumed < bytes.count {
        #expect(together.machine.outcome == .hangUp(.plainTextBehindStartTLS))
        continue
      }
      #expect(together.sent == apart.sent, "round \(round): \(some)")
      #expect(together.machine.outcome == apart.machine.outcome, "round \(round): \(some)")
      var pieces = try Opened(state)
      var position = 0
      while position < bytes.count, !pieces.isOver {
        let end = min(bytes.count, position + Int.random(in: 1...300, using: &generator))
        pieces.receive(bytes[position..<end])
        position = end
      }
      #expect(pieces.sent == apart.sent, "round \(round): \(some)")
      #expect(pieces.machine.outcome == apart.machine.outcome, "round \(round): \(some)")
    }
  }

  @Test(arguments: states) func `tells nothing of another export`(_ state: HandshakeState) throws {
    let secret = ExportDescription(
      name: "quiet", description: "shy", traits: ExportTraits(byteCount: 4711 << 9))
    for one in cases() where one.option != 3 {
      var opened = try Opened(state, [secret])
      opened.receive(one.bytes)
      let text = String(decoding: opened.sent, as: UTF8.self)
      #expect(!text.contains("quiet") && !text.contains("shy"), "\(one)")
    }
  }

  @Test func `does not tell whether an export that needs TLS is there`() throws {
    // proto.md "SELECTIVETLS"
    let state = try #require(states.first { $0.access == .needsTLS && !$0.opening.isEmpty })
    for option in OptionCase.options {
      let there = OptionCase.all(of: option, export: exportName)
      let absent = OptionCase.all(of: option, export: "dusk")
      for (one, other) in zip(there, absent) {
        var asked = try Opened(state)
        asked.receive(one.bytes)
        var askedOther = try Opened(state)
        askedOther.receive(other.bytes)
        let shown = String(decoding: askedOther.sent, as: UTF8.self)
        #expect(
          String(decoding: asked.sent, as: UTF8.self)
            == shown.replacing("\"dusk", with: "\"disk"), "\(one)")
        #expect(asked.isOver == askedOther.isOver, "\(one)")
      }
    }
  }

  @Test(arguments: states.filter(\.isBarred))
  func `tells nothing but one error to a client that is barred`(_ state: HandshakeState) throws {
    let barred = state.isRefused ? ReplyType.policy : 0x8000_0005
    for one in cases() where one.option != 2 {
      var opened = try Opened(state)
      opened.receive(one.bytes)
      let types = parse(opened.sent).replies.map(\.type)
      if one.option == 5, !state.isRefused {
        #expect([[], [ReplyType.ack], [ReplyType.invalid]].contains(types), "\(one)")
      } else {
        #expect(types == [barred] || types == [], "\(one)")
        #expect(!String(decoding: opened.sent, as: UTF8.self).contains(exportName), "\(one)")
      }
    }
  }

  @Test func `ends in the place of flags when an option comes there`() {  // CVE-2017-7539
    for one in cases() where one.bytes.count <= 5000 {
      var talk = Talk()
      talk.send(one.bytes)
      #expect(talk.violation == .unknownClientFlags(0x4948_4156), "\(one)")  // "IHAV"
      #expect(talk.sent.isEmpty)
    }
  }
}
