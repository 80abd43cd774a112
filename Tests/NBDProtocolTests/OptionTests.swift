// SPDX-License-Identifier: Apache-2.0
//
// Options that need no data. Spec: proto.md, "Option types", "Option reply types".

import BlockTypes
import NBDProtocol
import Testing

@Suite struct `an option` {
  @Test func `that is unknown gets ERR_UNSUP, its data is skipped, and the talk goes on`() {
    // proto.md "Option types"; opt.unknown, opt.unknown-payload, opt.peek-export
    for number in Array(0...300) + [0xffff, 0x8000_0000, 0xffff_ffff] as [UInt32]
    where !(1...11).contains(number) || number == 4 {
      for payload in [[], [1], [UInt8](repeating: 0x42, count: 5000)] as [[UInt8]] {
        var talk = Talk()
        talk.send(clientFlags(), option(number, payload), goOption("disk"))
        #expect(talk.replies.first?.option == number)
        #expect(talk.replies.first?.type == ReplyType.unsup)
        #expect(talk.negotiated != nil)
      }
    }
  }

  @Test func `with 1 MiB of data is skipped without being kept`() {
    var talk = Talk()
    talk.send(clientFlags(), option(99, [UInt8](repeating: 7, count: 1 << 20)), goOption("disk"))
    #expect(talk.replies.first?.type == ReplyType.unsup)
    #expect(talk.negotiated != nil)
  }

  @Test(arguments: [1, 2, 3, 7, 10, 99] as [UInt32])
  func `that announces more than 32 MiB ends the handshake at its header`(_ number: UInt32) {
    // opt.oversize; CVE-2017-15119
    for count in [(32 << 20) + 1, 1 << 31, 0xffff_ffff] as [UInt32] {
      var talk = Talk()
      let header = Array("IHAVEOPT".utf8) + bigEndian(number) + bigEndian(count)
      talk.send(clientFlags(), header)
      #expect(talk.violation == .optionTooLong(option: number, byteCount: count))
      #expect(talk.sent.isEmpty)
    }
  }

  @Test(arguments: [6, 7, 9, 10] as [UInt32])
  func `that is known but too long to keep gets ERR_TOO_BIG`(_ number: UInt32) {
    // proto.md "NBD_REP_ERR_TOO_BIG"
    var talk = Talk()
    let payload = [UInt8](repeating: 0, count: (160 << 10) + 1)
    talk.send(clientFlags(), structuredReplyOption, option(number, payload), goOption("disk"))
    #expect(talk.replies[1].type == ReplyType.tooBig)
    #expect(talk.negotiated != nil)
  }

  @Test func `ABORT is acknowledged and ends the talk`() {  // proto.md "NBD_OPT_ABORT"; opt.abort
    var talk = Talk()
    let bytes = clientFlags() + option(2)
    #expect(talk.send(bytes, option(3)) == bytes.count)
    #expect(talk.replies == [Reply(option: 2, type: ReplyType.ack)])
    #expect(talk.handshake.outcome == .finished)
  }

  @Test func `ABORT with data is acknowledged after its data is drained`() {  // opt.abort-data
    var talk = Talk()
    talk.send(clientFlags(), Array(option(2, [1, 2, 3]).dropLast()))
    #expect(talk.handshake.outcome == .negotiating)
    talk.send([3])
    #expect(talk.types == [ReplyType.ack])
    #expect(talk.handshake.outcome == .finished)
  }

  @Test func `LIST names each export with its text, then acknowledges`() {
    // proto.md "NBD_OPT_LIST"; list.basic, list.has-export
    var talk = Talk(exports: [disk, other])
    talk.send(clientFlags(), option(3))
    #expect(
      talk.replies == [
        Reply(
          option: 3, type: ReplyType.server,
          payload: counted(Array("disk".utf8)) + Array("a disk".utf8)),
        Reply(option: 3, type: ReplyType.server, payload: counted(Array("other".utf8))),
        Reply(option: 3, type: ReplyType.ack),
      ])
  }

  @Test func `LIST with data is refused with ERR_INVALID`() {  // list.data
    var talk = Talk()
    talk.send(clientFlags(), option(3, [0]), option(3))
    #expect(talk.types == [ReplyType.invalid, ReplyType.server, ReplyType.ack])
  }

  @Test func `LIST is refused with ERR_POLICY where it is not allowed`() {
    // proto.md "NBD_REP_ERR_POLICY"
    var talk = Talk(listIsAllowed: false)
    talk.send(clientFlags(), option(3), goOption("disk"))
    #expect(talk.types.first == ReplyType.policy)
    #expect(talk.negotiated != nil)
  }

  @Test func `STARTTLS is refused with ERR_POLICY, and with data as invalid`() {
    // proto.md "NOTLS mode"; starttls.notls
    var talk = Talk()
    talk.send(clientFlags(), option(5), option(5, [1]), goOption("disk"))
    #expect(talk.types.prefix(2) == [ReplyType.policy, ReplyType.invalid])
    #expect(talk.negotiated != nil)
  }

  @Test func `STRUCTURED_REPLY is acknowledged once, and refused with data`() {
    // proto.md "NBD_OPT_STRUCTURED_REPLY"; structured.data, structured.duplicate
    var talk = Talk()
    talk.send(clientFlags(), option(8, [1]), option(8), option(8), goOption("disk"))
    #expect(talk.types.prefix(3) == [ReplyType.invalid, ReplyType.ack, ReplyType.invalid])
    #expect(talk.negotiated?.structuredReplies == true)
  }

  @Test func `STRUCTURED_REPLY refused with data is not negotiated`() {
    var talk = Talk()
    talk.send(clientFlags(), option(8, [1]), goOption("disk"))
    #expect(talk.negotiated?.structuredReplies == false)
  }
}
