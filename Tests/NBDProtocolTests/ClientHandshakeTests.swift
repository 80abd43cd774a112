// SPDX-License-Identifier: Apache-2.0
//
// The client's side of the handshake against scripted servers, and against our own machine.
// Spec: proto.md, "Handshake phase".

import BlockTypes
import NBDProtocol
import Testing

/// A client and the bytes that it was sent and has sent.
private struct ClientTalk {
  var handshake: ClientHandshake
  var sent: [UInt8] = []

  init(_ goal: ClientGoal = ClientGoal(.enter(exportName: "disk"), contexts: .none)) {
    handshake = ClientHandshake(goal)
  }

  /// Feeds `bytes` and returns how many were consumed.
  @discardableResult mutating func feed(_ bytes: [UInt8]...) -> Int {
    let all = bytes.flatMap { $0 }
    let consumed = handshake.receive(all[...])
    sent += handshake.takeOutput()
    return consumed
  }

  var session: ClientSession? {
    if case .ready(let session) = handshake.outcome { session } else { nil }
  }

  var violation: ClientViolation? {
    if case .violated(let violation) = handshake.outcome { violation } else { nil }
  }

  var refusal: String? {
    switch handshake.outcome {
    case .refused(let reason), .insecure(let reason): reason
    case .negotiating, .startTLS, .ready, .listed, .violated: nil
    }
  }

  /// The numbers of the options that were sent.
  var options: [UInt32] {
    var numbers: [UInt32] = []
    var position = 4
    while position + 16 <= sent.count {
      numbers.append(sent.loadBigEndian(UInt32.self, at: position + 8))
      position += 16 + Int(sent.loadBigEndian(UInt32.self, at: position + 12))
    }
    return numbers
  }
}

private let acks = optionReply(11, ReplyType.ack)
private let noExtended = optionReply(11, ReplyType.unsup)
private let structuredAck = optionReply(8, ReplyType.ack)
private let noStructured = optionReply(8, ReplyType.unsup)

private func goAnswer(_ infos: [UInt8]...) -> [UInt8] {
  infos.flatMap { optionReply(7, ReplyType.info, $0) } + optionReply(7, ReplyType.ack)
}

@Suite struct `A client's handshake` {
  @Test func `agrees on the best that the server has`() {
    var extended = ClientTalk()
    extended.feed(greeting(), acks, goAnswer(exportInfo(1 << 20)))
    #expect(extended.session?.mode == .extended)
    #expect(extended.options == [11, 7])

    var structured = ClientTalk()
    structured.feed(greeting(), noExtended, structuredAck, goAnswer(exportInfo(1 << 20)))
    #expect(structured.session?.mode == .structured)
    #expect(structured.options == [11, 8, 7])

    var simple = ClientTalk()
    simple.feed(greeting(), noExtended, noStructured, goAnswer(exportInfo(1 << 20)))
    #expect(simple.session?.mode == .simple)

    var byName = ClientTalk()
    byName.feed(greeting(), noExtended, noStructured, optionReply(7, ReplyType.unsup))
    byName.feed(bigEndian(UInt64(1 << 20)), bigEndian(UInt16(1)))
    #expect(byName.session?.mode == .exportName)
    #expect(byName.options == [11, 8, 7, 1])
    #expect(byName.session?.byteCount == 1 << 20)
  }

  @Test func `without fixed newstyle sends EXPORT_NAME only, and drops the zeroes`() {
    var talk = ClientTalk()
    talk.feed(greeting(0), bigEndian(UInt64(512)), bigEndian(UInt16(3)))
    #expect(talk.session == nil)
    let zeroes = [UInt8](repeating: 0, count: 124)
    #expect(talk.feed(zeroes, [0x67]) == 124)
    #expect(talk.session?.mode == .exportName)
    #expect(talk.options == [1])
    #expect(Array(talk.sent[..<4]) == [0, 0, 0, 0])
  }

  @Test func `recognises an oldstyle server`() {  // proto.md "Oldstyle negotiation"
    let bytes =
      Array("NBDMAGIC".utf8) + bigEndian(UInt64(0x4202_8186_1253)) + bigEndian(UInt64(4096))
      + bigEndian(UInt32(5)) + [UInt8](repeating: 0, count: 124)
    var talk = ClientTalk(ClientGoal(.enter(exportName: "")))
    #expect(talk.feed(bytes, [1]) == 152)
    #expect(talk.session?.mode == .oldstyle)
    #expect(talk.session?.byteCount == 4096)
    #expect(talk.sent.isEmpty)
    var named = ClientTalk()
    named.feed(bytes)
    #expect(named.refusal?.contains("oldstyle") == true)
    var encrypted = ClientTalk(ClientGoal(.enter(exportName: ""), tls: .required))
    encrypted.feed(bytes)  // CVE-2019-14842
    #expect(encrypted.refusal?.contains("TLS is required") == true)
  }

  @Test func `selects contexts by name and keeps their ids`() {
    var talk = ClientTalk(
      ClientGoal(.enter(exportName: "disk"), contexts: .named(["base:allocation", "x:y"])))
    talk.feed(greeting(), acks, contextReply(10, 42, "base:allocation"))
    talk.feed(optionReply(10, ReplyType.ack), goAnswer(exportInfo(1)))
    #expect(talk.session?.export.contexts == ["base:allocation"])
    #expect(talk.session?.contextIDs == [42])
    #expect(talk.options == [11, 10, 7])
  }

  @Test func `selects all contexts that are listed`() {
    var talk = ClientTalk(ClientGoal(.enter(exportName: "disk"), contexts: .all))
    talk.feed(greeting(), acks, contextReply(9, 0, "a:b"), contextReply(9, 0, "c:d"))
    talk.feed(optionReply(9, ReplyType.ack))
    talk.feed(contextReply(10, 2, "c:d"), contextReply(10, 1, "a:b"))
    talk.feed(optionReply(10, ReplyType.ack), goAnswer(exportInfo(1)))
    #expect(talk.session?.export.contexts == ["c:d", "a:b"])
    #expect(talk.session?.contextIDs == [2, 1])
  }

  @Test func `goes on without contexts where the server refuses them`() {
    for option in [9, 10] as [UInt32] {
      let contexts: ClientGoal.Contexts = option == 9 ? .all : .named(["a:b"])
      var talk = ClientTalk(ClientGoal(.enter(exportName: "disk"), contexts: contexts))
      talk.feed(greeting(), acks, optionReply(option, ReplyType.unsup))
      talk.feed(goAnswer(exportInfo(1)))
      #expect(talk.session?.contextIDs == [])
    }
  }

  @Test func `refuses contexts that were not asked for, or come twice`() {
    for replies in [
      contextReply(10, 1, "c:d"), contextReply(10, 1, "a:b") + contextReply(10, 2, "a:b"),
      optionReply(10, ReplyType.metaContext, [0, 0, 0, 1]),
      optionReply(10, ReplyType.metaContext, [0, 0]),
    ] {
      var talk = ClientTalk(ClientGoal(.enter(exportName: "disk"), contexts: .named(["a:b"])))
      talk.feed(greeting(), acks, replies)
      #expect(talk.violation != nil)
    }
  }

  @Test func `takes block sizes, and none that contradict each other`() {
    // proto.md "Size constraints"
    var talk = ClientTalk()
    talk.feed(greeting(), acks, goAnswer(exportInfo(1 << 20), blockInfo(512, 4096, 1 << 20)))
    #expect(talk.session?.export.minimumBlockByteCount == 512)
    #expect(talk.session?.export.payloadByteCountMax == 1 << 20)
    for (a, b, c) in [
      (0, 4096, 8192), (3, 4096, 8192), (131_072, 131_072, 1 << 20), (1, 256, 4096),
      (1024, 512, 4096), (1, 3000, 4096), (1, 4096, 512), (1, 0, 0),
    ] as [(UInt32, UInt32, UInt32)] {
      var bad = ClientTalk()
      bad.feed(greeting(), acks, goAnswer(exportInfo(1 << 20), blockInfo(a, b, c)))
      #expect(bad.violation == .badBlockSizes(minimum: a, preferred: b, maximum: c))
    }
  }

  @Test(
    arguments: [(0, true), (1, true), (1 << 63 - 1, true), (1 << 63, false), (.max, false)]
      as [(UInt64, Bool)])
  func `believes sizes below 2^63 only`(_ byteCount: UInt64, _ isTaken: Bool) {  // CVE-2023-5215
    var go = ClientTalk()
    go.feed(greeting(), acks, goAnswer(exportInfo(byteCount)))
    #expect((go.session?.byteCount == byteCount) == isTaken)
    #expect((go.violation == .sizeTooLarge(byteCount: byteCount)) == !isTaken)
    var byName = ClientTalk()
    byName.feed(greeting(2), bigEndian(byteCount), bigEndian(UInt16(1)))
    #expect((byName.session != nil) == isTaken)
  }

  @Test func `needs the size and the flags before GO is acknowledged`() {
    var talk = ClientTalk()
    talk.feed(greeting(), acks, goAnswer(blockInfo(1, 4096, 8192)))
    #expect(talk.violation == .incompleteAnswer(option: 7, missing: "the export's size"))
    var flags = ClientTalk()
    flags.feed(greeting(), acks, goAnswer(exportInfo(1, flags: 0)))
    #expect(flags.violation == .flagsMissing)
  }

  @Test func `reports what the server says against the export`() {
    var talk = ClientTalk()
    talk.feed(
      greeting(), acks, optionReply(7, ReplyType.unknown, Array("no \u{1b}[31mdisk".utf8)))
    #expect(talk.refusal == "the server does not know the export: no \u{fffd}[31mdisk")
  }

  @Test func `never gives up TLS that was required`() {  // CVE-2019-14842
    let goal = ClientGoal(.enter(exportName: "disk"), contexts: .none, tls: .required)
    for flags in [0, 2] as [UInt16] {
      var talk = ClientTalk(goal)
      talk.feed(greeting(flags))
      #expect(talk.refusal?.contains("TLS is required") == true)
      #expect(talk.options.isEmpty)
    }
    for type in [ReplyType.unsup, ReplyType.policy, ReplyType.invalid, ReplyType.shutdown] {
      var talk = ClientTalk(goal)
      talk.feed(greeting(), optionReply(5, type))
      #expect(talk.refusal?.contains("TLS is required") == true)
      #expect(talk.options == [5])
    }
  }

  @Test func `asks for TLS first and refuses bytes in clear behind its answer`() {
    let goal = ClientGoal(.enter(exportName: "disk"), contexts: .none, tls: .required)
    var talk = ClientTalk(goal)
    talk.feed(greeting(), optionReply(5, ReplyType.ack))
    #expect(talk.handshake.outcome == .startTLS)
    talk.handshake.continueEncrypted()
    talk.feed(acks, goAnswer(exportInfo(1)))
    #expect(talk.session?.isEncrypted == true)
    #expect(talk.options == [5, 11, 7])
    var injected = ClientTalk(goal)  // the class of CVE-2021-3716
    injected.feed(greeting(), optionReply(5, ReplyType.ack), acks)
    #expect(injected.violation == .plaintextBehindTLS(byteCount: acks.count))
  }

  @Test func `goes on in clear where TLS was only offered`() {
    let goal = ClientGoal(.enter(exportName: "disk"), contexts: .none, tls: .offered)
    var talk = ClientTalk(goal)
    talk.feed(greeting(), optionReply(5, ReplyType.unsup), acks, goAnswer(exportInfo(1)))
    #expect(talk.session?.isEncrypted == false)
    #expect(talk.options == [5, 11, 7])
    var old = ClientTalk(goal)
    old.feed(greeting(0))
    #expect(old.options == [1])
    var willing = ClientTalk(goal)
    willing.feed(greeting(), optionReply(5, ReplyType.ack))
    #expect(willing.handshake.outcome == .startTLS)
  }

  @Test func `says that the server wants TLS`() {
    var talk = ClientTalk()
    talk.feed(greeting(), optionReply(11, 0x8000_0005))
    #expect(talk.refusal == "the server requires TLS")
  }
}

@Suite struct `A hostile server in the handshake` {
  @Test func `with another greeting is told apart at once`() {
    var talk = ClientTalk()
    talk.feed(Array("SSH-2.0-OpenSSH_9.2".utf8))
    #expect(talk.violation == .badGreeting)
    var second = ClientTalk()
    second.feed(Array("NBDMAGIC".utf8), [UInt8](repeating: 7, count: 8))
    #expect(second.violation == .unknownSecondMagic)
  }

  @Test(arguments: [65_537, 1 << 20, 1 << 31, .max] as [UInt32])
  func `cannot make the client take a huge option reply`(_ byteCount: UInt32) {
    // NBD issue gh-135 (NBD@569070d)
    var talk = ClientTalk()
    talk.feed(greeting(), optionReply(11, ReplyType.unsup, announcing: byteCount))
    #expect(talk.violation == .optionReplyTooLong(option: 11, byteCount: byteCount))
  }

  @Test func `cannot answer another option, nor one that was not sent`() {
    var talk = ClientTalk()
    talk.feed(greeting(), structuredAck)
    #expect(talk.violation == .replyToOtherOption(sent: 11, answered: 8))
    var magic = ClientTalk()
    magic.feed(greeting(), [UInt8](repeating: 1, count: 20))
    #expect(magic.violation == .badOptionReplyMagic)
  }

  @Test func `cannot send replies of other options or with data where none belong`() {
    for reply in [
      optionReply(11, ReplyType.ack, [1]), optionReply(11, ReplyType.info, [0, 0]),
      optionReply(11, ReplyType.server, [0, 0, 0, 0]), optionReply(11, 99),
    ] {
      var talk = ClientTalk()
      talk.feed(greeting(), reply)
      #expect(talk.violation != nil)
    }
  }

  @Test func `cannot fool the client with names in a list`() {  // CVE-2017-2630
    let name = [UInt8](repeating: 0x61, count: 4096)
    let entries: [(payload: [UInt8], isTaken: Bool)] = [
      (counted(name), true), (counted(name + [0x61]), false),
      (bigEndian(UInt32(5)) + [0x61], false), (bigEndian(UInt32.max), false),
      (bigEndian(UInt32(1 << 31)) + name, false), ([0, 0, 0], false), ([], false),
      (counted([0]), false), (counted([0xff]), false), (counted(name) + name, true),
      (counted(name) + name + [0x61], false), (counted([0x61]) + [0], false),
    ]
    for (payload, isTaken) in entries {
      var talk = ClientTalk(ClientGoal(.list))
      talk.feed(greeting(), noExtended, noStructured, optionReply(3, ReplyType.server, payload))
      #expect((talk.violation == nil) == isTaken, "\(payload.count)")
    }
  }

  @Test func `cannot list without end`() {
    var talk = ClientTalk(ClientGoal(.list))
    talk.feed(greeting(), noExtended, noStructured)
    let entry = optionReply(3, ReplyType.server, counted([0x61]))
    for _ in 0...10_000 { talk.feed(entry) }
    talk.feed(entry)
    #expect(talk.violation == .tooManyOptionReplies(option: 3, max: 10_001))
    var infos = ClientTalk()
    infos.feed(greeting(), acks)
    for _ in 0...66 { infos.feed(optionReply(7, ReplyType.info, [0, 99])) }
    #expect(infos.violation == .tooManyOptionReplies(option: 7, max: 65))
  }

  @Test func `that leaves anywhere leaves a sentence`() {  // CVE-2021-20286
    let bytes =
      greeting() + acks + goAnswer(exportInfo(1 << 20), blockInfo(1, 4096, 1 << 20))
    for count in 0..<bytes.count {
      var talk = ClientTalk()
      talk.feed(Array(bytes[..<count]))
      #expect(talk.handshake.outcome == .negotiating)
      talk.handshake.end()
      #expect(talk.refusal?.contains("closed the connection") == true)
    }
    var byName = ClientTalk()
    byName.feed(greeting(2))
    byName.handshake.end()
    #expect(byName.refusal?.contains("no such export") == true)
  }

  @Test func `is understood the same whatever the portions are`() {
    let bytes =
      greeting() + noExtended + structuredAck + contextReply(9, 0, "a:b")
      + optionReply(9, ReplyType.ack) + contextReply(10, 5, "a:b")
      + optionReply(10, ReplyType.ack) + goAnswer(exportInfo(77), blockInfo(1, 4096, 1 << 20))
    let goal = ClientGoal(.enter(exportName: "disk"))
    var whole = ClientTalk(goal)
    #expect(whole.feed(bytes, [1, 2, 3]) == bytes.count)
    for portion in 1...40 {
      var talk = ClientTalk(goal)
      for start in stride(from: 0, to: bytes.count, by: portion) {
        talk.feed(Array(bytes[start..<min(start + portion, bytes.count)]))
      }
      #expect(talk.session == whole.session)
      #expect(talk.sent == whole.sent)
    }
    #expect(whole.session?.byteCount == 77)
  }

  @Test func `of random bytes never traps`() {
    var generator = SeededGenerator(state: 14842)
    let openings = [[], greeting(), greeting() + acks, greeting() + noExtended + noStructured]
    let goals = [ClientGoal(.enter(exportName: "x")), ClientGoal(.list)]
    for round in 0..<3000 {
      var talk = ClientTalk(goals[round % 2])
      talk.feed(openings[round % openings.count])
      for _ in 0..<4 {
        let payload = (0..<Int.random(in: 0...40, using: &generator)).map { _ in
          UInt8.random(in: 0...255, using: &generator)
        }
        let numbers = [talk.options.last ?? 0, UInt32.random(in: 0...12, using: &generator)]
        let types = [1, 2, 3, 4, 0x8000_0001, UInt32.random(in: 0...(.max), using: &generator)]
        talk.feed(
          optionReply(
            numbers.randomElement(using: &generator)!, types.randomElement(using: &generator)!,
            payload))
      }
      talk.handshake.end()
    }
  }
}

@Suite struct `The two machines` {
  /// Lets a client and a server talk until the client is done.
  private func talk(_ goal: ClientGoal, _ exports: [ExportDescription]) -> ClientHandshake {
    var server = ServerHandshake(exports: exports, limits: RequestLimits())
    var client = ClientHandshake(goal)
    var toClient = server.start()
    for _ in 0..<1000 {
      guard client.outcome == .negotiating else { break }
      _ = client.receive(toClient[...])
      let toServer = client.takeOutput()
      _ = server.receive(toServer.span.bytes)
      toClient = server.takeOutput()
      if case .hangUp = server.outcome { break }
    }
    return client
  }

  @Test func `agree on an export and its contexts`() {
    let client = talk(ClientGoal(.enter(exportName: "disk")), [other, disk])
    guard case .ready(let session) = client.outcome else {
      Issue.record("\(client.outcome)")
      return
    }
    #expect(session.export.name == "disk")
    #expect(session.export.description == "a disk")
    #expect(session.byteCount == 1 << 20)
    #expect(session.export.contexts == ["base:allocation", "qemu:allocation-depth"])
    #expect(session.contextIDs == [0, 1])
    #expect(session.export.payloadByteCountMax == 32 << 20)
  }

  @Test func `agree at each level of the protocol`() {
    for mode in [ProtocolMode.exportName, .simple, .structured] {
      let client = talk(ClientGoal(.enter(exportName: "disk"), modeMax: mode), [disk])
      guard case .ready(let session) = client.outcome else {
        Issue.record("\(mode): \(client.outcome)")
        continue
      }
      #expect(session.mode == mode)
      #expect(session.export.flags.contains(.sendDF) == (mode >= .structured))
    }
  }

  @Test func `list exports with all their properties`() {
    let client = talk(ClientGoal(.list), [disk, other])
    guard case .listed(let exports, _) = client.outcome else {
      Issue.record("\(client.outcome)")
      return
    }
    #expect(exports.map(\.name) == ["disk", "other"])
    #expect(exports.map(\.byteCount) == [1 << 20, 2 << 20])
    #expect(exports.map(\.description) == ["a disk", ""])
    #expect(exports[1].flags.contains(.readOnly))
    #expect(exports[1].contexts == ["base:allocation"])
    #expect(exports[0].blockSizes?.maximum == 32 << 20)
  }

  @Test func `list names where the server has no INFO`() {
    var talk = ClientTalk(ClientGoal(.list))
    talk.feed(greeting(), noExtended, noStructured)
    for name in ["a", "b"] {
      talk.feed(optionReply(3, ReplyType.server, counted(Array(name.utf8)) + [0x78]))
    }
    talk.feed(optionReply(3, ReplyType.ack), optionReply(6, ReplyType.unsup))
    guard case .listed(let exports, let mode) = talk.handshake.outcome else {
      Issue.record("\(talk.handshake.outcome)")
      return
    }
    #expect(exports.map(\.name) == ["a", "b"])
    #expect(exports.map(\.description) == ["x", "x"])
    #expect(exports.allSatisfy { $0.byteCount == nil })
    #expect(mode == .simple)
    #expect(talk.options == [11, 8, 3, 6, 2])
  }
}
