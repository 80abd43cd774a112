// SPDX-License-Identifier: Apache-2.0
//
// LIST_META_CONTEXT and SET_META_CONTEXT. Spec: proto.md, "NBD_OPT_LIST_META_CONTEXT",
// "NBD_OPT_SET_META_CONTEXT", "Metadata querying"; reference/nbd.md 2.2.

import BlockTypes
import NBDProtocol
import Testing

/// The contexts that the replies to an option name, with their ids.
private func contexts(_ talk: Talk, _ number: UInt32) -> [String] {
  talk.replies.filter { $0.option == number && $0.type == ReplyType.metaContext }.map {
    "\($0.payload[3]) \(String(decoding: $0.payload[4...], as: UTF8.self))"
  }
}

private func listed(_ queries: String...) -> [String] {
  var talk = Talk()
  talk.send(clientFlags(), structuredReplyOption, option(9, metaData("disk", queries)))
  #expect(talk.types.last == ReplyType.ack)
  return contexts(talk, 9)
}

/// What SET selects, checked to agree with what the replies say.
private func selected(_ queries: String...) -> [String] {
  var talk = Talk()
  talk.send(
    clientFlags(), structuredReplyOption, option(10, metaData("disk", queries)), goOption("disk"))
  let names = contexts(talk, 10)
  #expect(talk.negotiated?.contexts.count == names.count)
  return names
}

@Suite struct `LIST_META_CONTEXT` {
  @Test func `without queries shows every context, ids 0`() {  // meta.list-all
    #expect(listed() == ["0 base:allocation", "0 qemu:allocation-depth"])
  }

  @Test func `shows a namespace for its wildcard`() {  // meta.list-wildcard
    #expect(listed("base:") == ["0 base:allocation"])
    #expect(listed("qemu:") == ["0 qemu:allocation-depth"])
    #expect(listed("qemu:", "base:").count == 2)
  }

  @Test func `shows what is named exactly, each once`() {  // meta.list-exact
    #expect(listed("base:allocation") == ["0 base:allocation"])
    #expect(listed("base:allocation", "base:", "base:allocation") == ["0 base:allocation"])
  }

  @Test(arguments: ["x:", "x:y", "base:foo", "qemu:dirty-bitmap:b", "base", "", "base:allocatio"])
  func `ignores what it does not know`(_ query: String) {
    // meta.unknown-namespace, meta.unknown-leaf, meta.no-colon
    #expect(listed(query) == [])
    #expect(listed(query, "base:allocation") == ["0 base:allocation"])
  }

  @Test func `works before structured replies`() {  // meta.list-before-structured (MAY)
    var talk = Talk()
    talk.send(clientFlags(), listMeta("disk"))
    #expect(contexts(talk, 9).count == 2)
  }

  @Test func `shows only what the export has`() {
    var talk = Talk(exports: [other])
    talk.send(clientFlags(), listMeta("other"))
    #expect(contexts(talk, 9) == ["0 base:allocation"])
  }

  @Test func `does not touch what SET selected`() {
    var talk = Talk()
    talk.send(
      clientFlags(), structuredReplyOption, setMeta("disk", "base:allocation"), listMeta("disk"),
      goOption("disk"))
    #expect(talk.negotiated?.contexts == .baseAllocation)
  }
}

@Suite struct `an export with dirty bitmaps` {
  private let bitmaps = ExportDescription(
    name: "disk", traits: ExportTraits(byteCount: 1 << 20),
    contexts: MetaContext.ofEveryImage + [
      .dirtyBitmap("b", number: 0), .dirtyBitmap("c:d", number: 1),
      .dirtyBitmap("caf\u{e9}", number: 61),
    ])

  private func listed(_ queries: String...) -> [String] {
    var talk = Talk(exports: [bitmaps])
    talk.send(clientFlags(), option(9, metaData("disk", queries)))
    return contexts(talk, 9).map { String($0.dropFirst(2)) }
  }

  @Test func `lists them for qemu: and for qemu:dirty-bitmap:`() {  // reference/nbd.md 2.2
    let all = ["qemu:dirty-bitmap:b", "qemu:dirty-bitmap:c:d", "qemu:dirty-bitmap:caf\u{e9}"]
    #expect(listed("qemu:dirty-bitmap:") == all)
    #expect(listed("qemu:") == ["qemu:allocation-depth"] + all)
    #expect(listed().count == 5)
    #expect(listed("base:", "qemu:dirty-bitmap:b") == ["base:allocation", all[0]])
  }

  @Test(arguments: ["qemu:dirty-bitmap", "qemu:dirty-bitmap:c:", "qemu:dirty-bitmap:x", "qemu:d"])
  func `lists none for what is no wildcard and no name`(_ query: String) {
    #expect(listed(query) == [])
  }

  @Test func `gives each an id of its own, from 2 on`() {
    var talk = Talk(exports: [bitmaps])
    talk.send(
      clientFlags(), extendedHeadersOption,
      setMeta(
        "disk", "qemu:dirty-bitmap:c:d", "qemu:dirty-bitmap:", "base:allocation",
        "qemu:dirty-bitmap:caf\u{e9}"), goOption("disk"))
    #expect(
      contexts(talk, 10) == [
        "0 base:allocation", "3 qemu:dirty-bitmap:c:d", "63 qemu:dirty-bitmap:caf\u{e9}",
      ])
    #expect(talk.negotiated?.contexts.rawValue == 1 << 0 | 1 << 3 | 1 << 63)
  }

  @Test func `with two contexts of one id is our own mistake and traps`() async {
    await #expect(processExitsWith: .failure) {
      _ = ExportDescription(
        name: "", traits: ExportTraits(byteCount: 0),
        contexts: [.dirtyBitmap("a", number: 0), .dirtyBitmap("b", number: 0)])
    }
    await #expect(processExitsWith: .failure) { _ = MetaContext.dirtyBitmap("a", number: 62) }
  }
}

@Suite struct `a set of contexts` {
  @Test func `gives its ids in order and is empty then`() {
    var set: MetaContextSet = [.allocationDepth]
    set.insert(wireID: 63)
    set.insert(wireID: 0)
    #expect(set.count == 3)
    #expect([set.popFirst(), set.popFirst(), set.popFirst(), set.popFirst()] == [0, 1, 63, nil])
  }

  @Test func `knows no id beyond 63`() {
    let all = MetaContextSet(rawValue: .max)
    #expect(all.contains(wireID: 63))
    for id in [64, 65, 128, .max] as [UInt32] { #expect(!all.contains(wireID: id)) }
  }
}

@Suite struct `SET_META_CONTEXT` {
  @Test func `selects what is named, with an id for each`() {  // meta.set
    #expect(selected("base:allocation") == ["0 base:allocation"])
    #expect(selected("qemu:allocation-depth") == ["1 qemu:allocation-depth"])
    #expect(selected("qemu:allocation-depth", "base:allocation").count == 2)
  }

  @Test func `ignores wildcards and the unknown`() {  // meta.set-wildcard, meta.unknown-leaf
    #expect(selected("base:", "qemu:", "base:foo", "x:y", "nocolon") == [])
  }

  @Test func `selects a context that is named twice once`() {  // meta.set-duplicate
    #expect(selected("base:allocation", "base:allocation") == ["0 base:allocation"])
  }

  @Test func `without queries selects nothing`() {  // meta.set-zero
    #expect(selected() == [])
  }

  @Test func `needs structured replies first`() {  // meta.set-before-structured
    var talk = Talk()
    talk.send(
      clientFlags(), setMeta("disk", "base:allocation"), structuredReplyOption, goOption("disk"))
    #expect(talk.types.first == ReplyType.invalid)
    #expect(talk.negotiated?.contexts == [])
  }

  @Test func `works with extended headers alone`() {  // ext.meta-without-structured
    var talk = Talk()
    talk.send(
      clientFlags(), extendedHeadersOption, setMeta("disk", "base:allocation"), goOption("disk"))
    #expect(talk.negotiated?.contexts == .baseAllocation)
  }

  @Test func `replaces the earlier selection`() {  // proto.md "NBD_OPT_SET_META_CONTEXT"
    var talk = Talk()
    talk.send(
      clientFlags(), structuredReplyOption, setMeta("disk", "base:allocation"),
      setMeta("disk", "qemu:allocation-depth"), goOption("disk"))
    #expect(talk.negotiated?.contexts == .allocationDepth)
  }

  @Test func `clears the earlier selection when it fails, however it fails`() {
    // meta.failed-set-clears
    let failures = [
      setMeta("nope", "base:allocation"), option(10, metaData("disk", []) + [0]), option(10),
      option(10, [UInt8](repeating: 0, count: 200 << 10)),
    ]
    for failure in failures {
      var talk = Talk()
      talk.send(
        clientFlags(), structuredReplyOption, setMeta("disk", "base:allocation"), failure,
        goOption("disk"))
      #expect(talk.negotiated?.contexts == [])
      #expect(talk.negotiated?.structuredReplies == true)
    }
  }

  @Test func `counts only for the export that is entered`() {  // meta.other-export
    var talk = Talk(exports: [disk, other])
    talk.send(
      clientFlags(), structuredReplyOption, setMeta("other", "base:allocation"), goOption("disk"))
    #expect(talk.negotiated?.contexts == [])
  }

  @Test(arguments: [("", "disk"), ("disk", ""), ("", ""), ("disk", "disk")])
  func `takes the empty name and the first export's name for the same`(
    _ set: String, _ entered: String
  ) {
    var talk = Talk(exports: [disk, other])
    talk.send(
      clientFlags(), structuredReplyOption, setMeta(set, "base:allocation"), goOption(entered))
    #expect(talk.negotiated?.contexts == .baseAllocation)
  }
}

@Suite struct `both meta context options` {
  @Test(arguments: [9, 10] as [UInt32])
  func `fail with ERR_UNKNOWN for an unknown export`(_ number: UInt32) {  // meta.unknown-export
    var talk = Talk()
    talk.send(clientFlags(), structuredReplyOption, option(number, metaData("nope", [])))
    #expect(talk.types.last == ReplyType.unknown)
  }

  @Test(arguments: [9, 10] as [UInt32])
  func `fail with ERR_INVALID for malformed data and stay in step`(_ number: UInt32) {
    // meta.query-overrun, meta.trailing-junk, meta.long-query, meta.non-utf8
    let sound = metaData("disk", ["base:allocation"])
    let malformed: [[UInt8]] = [
      sound + [0], sound + [1, 2, 3, 4, 5], bigEndian(UInt32(9)) + Array("disk".utf8),
      counted(Array("disk".utf8)) + bigEndian(UInt32(1)) + bigEndian(UInt32.max) + [0x62],
      metaData("disk", [String(repeating: "q", count: 4097)]), metaData("disk", ["base:\0"]),
      metaData(String(repeating: "n", count: 4097), []),
      counted(Array("disk".utf8)) + bigEndian(UInt32(1)) + counted([0x62, 0x3a, 0xff]),
    ]
    for data in malformed + sound.indices.map({ Array(sound[..<$0]) }) {
      var talk = Talk()
      talk.send(clientFlags(), structuredReplyOption, option(number, data), goOption("disk"))
      #expect(talk.replies[1].type == ReplyType.invalid)
      #expect(talk.negotiated?.contexts == [])
    }
  }

  @Test(arguments: [9, 10] as [UInt32])
  func `take 64 queries and refuse 65 with ERR_TOO_BIG`(_ number: UInt32) {  // meta.many-queries
    for (count, expected) in [(64, ReplyType.ack), (65, ReplyType.tooBig)] {
      let data = metaData("disk", Array(repeating: "x:y", count: count))
      var talk = Talk()
      talk.send(clientFlags(), structuredReplyOption, option(number, data), goOption("disk"))
      #expect(talk.replies[1].type == expected)
      #expect(talk.negotiated != nil)
    }
  }

  @Test func `take a query of 4096 bytes`() {
    #expect(listed("base:" + String(repeating: "q", count: 4091), "base:") == ["0 base:allocation"])
  }
}
