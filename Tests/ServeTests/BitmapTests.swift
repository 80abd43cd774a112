// SPDX-License-Identifier: Apache-2.0
//
// Dirty bitmaps of a running server: as contexts on the wire, over the control socket, and as
// `strata bitmap`. Sources: QEMU docs/interop/nbd.rst; stratad(8); strata(1); decision 0018.

import Foundation
import TestSupport
import Testing

private let block = 65_536
private func context(_ name: String) -> String { "qemu:dirty-bitmap:" + name }

extension ServeFixture {
  fileprivate func ask(_ line: String) throws -> Answer {
    try ControlConnection.ask(line, at: control)
  }

  fileprivate func client(
    _ contexts: String..., structured: Bool = true, extended: Bool = false
  ) throws -> WireClient {
    try WireClient.entered(
      path: socket, structured: structured, extended: extended, contexts: contexts)
  }

  fileprivate func bitmaps() throws -> [String: Answer] {
    let list = try ask(#"{"ask":"bitmaps"}"#)["bitmaps"].list
    return Dictionary(list.map { ($0["name"].text ?? "", $0) }) { $1 }
  }

  /// Runs `strata bitmap`.
  fileprivate func bitmap(
    _ words: String...
  ) throws -> (code: Int32, output: String, error: String) {
    try runTool([try ServedProcess.path(of: "strata"), "bitmap"] + words)
  }
}

extension WireClient {
  /// The extents of a context over the whole disk, as lengths and flags.
  fileprivate func extents(
    _ name: String, _ offset: UInt64 = 0, _ length: UInt32 = 1 << 20, flags: UInt16 = 0
  ) throws -> [WireExtent] {
    let outcome = try call(.blockStatus, flags: flags, offset: offset, length: length)
    let id = try #require(contextIDs[name])
    return outcome.extents[id] ?? []
  }
}

private func extent(_ blockCount: Int, _ flags: UInt32) -> WireExtent {
  WireExtent(length: UInt64(blockCount * block), flags: flags)
}

@Suite struct `The dirty bitmaps of a server` {
  @Test func `tell clients what was written since`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled("--bitmap", "b0", "--bitmap", "fine:512")
    let client = try fixture.client(context("b0"), context("fine"))
    #expect(try client.extents(context("b0")) == [extent(16, 0)])
    #expect(try client.write(UInt64(block * 3 - 1), [1, 2]) == 0)
    #expect(try client.call(.writeZeroes, offset: UInt64(block * 15), length: 1).error == 0)
    #expect(try client.call(.trim, offset: UInt64(block * 8), length: UInt32(block)).error == 0)
    _ = try client.read(0, 1 << 20)
    #expect(
      try client.extents(context("b0")) == [
        extent(2, 0), extent(2, 1), extent(4, 0), extent(1, 1), extent(6, 0), extent(1, 1),
      ])
    #expect(
      try client.extents(context("fine"), 0, UInt32(block * 4)) == [
        WireExtent(length: UInt64(block * 3 - 512), flags: 0), WireExtent(length: 1_024, flags: 1),
        WireExtent(length: UInt64(block - 512), flags: 0),
      ])
    // "one extent" is one, and no longer than what was asked for.
    #expect(
      try client.extents(context("b0"), UInt64(block * 2 + 5), 7, flags: WireFlag.requestOne)
        == [WireExtent(length: 7, flags: 1)])
    #expect(
      try client.extents(context("b0"), UInt64(block * 4), 1 << 19, flags: WireFlag.requestOne)
        == [extent(4, 0)])
    try client.disconnect()
    #expect(server.stop() == 0)
  }

  @Test(arguments: [false, true])
  func `are told beside the contexts of every image, several at once`(extended: Bool) throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled("--bitmap", "a", "--bitmap", "b:4k")
    let writer = try fixture.client(structured: false)
    #expect(try writer.write(0, [UInt8](repeating: 1, count: block)) == 0)
    let client = try fixture.client(
      "base:allocation", "qemu:allocation-depth", context("b"), context("a"),
      structured: !extended, extended: extended)
    #expect(client.contextIDs.count == 4)
    let outcome =
      extended
      ? try client.callWide(.blockStatus, offset: 0, length: 1 << 20)
      : try client.call(.blockStatus, offset: 0, length: 1 << 20)
    #expect(outcome.chunkCount == 4)
    for (name, expected) in [
      ("base:allocation", [extent(16, 0)]),
      ("qemu:allocation-depth", [extent(16, 1)]),
      (context("a"), [extent(1, 1), extent(15, 0)]),
      (context("b"), [extent(1, 1), extent(15, 0)]),
    ] {
      let id = try #require(client.contextIDs[name])
      #expect(outcome.extents[id] == expected, "\(name)")
    }
    if extended {
      let id = try #require(client.contextIDs[context("a")])
      let filtered = try client.callWide(
        .blockStatus, offset: 0, length: 1 << 20, filter: [id])
      #expect(filtered.extents == [id: [extent(1, 1), extent(15, 0)]])
    }
    #expect(server.stop() == 0)
  }

  @Test func `are listed by name and by wildcard, and selected by name only`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled("--bitmap", "a", "--bitmap", "b")
    let client = try WireClient(path: fixture.socket)
    try client.greet()
    try client.negotiateStructuredReplies()
    func listed(_ queries: String...) throws -> [String] {
      try client.ask(9, WireClient.metaData("", queries)).replies.map {
        String(decoding: $0.payload.dropFirst(4), as: UTF8.self)
      }
    }
    let both = [context("a"), context("b")]
    #expect(try listed() == ["base:allocation", "qemu:allocation-depth"] + both)
    #expect(try listed("qemu:") == ["qemu:allocation-depth"] + both)
    #expect(try listed("qemu:dirty-bitmap:") == both)
    #expect(try listed(context("b")) == [context("b")])
    #expect(try listed(context("c")) == [])
    #expect(try client.setMetaContexts("", ["qemu:dirty-bitmap:", context("b")]) == [context("b")])
    #expect(server.stop() == 0)
  }

  @Test func `come and go while clients are there, and who comes later sees them`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    let early = try fixture.client("base:allocation", context("a"))
    #expect(early.contextIDs.count == 1)
    #expect(try fixture.ask(#"{"ask":"bitmap-add","name":"a"}"#)["done"].number == 1)
    #expect(try early.write(0, [1]) == 0)
    let late = try fixture.client(context("a"))
    #expect(try late.extents(context("a")) == [extent(1, 1), extent(15, 0)])
    let clients = try fixture.clients()
    #expect(clients[0]["contexts"].list.map(\.text) == ["base:allocation"])
    #expect(clients[1]["contexts"].list.map(\.text) == [context("a")])
    #expect(try fixture.bitmaps()["a"]?["clients"].list.map(\.number) == [2])
    #expect(
      try fixture.ask(#"{"ask":"bitmap-remove","name":"a"}"#)["error"].text
        == #"bitmap "a" is used by client 2"#)
    #expect(try late.extents(context("a")) == [extent(1, 1), extent(15, 0)])
    try late.disconnect()
    try fixture.waitForClients(1)
    #expect(try fixture.ask(#"{"ask":"bitmap-remove","name":"a"}"#)["done"].number == 1)
    #expect(try fixture.client("base:allocation", context("a")).contextIDs.count == 1)
    #expect(server.stop() == 0)
  }

  /// The client was told about a bitmap that is gone when it enters; another has its number.
  @Test func `that were replaced during a handshake end that client, not its successors`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled("--bitmap", "a")
    let slow = try WireClient(path: fixture.socket)
    try slow.greet()
    try slow.negotiateStructuredReplies()
    #expect(try slow.setMetaContexts("", [context("a")]) == [context("a")])
    for line in [#"{"ask":"bitmap-remove","name":"a"}"#, #"{"ask":"bitmap-add","name":"a"}"#] {
      #expect(try fixture.ask(line)["done"].number == 1)
    }
    #expect(throws: (any Error).self) {
      try slow.go()
      _ = try slow.extents(context("a"))
    }
    #expect(try fixture.client(context("a")).extents(context("a")) == [extent(16, 0)])
    #expect(server.stop() == 0)
  }

  @Test func `change at one moment, or not at all`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled("--bitmap", "a")
    let client = try fixture.client()
    #expect(try client.write(0, [1]) == 0)
    let refused = try fixture.ask(
      #"{"ask":"transaction","actions":[{"ask":"bitmap-clear","name":"a"},"#
        + #"{"ask":"bitmap-add","name":"b"},{"ask":"bitmap-enable","name":"c"}]}"#)
    #expect(refused["error"].text == #"there is no bitmap "c""#)
    #expect(try fixture.bitmaps().keys.sorted() == ["a"])
    #expect(try fixture.bitmaps()["a"]?["dirty-bytes"].number == block)
    let done = try fixture.ask(
      #"{"ask":"transaction","actions":[{"ask":"bitmap-add","name":"b","granularity":512},"#
        + #"{"ask":"bitmap-merge","sources":["a"],"target":"b"},"#
        + #"{"ask":"bitmap-clear","name":"a"},{"ask":"bitmap-disable","name":"b"}]}"#)
    #expect(done["done"].number == 4)
    #expect(try client.write(UInt64(block), [1]) == 0)
    let bitmaps = try fixture.bitmaps()
    #expect(bitmaps["a"]?["dirty-bytes"].number == block)
    #expect(bitmaps["b"]?["dirty-bytes"].number == block, "what a had, and nothing since")
    #expect(bitmaps["b"]?["enabled"].isTrue == false)
    #expect(server.stop() == 0)
  }

  @Test func `belong to one export of several, which has to be named`() throws {
    let fixture = try ServeFixture()
    let other = fixture.folder.path("other.raw")
    _ = FileManager.default.createFile(atPath: other, contents: Data(count: 1 << 20))
    let server = try ServedProcess(stratad: [
      "--socket", fixture.socket, "--control", fixture.control, "--bitmap", "common",
      "--export", "one=\(fixture.image),format=raw,bitmap=own:512",
      "--export", "two=\(other),format=raw",
    ]).waitUntilReady()
    func names(_ export: String) throws -> [String?] {
      try fixture.ask(#"{"ask":"bitmaps","export":"\#(export)"}"#)["bitmaps"].list
        .map { $0["name"].text }
    }
    #expect(try names("one") == ["own"])
    #expect(try names("two") == ["common"])
    #expect(
      try fixture.ask(#"{"ask":"bitmap-add","name":"x"}"#)["error"].text?
        .contains("there are 2 exports; say which") == true)
    #expect(
      try fixture.bitmap("add", "--export", "two", fixture.control, "x").code == 0)
    #expect(try names("one") == ["own"])
    #expect(try names("two") == ["common", "x"])
    let client = try WireClient.entered(
      path: fixture.socket, export: "two", contexts: [context("x")])
    #expect(try client.write(0, [1]) == 0)
    #expect(try client.extents(context("x")) == [extent(1, 1), extent(15, 0)])
    #expect(server.stop() == 0)
  }

  @Test(arguments: [
    ("a:1000", "the granularity 1000 is no power of two"), ("a:256", "is no power of two in"),
    (":64k", "a bitmap's name has 1...1023 bytes"),
  ])
  func `are refused at the start when they make no sense`(text: String, reason: String) throws {
    let fixture = try ServeFixture()
    let error = try ServeFixture.refusal(fixture.arguments + ["--bitmap", text])
    #expect(error.contains("--bitmap") && error.contains(reason), "\(error)")
  }

  @Test func `are each named once at the start`() throws {
    let fixture = try ServeFixture()
    let error = try ServeFixture.refusal(fixture.arguments + ["--bitmap", "a", "--bitmap", "a:1M"])
    #expect(error.contains(#"there is a bitmap "a" already"#), "\(error)")
    let wrong = try ServeFixture.refusal(fixture.arguments + ["--bitmap", "a:b"], code: 2)
    #expect(wrong.contains("is not NAME[:GRANULARITY]"), "\(wrong)")
  }
}

@Suite struct `strata bitmap` {
  @Test func `adds, freezes and thaws for a backup, and lists`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    #expect(try fixture.bitmap("list", fixture.control).output == "no bitmaps\n")
    #expect(try fixture.bitmap("add", "-g", "4k", fixture.control, "b").code == 0)
    let client = try fixture.client(context("b"))
    #expect(try client.write(0, [1]) == 0)
    #expect(try fixture.bitmap("freeze", fixture.control, "b").code == 0)
    #expect(try client.write(8_192, [1]) == 0)
    let frozen = [WireExtent(length: 4_096, flags: 1), WireExtent(length: 61_440, flags: 0)]
    #expect(try client.extents(context("b"), 0, 65_536) == frozen)
    let again = try fixture.bitmap("clear", fixture.control, "b")
    #expect(again.code == 1)
    #expect(again.error.contains("is frozen for a backup; thaw it first"), "\(again.error)")
    #expect(
      try fixture.bitmap("list", fixture.control).output == """
        bitmap  granularity  state              dirty  memory  clients
        b             4 KiB  recording, frozen  4 KiB    96 B  1

        """)
    #expect(try fixture.bitmap("thaw", "--failed", fixture.control, "b").code == 0)
    #expect(try fixture.bitmaps()["b"]?["dirty-bytes"].number == 8_192)
    #expect(try fixture.bitmap("freeze", fixture.control, "b").code == 0)
    #expect(try fixture.bitmap("thaw", "--done", fixture.control, "b").code == 0)
    #expect(try fixture.bitmaps()["b"]?["dirty-bytes"].number == 0)
    try client.disconnect()
    try fixture.waitForClients(0)
    #expect(try fixture.bitmap("remove", fixture.control, "b").code == 0)
    #expect(server.stop() == 0)
  }

  @Test func `enables, disables, clears, merges and rotates`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled("--bitmap", "a")
    #expect(try fixture.bitmap("add", "--disabled", fixture.control, "b").code == 0)
    let client = try fixture.client()
    #expect(try client.write(0, [1]) == 0)
    #expect(try fixture.bitmap("rotate", fixture.control, "a", "b").code == 0)
    #expect(try client.write(UInt64(block), [1]) == 0)
    #expect(try fixture.bitmap("disable", fixture.control, "b").code == 0)
    #expect(try fixture.bitmap("enable", fixture.control, "b").code == 0)
    func dirty(_ name: String) throws -> Int? { try fixture.bitmaps()[name]?["dirty-bytes"].number }
    #expect(try dirty("a") == block)
    #expect(try dirty("b") == block)
    #expect(try fixture.bitmap("merge", fixture.control, "b", "a").code == 0)
    #expect(try dirty("b") == 2 * block)
    #expect(try fixture.bitmap("clear", fixture.control, "b").code == 0)
    #expect(try dirty("b") == 0)
    let json = try fixture.bitmap("list", "--json", fixture.control).output
    #expect(try Answer(json)["bitmaps"].list.count == 2)
    // A bitmap that follows itself would only be cleared.
    let lost = try fixture.bitmap("rotate", fixture.control, "a", "a")
    #expect(lost.code == 64 && lost.error.contains("cannot follow itself"), "\(lost)")
    #expect(try dirty("a") == block)
    #expect(server.stop() == 0)
  }
}
