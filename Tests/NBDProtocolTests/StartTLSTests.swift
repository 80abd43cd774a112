// SPDX-License-Identifier: Apache-2.0
//
// STARTTLS and its barrier, in the machine alone. Spec: proto.md, "NBD_OPT_STARTTLS",
// "TLS support".

import BlockTypes
import NBDProtocol
import Testing

private let startTLS = option(5)

/// A machine of one export that has got the client's flags and, if told so, is under TLS.
private struct SecureTalk {
  var machine: ServerHandshake

  init(_ policy: TLSPolicy, isSecure: Bool = false, refusal: String? = nil) {
    let disk = ExportDescription(name: "disk", traits: ExportTraits(byteCount: 1 << 20))
    machine = ServerHandshake(exports: [disk], limits: RequestLimits(), tls: policy)
    _ = machine.start()
    _ = send(clientFlags())
    if isSecure {
      _ = send(startTLS)
      machine.continueOverTLS(refusal: refusal)
    }
  }

  /// Returns the replies to `bytes`.
  mutating func send(_ bytes: [UInt8]) -> [Reply] {
    _ = machine.receive(bytes.span.bytes)
    return parse(machine.takeOutput()).replies
  }

  mutating func type(of bytes: [UInt8]) -> UInt32? { send(bytes).last?.type }
}

private let tlsRequired: UInt32 = 0x8000_0005
private let list = option(3)
private let abort = option(2)

@Suite struct `STARTTLS` {
  @Test func `is refused with ERR_POLICY where TLS is off`() {
    var talk = SecureTalk(.off)
    #expect(talk.type(of: startTLS) == ReplyType.policy)
    #expect(talk.machine.outcome == .negotiating)
  }

  // tls.starttls
  @Test(arguments: [TLSPolicy.offered, .required])
  func `is acknowledged, and then the machine takes nothing until TLS is up`(policy: TLSPolicy) {
    var talk = SecureTalk(policy)
    #expect(talk.send(startTLS) == [Reply(option: 5, type: ReplyType.ack)])
    #expect(talk.machine.outcome == .startsTLS)
    let taken = talk.machine.receive(list.span.bytes)
    #expect(taken == 0)
  }

  // tls.starttls-data
  @Test func `with data is invalid, and may be sent again without`() {
    var talk = SecureTalk(.required)
    #expect(talk.type(of: option(5, [1, 2, 3])) == ReplyType.invalid)
    #expect(talk.type(of: startTLS) == ReplyType.ack)
  }

  // tls.second-starttls
  @Test func `is invalid for the second time`() {
    var talk = SecureTalk(.offered, isSecure: true)
    #expect(talk.type(of: startTLS) == ReplyType.invalid)
    #expect(talk.machine.outcome == .negotiating)
    #expect(talk.type(of: goOption("")) == ReplyType.ack)
  }

  // tls.plain-inject, CVE-2021-3716
  @Test func `with anything behind it in the same bytes ends the connection`() {
    for extra in [[0], list, structuredReplyOption] as [[UInt8]] {
      var talk = SecureTalk(.offered)
      _ = talk.send(startTLS + extra)
      #expect(talk.machine.outcome == .hangUp(.plainTextBehindStartTLS))
    }
  }

  @Test func `byte by byte is the same`() {
    var talk = SecureTalk(.required)
    for byte in startTLS.dropLast() { #expect(talk.send([byte]) == []) }
    #expect(talk.type(of: [startTLS[15]]) == ReplyType.ack)
  }

  // proto.md: a client without FIXED_NEWSTYLE may send EXPORT_NAME only.
  @Test func `without fixed newstyle ends the connection`() {
    let disk = ExportDescription(name: "disk", traits: ExportTraits(byteCount: 1 << 20))
    var machine = ServerHandshake(exports: [disk], limits: RequestLimits(), tls: .required)
    _ = machine.receive((clientFlags(0) + startTLS).span.bytes)
    #expect(machine.outcome == .hangUp(.optionNeedsFixedNewstyle(option: 5)))
  }

  @Test func `counts as one of the options that a connection may send`() {
    var talk = SecureTalk(.offered, isSecure: true)
    var count = 1
    while talk.machine.outcome == .negotiating, count < 1_000 {
      _ = talk.send(list)
      count += 1
    }
    #expect(count == RequestLimits().handshakeOptionsMax + 1)
  }
}

@Suite struct `What was negotiated before STARTTLS` {
  // tls.state-dropped, CVE-2021-3716
  @Test func `is forgotten: structured replies`() throws {
    var talk = SecureTalk(.offered)
    _ = talk.send(structuredReplyOption)
    _ = talk.send(startTLS)
    talk.machine.continueOverTLS()
    #expect(talk.type(of: setMeta("", "base:allocation")) == ReplyType.invalid)
    #expect(talk.type(of: goOption("")) == ReplyType.ack)
    #expect(talk.machine.outcome == .ready(Negotiated(exportIndex: 0)))
  }

  @Test func `is forgotten: extended headers`() {
    var talk = SecureTalk(.offered)
    #expect(talk.type(of: option(11)) == ReplyType.ack)
    _ = talk.send(startTLS)
    talk.machine.continueOverTLS()
    _ = talk.send(goOption(""))
    #expect(talk.machine.outcome == .ready(Negotiated(exportIndex: 0)))
  }

  @Test func `is forgotten: meta contexts`() {
    var talk = SecureTalk(.offered)
    _ = talk.send(structuredReplyOption)
    #expect(talk.type(of: setMeta("", "base:allocation")) == ReplyType.ack)
    _ = talk.send(startTLS)
    talk.machine.continueOverTLS()
    _ = talk.send(structuredReplyOption)
    _ = talk.send(goOption(""))
    #expect(
      talk.machine.outcome == .ready(Negotiated(exportIndex: 0, structuredReplies: true)))
  }

  @Test func `may be negotiated again`() {
    var talk = SecureTalk(.required, isSecure: true)
    #expect(talk.type(of: structuredReplyOption) == ReplyType.ack)
    #expect(talk.type(of: setMeta("", "base:allocation")) == ReplyType.ack)
    _ = talk.send(goOption(""))
    #expect(
      talk.machine.outcome
        == .ready(
          Negotiated(exportIndex: 0, structuredReplies: true, contexts: [.baseAllocation])))
  }
}

@Suite struct `Where TLS is required` {
  // tls.forced; nbdkit@282c3b03: the data of a refused option is taken out of the stream.
  @Test(arguments: [3, 4, 6, 7, 8, 9, 10, 11, 99] as [UInt32])
  func `an option without it is answered with ERR_TLS_REQD, its data is taken`(number: UInt32) {
    var talk = SecureTalk(.required)
    let reply = talk.send(option(number, [0, 0, 0, 0, 0, 0])).last
    #expect(reply?.option == number)
    #expect(reply?.type == tlsRequired)
    #expect(reply?.payload.isEmpty == false)
    #expect(talk.type(of: startTLS) == ReplyType.ack)
  }

  @Test func `ABORT without it is acknowledged`() {
    var talk = SecureTalk(.required)
    #expect(talk.type(of: abort) == ReplyType.ack)
    #expect(talk.machine.outcome == .finished)
  }

  @Test func `EXPORT_NAME without it ends the connection`() {
    var talk = SecureTalk(.required)
    #expect(talk.send(option(1, Array("disk".utf8))) == [])
    #expect(talk.machine.outcome == .hangUp(.exportNeedsTLS))
  }

  @Test func `no option is answered with ERR_TLS_REQD once it is there`() {
    for number in [3, 6, 7, 8, 9, 10, 11, 99] as [UInt32] {
      var talk = SecureTalk(.required, isSecure: true)
      #expect(talk.type(of: option(number, [])) != tlsRequired)
    }
  }
}

@Suite struct `Where TLS is offered` {
  @Test func `a client may do without`() {
    var talk = SecureTalk(.offered)
    #expect(talk.type(of: list) == ReplyType.ack)
    #expect(talk.type(of: goOption("disk")) == ReplyType.ack)
    #expect(talk.machine.outcome == .ready(Negotiated(exportIndex: 0)))
  }
}

@Suite struct `A client that TLS proved and that is not allowed` {
  @Test(arguments: [3, 6, 7, 8, 9, 10, 99] as [UInt32])
  func `is told why for each option`(number: UInt32) {
    var talk = SecureTalk(.required, isSecure: true, refusal: "the name is on no list")
    let reply = talk.send(option(number, [0, 0, 0, 0, 0, 0])).last
    #expect(reply?.type == ReplyType.policy)
    #expect(
      reply.map { String(decoding: $0.payload, as: UTF8.self) }
        == "not allowed: the name is on no list")
    #expect(talk.machine.outcome == .negotiating)
  }

  @Test func `is cut off when it asks by EXPORT_NAME, which has no error reply`() {
    var talk = SecureTalk(.required, isSecure: true, refusal: "no")
    #expect(talk.send(option(1, [])) == [])
    #expect(talk.machine.outcome == .hangUp(.clientRefused(reason: "no")))
  }

  @Test func `may still abort`() {
    var talk = SecureTalk(.required, isSecure: true, refusal: "no")
    #expect(talk.type(of: abort) == ReplyType.ack)
  }
}
