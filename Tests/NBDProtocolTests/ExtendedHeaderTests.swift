// SPDX-License-Identifier: Apache-2.0
//
// Extended headers on the wire, and how they are negotiated. Spec: proto.md of the branch
// extension-ext-header, "NBD_OPT_EXTENDED_HEADERS", "Extended request message", "Extended reply
// chunk message".

import BlockTypes
import NBDProtocol
import Testing

/// BLOCK_STATUS with REQ_ONE and PAYLOAD_LEN, cookie 0x0123456789abcdef, 2^40 + 3 at 4096.
private let golden: [UInt8] = [
  0x21, 0xe4, 0x1c, 0x71, 0x00, 0x28, 0x00, 0x07,
  0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
  0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x00,
  0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x03,
]

private func decode(_ bytes: [UInt8], at offset: Int = 0) -> RequestHeader? {
  RequestHeader(decodingExtended: bytes.span.bytes, at: offset)
}

@Suite struct `an extended request header` {
  @Test func `is read from its golden vector`() {
    let header = RequestHeader(
      flags: [.requestOne, .payloadLength], command: 7, cookie: 0x0123_4567_89ab_cdef,
      offset: 4096, length: 1 << 40 + 3)
    #expect(decode(golden) == header)
    #expect(decode([9, 9, 9] + golden + [9], at: 3) == header)
  }

  @Test(arguments: [0x2560_9513, 0x2560_9514, 0x1256_0953, 0x6e8a_278c] as [UInt32])
  func `with another magic is nil`(_ magic: UInt32) {  // ext.compact-magic
    #expect(decode(bigEndian(magic) + golden[4...]) == nil)
  }

  @Test func `of 31 bytes is our own mistake and traps`() async {
    await #expect(processExitsWith: .failure) { _ = decode([UInt8](repeating: 0, count: 31)) }
  }
}

@Suite struct `the payload of BLOCK_STATUS` {
  private func decode(_ bytes: [UInt8], _ selected: MetaContextSet) -> BlockStatusPayload? {
    BlockStatusPayload(
      decoding: ([7] + bytes).span.bytes, at: 1, byteCount: bytes.count, selected: selected)
  }

  private func payload(_ length: UInt64, _ ids: UInt32...) -> [UInt8] {
    bigEndian(length) + ids.flatMap { bigEndian($0) }
  }

  @Test func `is a length and the ids of contexts`() {  // ext.bs-payload
    let both: MetaContextSet = [.baseAllocation, .allocationDepth]
    let one = decode(payload(1 << 40, 1), both)
    #expect(one?.effectByteCount == 1 << 40)
    #expect(one?.contexts == .allocationDepth)
    #expect(decode(payload(5, 1, 0), both)?.contexts == both)
  }

  @Test func `is nil with no id, one twice, an unknown one, and cut anywhere`() {
    // ext.bs-payload-bad
    let both: MetaContextSet = [.baseAllocation, .allocationDepth]
    for bytes in [payload(5), payload(5, 0, 0), payload(5, 2), payload(5, .max), payload(5, 64)] {
      #expect(decode(bytes, both) == nil)
    }
    #expect(decode(payload(5, 1), .baseAllocation) == nil)
    #expect(decode(payload(5, 0), []) == nil)
    let whole = payload(5, 0, 1)
    for count in 0..<whole.count where count != 12 {
      #expect(decode(Array(whole[..<count]), both) == nil)
    }
    #expect(decode(whole + [0, 0, 0, 0], both) == nil)
  }
}

private let request = RequestIdentity(cookie: 0x0102_0304_0506_0708, offset: 0x1112_1314_1516_1718)

private func encoded(_ encode: (inout MutableRawSpan, Int) -> Int) -> [UInt8] {
  var bytes = [UInt8](repeating: 0xee, count: 64)
  var written = 0
  do {
    var span = bytes.mutableSpan
    var raw = span.mutableBytes
    written = encode(&raw, 3)
  }
  #expect(bytes[..<3].allSatisfy { $0 == 0xee })
  #expect(bytes[(3 + written)...].allSatisfy { $0 == 0xee })
  return Array(bytes[3..<3 + written])
}

/// Magic, flags, type, cookie, offset of the request, length of the payload.
private func chunk(_ isDone: Bool, _ type: UInt16, _ count: UInt64, _ payload: [UInt8]) -> [UInt8] {
  [0x6e, 0x8a, 0x27, 0x8c, 0, isDone ? 1 : 0] + bigEndian(type) + [1, 2, 3, 4, 5, 6, 7, 8]
    + [0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18] + bigEndian(count) + payload
}

@Suite struct `an extended reply on the wire` {
  private let framing = ReplyFraming.extended

  @Test func `to success without data: NONE, never a simple reply`() {  // ext.errors
    let bytes = encoded { framing.encodeResult(.none, of: .write, to: request, into: &$0, at: $1) }
    #expect(bytes == chunk(true, 0, 0, []))
    #expect(encoded { framing.encodeNone(to: request, into: &$0, at: $1) } == bytes)
  }

  @Test(arguments: [.read, .write, .flush, nil] as [Command?])
  func `to any failure: ERROR`(_ command: Command?) {  // ext.errors
    let bytes = encoded {
      framing.encodeResult(.ENOSPC, of: command, to: request, into: &$0, at: $1)
    }
    #expect(bytes == chunk(true, 0x8001, 6, [0, 0, 0, 28, 0, 0]))
  }

  @Test(arguments: [true, false]) func `OFFSET_DATA`(_ isDone: Bool) {  // ext.read
    let bytes = encoded {
      framing.encodeDataHeader(
        to: request, offset: 0x2000, byteCount: 5, isDone: isDone, into: &$0, at: $1)
    }
    #expect(bytes == chunk(isDone, 1, 13, bigEndian(UInt64(0x2000))))
  }

  @Test(arguments: [true, false]) func `OFFSET_HOLE`(_ isDone: Bool) {
    let bytes = encoded {
      framing.encodeHole(
        to: request, offset: 0x2000, byteCount: 0x200, isDone: isDone, into: &$0, at: $1)
    }
    #expect(bytes == chunk(isDone, 2, 12, bigEndian(UInt64(0x2000)) + bigEndian(UInt32(0x200))))
  }

  @Test func `ERROR_OFFSET`() {
    let bytes = encoded {
      framing.encodeErrorOffset(to: request, error: .EIO, offset: 0x2000, into: &$0, at: $1)
    }
    #expect(bytes == chunk(true, 0x8002, 14, [0, 0, 0, 5, 0, 0] + bigEndian(UInt64(0x2000))))
  }

  @Test func `BLOCK_STATUS_EXT: context id, count, pairs of 64 bits`() {  // ext.block-status
    let bytes = encoded {
      framing.encodeStatusHeader(
        to: request, contextID: 1, extentCount: 2, isDone: false, into: &$0, at: $1)
    }
    #expect(bytes == chunk(false, 6, 40, [0, 0, 0, 1, 0, 0, 0, 2]))
    let extent = encoded {
      ExtendedReply.encodeExtent(Extent(byteCount: 1 << 40, status: 3), into: &$0, at: $1)
    }
    #expect(extent == bigEndian(UInt64(1 << 40)) + bigEndian(UInt64(3)))
    #expect(framing.extentByteCount == extent.count)
  }

  @Test func `structured and simple framing stay what they were`() {
    let write = encoded {
      ReplyFraming.structured.encodeResult(.EIO, of: .write, to: request, into: &$0, at: $1)
    }
    #expect(write == [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 1, 2, 3, 4, 5, 6, 7, 8])
    let read = encoded {
      ReplyFraming.structured.encodeResult(.EIO, of: .read, to: request, into: &$0, at: $1)
    }
    #expect(read.count == StructuredReply.errorByteCount)
    let simple = encoded {
      ReplyFraming.simple.encodeResult(.EIO, of: .read, to: request, into: &$0, at: $1)
    }
    #expect(simple == write)
  }

  @Test func `with a chunk for a client of simple replies is our own mistake and traps`() async {
    await #expect(processExitsWith: .failure) {
      _ = encoded { ReplyFraming.simple.encodeNone(to: request, into: &$0, at: $1) }
    }
  }
}

@Suite struct `EXTENDED_HEADERS` {
  @Test func `is acknowledged once, and refused with data`() {
    // ext.negotiate, ext.data, ext.duplicate
    var talk = Talk()
    talk.send(clientFlags(), option(11, [1]), option(11), option(11), goOption("disk"))
    #expect(talk.types.prefix(3) == [ReplyType.invalid, ReplyType.ack, ReplyType.invalid])
    #expect(talk.negotiated?.extendedHeaders == true)
    #expect(talk.negotiated?.framing == .extended)
  }

  @Test func `refused with data is not negotiated`() {
    var talk = Talk()
    talk.send(clientFlags(), option(11, [1]), goOption("disk"))
    #expect(talk.negotiated?.extendedHeaders == false)
    #expect(talk.negotiated?.framing == .simple)
  }

  @Test func `takes precedence over structured replies asked for before`() {
    // ext.after-structured
    var talk = Talk()
    talk.send(clientFlags(), structuredReplyOption, extendedHeadersOption, goOption("disk"))
    #expect(talk.types.prefix(2) == [ReplyType.ack, ReplyType.ack])
    #expect(talk.negotiated?.framing == .extended)
  }

  @Test func `makes STRUCTURED_REPLY fail with ERR_EXT_HEADER_REQD`() {  // ext.structured-after
    for opening in [extendedHeadersOption, structuredReplyOption + extendedHeadersOption] {
      var talk = Talk()
      talk.send(clientFlags(), opening, structuredReplyOption, goOption("disk"))
      let reply = talk.replies.last { $0.option == 8 }
      #expect(reply?.type == ReplyType.extHeaderReqd)
      #expect(talk.negotiated?.framing == .extended)
    }
  }

  @Test func `brings DF without structured replies`() {
    var talk = Talk()
    talk.send(clientFlags(), extendedHeadersOption, goOption("disk"))
    #expect(talk.replies[1].payload.suffix(2) == [0x0c, 0xed])
  }

  @Test func `forbids EXPORT_NAME`() {  // reference/nbd.md 1.3
    var talk = Talk()
    talk.send(clientFlags(), extendedHeadersOption, option(1, Array("disk".utf8)))
    #expect(talk.violation == .exportNameWithExtendedHeaders)
  }

  @Test func `tells of the filter of BLOCK_STATUS where contexts are selected`() {
    // ext.flag-payload, flags.payload-needs-ext
    func flags(_ options: [UInt8]..., entry: UInt32) -> UInt8? {
      var talk = Talk(exports: [disk, other])
      talk.send(clientFlags(), options.flatMap { $0 }, option(entry, infoData("disk")))
      let info = talk.replies.first { $0.option == entry && $0.payload.starts(with: [0, 0]) }
      return info?.payload.dropLast().last
    }
    let set = setMeta("disk", "base:allocation")
    for entry in [6, 7] as [UInt32] {  // info.same-as-go
      #expect(flags(extendedHeadersOption, set, entry: entry) == 0x1c)
      #expect(flags(extendedHeadersOption, entry: entry) == 0x0c)
      #expect(flags(structuredReplyOption, set, entry: entry) == 0x0c)
      #expect(
        flags(extendedHeadersOption, setMeta("other", "base:allocation"), entry: entry) == 0x0c)
    }
  }
}
