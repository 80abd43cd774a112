// SPDX-License-Identifier: Apache-2.0
//
// The bitmaps of a disk: names, states, freezing, and changes that are whole or not at all.
// Source: QEMU docs/interop/bitmaps.rst; decision 0018.

import Bitmaps
import BlockTypes
import Testing

private let mebibyte: UInt64 = 1 << 20

private func add(
  _ name: String, _ granularity: UInt64 = 4_096, isEnabled: Bool = true
) -> BitmapAction {
  .add(name: name, granularityByteCount: granularity, isEnabled: isEnabled)
}

extension BitmapSet {
  fileprivate init(_ actions: [BitmapAction], diskByteCount: UInt64 = mebibyte) throws {
    self.init(diskByteCount: diskByteCount, countMax: 62)
    try perform(actions)
  }

  fileprivate subscript(name: String) -> NamedBitmap? { all.first { $0.name == name } }

  /// The numbers of the dirty blocks of 4 KiB that clients see.
  fileprivate func dirty(_ name: String) -> [UInt64] {
    guard let bitmap = self[name]?.shown else { return [] }
    return (0..<diskByteCount / 4_096).filter { bitmap.isDirty(at: $0 * 4_096) }
  }

  fileprivate mutating func markBlock(_ block: UInt64) {
    mark(ByteRange(start: block * 4_096, end: block * 4_096 + 1))
  }
}

private func expectRefusal(
  _ set: inout BitmapSet, _ actions: [BitmapAction], _ reason: String,
  holder: (Int) -> UInt64? = { _ in nil }
) {
  do throws(BitmapFault) {
    try set.perform(actions, holder: holder)
    Issue.record("\(actions) was done")
  } catch { #expect(error.reason.contains(reason)) }
}

@Suite struct `The bitmaps of a disk` {
  @Test func `record while they are enabled`() throws {
    var set = try BitmapSet([add("a"), add("b", isEnabled: false)])
    set.markBlock(1)
    try set.perform([.enable(name: "b"), .disable(name: "a")])
    set.markBlock(2)
    #expect(set.dirty("a") == [1])
    #expect(set.dirty("b") == [2])
    try set.perform([.disable(name: "b")])
    #expect(!set.isRecording)
    try set.perform([.clear(name: "a")])
    #expect(set.dirty("a") == [])
    #expect(set.dirty("b") == [2])
  }

  @Test func `change all at once or not at all`() throws {
    var set = try BitmapSet([add("a"), add("b", isEnabled: false)])
    set.markBlock(1)
    let revision = set.revision
    expectRefusal(
      &set, [.clear(name: "a"), .enable(name: "b"), add("c"), .remove(name: "none")],
      #"there is no bitmap "none""#)
    #expect(set.dirty("a") == [1])
    #expect(set["b"]?.isEnabled == false)
    #expect(set["c"] == nil)
    #expect(set.revision == revision)
    try set.perform([.clear(name: "a"), .enable(name: "b")])
    set.markBlock(2)
    #expect(set.dirty("a") == [2])
    #expect(set.dirty("b") == [2])
  }

  @Test func `merge, whatever their granularity`() throws {
    var set = try BitmapSet([add("a", 512), add("b", 65_536), add("c", isEnabled: false)])
    set.markBlock(17)
    try set.perform([.merge(sources: ["a"], target: "c")])
    #expect(set.dirty("c") == [17])
    try set.perform([.merge(sources: ["a", "b", "c"], target: "c")])
    #expect(set.dirty("c") == Array(16..<32))
    expectRefusal(&set, [.merge(sources: [], target: "c")], "no bitmap to merge")
  }

  @Test func `that are frozen show their moment, and what follows is recorded apart`() throws {
    var set = try BitmapSet([add("a")])
    set.markBlock(1)
    try set.perform([.freeze(name: "a")])
    set.markBlock(2)
    #expect(set.dirty("a") == [1])
    for action in [
      .clear(name: "a"), .remove(name: "a"), .enable(name: "a"), .disable(name: "a"),
      .freeze(name: "a"), .merge(sources: ["a"], target: "a"),
    ] as [BitmapAction] {
      expectRefusal(&set, [action], "is frozen for a backup")
    }
    var failed = set
    try failed.perform([.thaw(name: "a", .failed)])
    #expect(failed.dirty("a") == [1, 2])
    try set.perform([.thaw(name: "a", .done)])
    #expect(set.dirty("a") == [2])
    expectRefusal(&set, [.thaw(name: "a", .done)], "is not frozen")
    set.markBlock(3)
    #expect(set.dirty("a") == [2, 3])
  }

  @Test func `that are disabled record nothing while they are frozen`() throws {
    var set = try BitmapSet([add("a")])
    set.markBlock(1)
    try set.perform([.disable(name: "a"), .freeze(name: "a")])
    set.markBlock(2)
    try set.perform([.thaw(name: "a", .failed)])
    #expect(set.dirty("a") == [1])
  }

  @Test func `have numbers that are free, and a revision that tells an old one from a new one`()
    throws
  {
    var set = try BitmapSet([add("a"), add("b")])
    let before = set.revision
    try set.perform([.remove(name: "a"), add("c")])
    #expect(set["c"]?.number == 0)
    #expect(set["b"]?.number == 1)
    #expect(try #require(set["c"]).firstRevision > before)
    #expect(try #require(set["b"]).firstRevision <= before)
  }

  @Test func `are not removed while a client has selected them, and the client is named`() throws {
    var set = try BitmapSet([add("a"), add("b")])
    expectRefusal(
      &set, [.remove(name: "b")], #"bitmap "b" is used by client 7"#
    ) { $0 == 1 ? 7 : nil }
    try set.perform([.remove(name: "a")]) { $0 == 1 ? 7 : nil }
  }

  @Test(arguments: ["", "a\u{0}", "line\nfeed", String(repeating: "x", count: 1_024)])
  func `have no names that a terminal or the protocol cannot show`(name: String) throws {
    var set = try BitmapSet([])
    expectRefusal(&set, [add(name)], "a bitmap's name has")
  }

  @Test func `have names of up to 1023 bytes, each once`() throws {
    let name = String(repeating: "x", count: 1_023)
    var set = try BitmapSet([add(name)])
    expectRefusal(&set, [add(name)], "already")
    // Canonically equivalent, and not the same bytes.
    try set.perform([add("\u{e9}"), add("e\u{301}")])
  }

  @Test func `are 62 at most, and take 256 MiB at most`() throws {
    var set = try BitmapSet((0..<62).map { add("\($0)") })
    expectRefusal(&set, [add("more")], "at most 62 bitmaps")
    set = try BitmapSet((0..<3).map { add("\($0)", 2 << 20) }, diskByteCount: 1 << 50)
    expectRefusal(&set, [add("3", 2 << 20)], "choose a coarser granularity")
    expectRefusal(&set, [.freeze(name: "0")], "choose a coarser granularity")
    try set.perform([add("3", 4 << 20)])
    expectRefusal(
      &set, Array(repeating: .clear(name: "0"), count: 65), "at most 64 actions")
  }

  @Test func `grow with the disk, the frozen ones too`() throws {
    var set = try BitmapSet([add("a")])
    set.markBlock(255)
    try set.perform([.freeze(name: "a")])
    set.markBlock(254)
    try set.resize(toDiskByteCount: 2 * mebibyte)
    #expect(set.dirty("a") == [255])
    set.markBlock(511)
    try set.perform([.thaw(name: "a", .failed)])
    #expect(set.dirty("a") == [254, 255, 511])
    #expect(throws: BitmapFault.self) { try set.resize(toDiskByteCount: 1 << 50) }
    #expect(set.diskByteCount == 2 * mebibyte)
  }
}
