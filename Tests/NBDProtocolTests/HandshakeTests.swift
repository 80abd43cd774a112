// SPDX-License-Identifier: Apache-2.0
//
// The handshake before and around options: greeting, flags, streams, limits.
// Spec: proto.md, "Handshake phase".

import BlockTypes
import NBDProtocol
import Testing

@Suite struct `a handshake` {
  @Test func `starts with 18 bytes: NBDMAGIC, IHAVEOPT, two flags`() {
    // proto.md "Newstyle negotiation"; greet.magic, greet.flags
    var handshake = ServerHandshake(exports: [disk], limits: RequestLimits())
    #expect(handshake.start() == Array("NBDMAGICIHAVEOPT".utf8) + [0, 3])
  }

  @Test func `ends when the client sets an unknown flag`() {  // greet.unknown-client-flag
    for bit in 2..<32 {
      var talk = Talk()
      talk.send(clientFlags(1 << bit))
      #expect(talk.violation == .unknownClientFlags(1 << bit))
      #expect(talk.sent.isEmpty)
    }
  }

  @Test(arguments: [0, 2] as [UInt32])
  func `without fixed newstyle knows EXPORT_NAME only`(_ flags: UInt32) {
    // proto.md "Newstyle negotiation"; greet.no-fixed-newstyle
    for number in [2, 3, 5, 6, 7, 8, 99] as [UInt32] {
      var talk = Talk()
      talk.send(clientFlags(flags), option(number))
      #expect(talk.violation == .optionNeedsFixedNewstyle(option: number))
      #expect(talk.sent.isEmpty)
    }
    var talk = Talk()
    talk.send(clientFlags(flags), option(1, Array("disk".utf8)))
    #expect(talk.negotiated?.exportIndex == 0)
  }

  @Test func `ends at an option without its magic`() {  // opt.bad-magic
    var talk = Talk()
    var bytes = option(7, infoData("disk"))
    bytes[3] ^= 0x20
    talk.send(clientFlags(), bytes)
    #expect(talk.violation == .badOptionMagic)
    #expect(talk.sent.isEmpty)
  }

  @Test func `reads the same whatever the portions are`() {  // a stream has no message borders
    let bytes =
      clientFlags() + option(11) + structuredReplyOption + option(77, [1, 2, 3])
      + setMeta("disk", "base:allocation") + option(3) + option(6, infoData("", requests: [1, 3]))
      + goOption("disk", requests: [3])
    var whole = Talk()
    #expect(whole.send(bytes, [9, 9, 9]) == bytes.count)
    for portion in 1...40 {
      var talk = Talk()
      var position = 0
      while position < bytes.count {
        let end = min(position + portion, bytes.count)
        #expect(talk.send(Array(bytes[position..<end])) == end - position)
        position = end
      }
      #expect(talk.sent == whole.sent)
      #expect(talk.handshake.outcome == whole.handshake.outcome)
    }
    #expect(whole.negotiated != nil)
  }

  @Test func `cut anywhere is still negotiating`() {  // opt.truncated-eof
    let bytes = clientFlags() + structuredReplyOption + goOption("disk", requests: [3])
    for count in 0..<bytes.count {
      var talk = Talk()
      #expect(talk.send(Array(bytes[..<count])) == count)
      #expect(talk.handshake.outcome == .negotiating)
    }
  }

  @Test func `leaves what follows GO to the transmission phase`() {  // proto.md "NBD_OPT_GO"
    var talk = Talk()
    let bytes = clientFlags() + goOption("disk")
    #expect(talk.send(bytes, [0x25, 0x60, 0x95, 0x13]) == bytes.count)
    #expect(talk.negotiated != nil)
    #expect(talk.send([1, 2, 3]) == 0)
  }

  @Test func `allows 32 options and hangs up at the next`() {  // opt.unknown-20; RequestLimits
    var talk = Talk()
    talk.send(clientFlags())
    for _ in 0..<32 { talk.send(option(99)) }
    #expect(talk.types == Array(repeating: ReplyType.unsup, count: 32))
    talk.send(goOption("disk"))
    #expect(talk.violation == .tooManyOptions(max: 32))
  }

  @Test func `allows more options when there is more to ask about`() {
    var talk = Talk(exports: [disk, other])
    talk.send(clientFlags())
    for _ in 0..<63 { talk.send(option(99)) }
    talk.send(goOption("disk"))
    #expect(talk.negotiated != nil)
  }

  @Test func `counts LIST as a question about each export`() {
    // 4096 times LIST fit in one receive of 64 KiB; each answer is as long as the list.
    let exports = (0..<256).map { number in
      ExportDescription(name: "export \(number)", traits: ExportTraits(byteCount: 1 << 20))
    }
    var talk = Talk(exports: exports)
    talk.send(clientFlags() + (0..<4096).flatMap { _ in option(3) })
    #expect(talk.violation == .tooManyOptions(max: 32 * 256))
    #expect(talk.sent.count == 32 * listAnswerByteCount(exports))

    var walk = Talk(exports: exports)
    walk.send(clientFlags(), option(3), structuredReplyOption)
    for export in exports {
      walk.send(option(6, infoData(export.name)), listMeta(export.name), setMeta(export.name))
    }
    walk.send(goOption("export 255"))
    #expect(walk.negotiated?.exportIndex == 255)
  }

  private func listAnswerByteCount(_ exports: [ExportDescription]) -> Int {
    exports.reduce(20) { $0 + 20 + 4 + $1.name.utf8.count }
  }

  @Test func `tells clients that the server stops, except at ABORT`() {
    // proto.md "NBD_REP_ERR_SHUTDOWN"
    var talk = Talk()
    talk.send(clientFlags())
    talk.handshake.isStopping = true
    for number in [3, 5, 6, 7, 8, 9, 10, 11, 99] as [UInt32] { talk.send(option(number)) }
    #expect(talk.types == Array(repeating: ReplyType.shutdown, count: 9))
    talk.send(option(2))
    #expect(talk.replies.last == Reply(option: 2, type: ReplyType.ack))
    #expect(talk.handshake.outcome == .finished)
  }

  @Test func `knows whether the client is in the middle of a message`() {
    // proto.md "NBD_REP_ERR_SHUTDOWN": who is, is answered before the server closes
    let bytes = clientFlags() + option(77, [1, 2, 3]) + option(6, infoData("disk"))
    let borders: Set = [0, 4, 4 + 16 + 3, bytes.count]
    for count in 0...bytes.count {
      var talk = Talk()
      talk.send(Array(bytes[..<count]))
      #expect(talk.handshake.isMidMessage == !borders.contains(count), "\(count) bytes")
    }
  }

  @Test func `gives its violations as sentences without the client's bytes`() {
    let violations: [ProtocolViolation] = [
      .unknownClientFlags(4), .optionNeedsFixedNewstyle(option: 3), .badOptionMagic,
      .optionTooLong(option: 7, byteCount: 99), .tooManyOptions(max: 32),
      .unknownExport(shownName: "x"), .malformedExportName, .stopping,
      .exportNameWithExtendedHeaders,
    ]
    #expect(Set(violations.map(\.description)).count == violations.count)
  }

  @Test func `survives random bytes at each stage`() {
    // CVE-2017-7539: unexpected data instead of flags ended QEMU's server
    var generator = SeededGenerator(state: 2017)
    let openings = [[], clientFlags(), clientFlags() + structuredReplyOption]
    for round in 0..<2000 {
      var talk = Talk()
      talk.send(openings[round % openings.count])
      var bytes = (0..<Int.random(in: 0...64, using: &generator)).map { _ in
        UInt8.random(in: 0...255, using: &generator)
      }
      if round % 2 == 0 {
        let number = UInt32.random(in: 0...12, using: &generator)
        bytes = option(number, bytes)
      }
      talk.send(bytes)
      #expect(parse(talk.sent).replies.allSatisfy { $0.payload.count <= 4096 })
    }
  }

  @Test func `without exports is our own mistake and traps`() async {
    await #expect(processExitsWith: .failure) {
      _ = ServerHandshake(exports: [], limits: RequestLimits())
    }
  }
}
