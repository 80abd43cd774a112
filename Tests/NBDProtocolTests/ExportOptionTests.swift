// SPDX-License-Identifier: Apache-2.0
//
// EXPORT_NAME, INFO and GO. Spec: proto.md, "NBD_OPT_EXPORT_NAME", "NBD_OPT_INFO", "NBD_OPT_GO".

import BlockTypes
import NBDProtocol
import Testing

/// The size and flags of `disk`, without and with structured replies.
private let simpleTraits = bigEndian(UInt64(1 << 20)) + [0x0c, 0x6d] as [UInt8]
private let structuredTraits = bigEndian(UInt64(1 << 20)) + [0x0c, 0xed] as [UInt8]

@Suite struct `EXPORT_NAME` {
  @Test func `is answered with size, flags and 124 zeroes`() {  // export-name.zeroes
    var talk = Talk()
    talk.send(clientFlags(1), option(1, Array("disk".utf8)))
    #expect(talk.sent == simpleTraits + [UInt8](repeating: 0, count: 124))
    #expect(talk.negotiated == Negotiated(exportIndex: 0))
  }

  @Test func `is answered without zeroes when that was agreed`() {  // export-name.no-zeroes
    var talk = Talk()
    talk.send(clientFlags(3), option(1))
    #expect(talk.sent == simpleTraits)
    #expect(talk.negotiated == Negotiated(exportIndex: 0))
  }

  @Test func `works after other options`() {  // export-name.after-structured
    var talk = Talk(exports: [other, disk])
    talk.send(
      clientFlags(), structuredReplyOption, setMeta("disk", "base:allocation"),
      option(1, Array("disk".utf8)))
    #expect(talk.rest == structuredTraits)
    #expect(
      talk.negotiated
        == Negotiated(exportIndex: 1, structuredReplies: true, contexts: .baseAllocation))
  }

  @Test func `of an unknown export ends the talk without a byte`() {  // export-name.unknown
    var talk = Talk()
    talk.send(clientFlags(), option(1, Array("nope\u{1b}[2J".utf8)))
    #expect(talk.violation == .unknownExport(shownName: "nope\u{fffd}[2J"))
    #expect(talk.sent.isEmpty)
  }

  @Test func `that is no string ends the talk`() {  // proto.md "String values"
    for name in [Array("disk\0".utf8), [0xff], [UInt8](repeating: 0x61, count: 4097)] {
      var talk = Talk()
      talk.send(clientFlags(), option(1, name))
      #expect(talk.violation != nil)
      #expect(talk.sent.isEmpty)
    }
  }

  @Test(arguments: [255, 256, 257, 4095, 4096])
  func `of any allowed length is looked up`(_ count: Int) {  // CVE-2017-15118
    let name = String(repeating: "n", count: count)
    let export = ExportDescription(name: name, traits: ExportTraits(byteCount: 0))
    var talk = Talk(exports: [export])
    talk.send(clientFlags(), option(1, Array(name.utf8)))
    #expect(talk.negotiated != nil)
  }

  @Test func `while the server stops ends the talk`() {
    var talk = Talk()
    talk.handshake.isStopping = true
    talk.send(clientFlags(), option(1))
    #expect(talk.violation == .stopping)
  }
}

@Suite struct `INFO and GO` {
  @Test(arguments: [6, 7] as [UInt32])
  func `tell size, text and block sizes, then acknowledge`(_ number: UInt32) {
    // proto.md "NBD_INFO_EXPORT" and following; info.basic, info.description, info.block-size
    var talk = Talk()
    talk.send(clientFlags(), option(number, infoData("disk", requests: [3])))
    let sizes = bigEndian(UInt32(1)) + bigEndian(UInt32(4096)) + bigEndian(UInt32(32 << 20))
    #expect(
      talk.replies == [
        Reply(option: number, type: ReplyType.info, payload: [0, 0] + simpleTraits),
        Reply(option: number, type: ReplyType.info, payload: [0, 2] + Array("a disk".utf8)),
        Reply(option: number, type: ReplyType.info, payload: [0, 3] + sizes),
        Reply(option: number, type: ReplyType.ack),
      ])
  }

  @Test func `with GO no padding follows the acknowledgement`() {  // go.no-padding
    for flags in [1, 3] as [UInt32] {
      var talk = Talk()
      talk.send(clientFlags(flags), goOption("disk"))
      #expect(talk.rest.isEmpty)
      #expect(talk.types.last == ReplyType.ack)
    }
  }

  @Test func `with INFO the talk goes on and GO says the same`() {  // info.same-as-go
    var talk = Talk()
    let data = infoData("disk", requests: [1, 3, 77])
    talk.send(clientFlags(), option(6, data))
    #expect(talk.handshake.outcome == .negotiating)
    let told = talk.replies.map { Reply(option: 7, type: $0.type, payload: $0.payload) }
    talk.sent = []
    talk.send(option(7, data))
    #expect(talk.replies == told)
    #expect(talk.negotiated != nil)
  }

  @Test func `tell the name when asked: the one in LIST`() {  // info.name
    var talk = Talk(exports: [disk, other])
    talk.send(clientFlags(), option(6, infoData("", requests: [1])))
    #expect(talk.replies.contains { $0.payload == [0, 1] + Array("disk".utf8) })
    talk.sent = []
    talk.send(option(6, infoData("")))
    #expect(!talk.replies.contains { $0.payload.starts(with: [0, 1]) })
  }

  @Test func `ignore information requests they do not know, even all 65,535`() {
    // info.unknown-type; CVE-2022-26496
    var talk = Talk()
    let requests = (0..<65_535).map { UInt16($0) }
    talk.send(clientFlags(), option(6, infoData("disk", requests: requests)), goOption("disk"))
    #expect(talk.types.count { $0 == ReplyType.ack } == 2)
    #expect(talk.negotiated?.blockSizesAgreed == false)
  }

  @Test func `of an unknown export fail with ERR_UNKNOWN and no information`() {
    // info.unknown-export
    var talk = Talk()
    talk.send(clientFlags(), option(6, infoData("nope")), goOption("nope"), goOption("disk"))
    #expect(talk.types.prefix(2) == [ReplyType.unknown, ReplyType.unknown])
    #expect(talk.negotiated != nil)
  }

  @Test func `compare names by their bytes`() {  // Unicode's canonical equivalence does not count
    let export = ExportDescription(name: "caf\u{e9}", traits: ExportTraits(byteCount: 0))
    var talk = Talk(exports: [export])
    talk.send(clientFlags(), goOption("cafe\u{301}"))
    #expect(talk.types == [ReplyType.unknown])
    talk.send(goOption("caf\u{e9}"))
    #expect(talk.negotiated != nil)
  }

  @Test(arguments: [6, 7] as [UInt32])
  func `with malformed data fail with ERR_INVALID and stay in step`(_ number: UInt32) {
    // info.trailing-junk, info.short, info.name-overrun, info.count-overrun, info.overlong-name
    let long = String(repeating: "x", count: 4097)
    let malformed: [[UInt8]] = [
      infoData("disk") + [0], infoData("disk", requests: [1]).dropLast(),
      bigEndian(UInt32(5)) + Array("disk".utf8), bigEndian(UInt32.max) + [0, 0],
      bigEndian(UInt32(4)) + Array("disk".utf8) + [0, 1], infoData(long), infoData("di\0sk"),
      counted([0xc3, 0x28]) + [0, 0],
    ]
    for data in malformed {
      var talk = Talk()
      talk.send(clientFlags(), option(number, data), goOption("disk"))
      #expect(talk.replies.first?.type == ReplyType.invalid)
      #expect(talk.negotiated != nil)
    }
  }

  @Test func `cut at every length fail with ERR_INVALID`() {
    let data = infoData("disk", requests: [1, 3])
    for count in 0..<data.count {
      var talk = Talk()
      talk.send(clientFlags(), option(7, Array(data[..<count])))
      #expect(talk.types == [ReplyType.invalid])
    }
  }

  @Test func `repeat no more than 80 cleaned characters of a name in an error`() throws {
    // CVE-2020-10761
    for name in [String(repeating: "x", count: 4096), String(repeating: "\u{1}", count: 4096)] {
      var talk = Talk()
      talk.send(clientFlags(), goOption(name))
      let reply = try #require(talk.replies.first)
      let text = String(decoding: reply.payload, as: UTF8.self)
      #expect(text.unicodeScalars.count < 120)
      #expect(!text.unicodeScalars.contains { $0.value < 0x20 })
    }
  }

  @Test func `tell the minimum block size to those who ask and hold only them to it`() {
    // proto.md "NBD_INFO_BLOCK_SIZE"
    let export = ExportDescription(
      name: "", traits: ExportTraits(byteCount: 8192, minimumBlockByteCount: 512))
    for (requests, minimum) in [([3], 512), ([], 1)] as [([UInt16], UInt32)] {
      var talk = Talk(exports: [export])
      talk.send(clientFlags(), goOption("", requests: requests))
      let sizes = talk.replies.first { $0.payload.starts(with: [0, 3]) }
      #expect(sizes?.payload.dropFirst(2).prefix(4) == bigEndian(minimum)[...])
      #expect(talk.negotiated?.blockSizesAgreed == (minimum == 512))
    }
  }

  @Test func `in any order and number enter only what GO names`() {  // CVE-2019-14851
    var talk = Talk(exports: [disk, other])
    talk.send(
      clientFlags(), option(3), structuredReplyOption, option(6, infoData("disk")),
      option(6, infoData("other")), setMeta("disk", "base:allocation"), goOption("other"))
    #expect(talk.negotiated == Negotiated(exportIndex: 1, structuredReplies: true))
  }
}
