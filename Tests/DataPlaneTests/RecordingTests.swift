// SPDX-License-Identifier: Apache-2.0
//
// When a dirty bitmap records what: never less than what has changed. Source: decision 0018.

import Bitmaps
import BlockTypes
import LinuxIO
import NBDProtocol
import TestSupport
import Testing

@testable import DataPlane

private let cluster: UInt64 = 65_536

extension ImageBench {
  fileprivate convenience init(
    _ format: ImageFormat = .qcow2, bitmaps actions: [BitmapAction]
  ) throws {
    let folder = try TemporaryFolder()
    try run("qemu-img", "create", "-q", "-f", format.rawValue, folder.path("disk"), "16M")
    try self.init(folder, "disk", format: format)
    try change(actions)
  }

  fileprivate func change(_ actions: [BitmapAction]) throws {
    try image.changeBitmaps(actions) { _ in nil }
  }

  /// The runs that a bitmap shows as dirty.
  fileprivate func dirty(_ name: String) -> [ByteRange] {
    guard let bitmap = image.bitmaps.all.first(where: { $0.name == name })?.shown else {
      return []
    }
    var runs: [ByteRange] = []
    while let run = bitmap.nextDirtyRun(from: runs.last?.end ?? 0) { runs.append(run) }
    return runs
  }
}

private func add(_ name: String, isEnabled: Bool = true) -> BitmapAction {
  .add(name: name, granularityByteCount: cluster, isEnabled: isEnabled)
}

@Suite struct `A dirty bitmap of an image` {
  @Test(arguments: [Command.write, .writeZeroes, .trim])
  func `has a request before a byte of it reaches the disk`(command: Command) throws {
    let bench = try ImageBench(bitmaps: [add("a")])
    let payload: [UInt8] = command == .write ? [1, 2] : []
    let slot = try bench.start(command, cluster * 3 - 1, 2, payload: payload)
    #expect(bench.dirty("a") == [ByteRange(start: cluster * 2, end: cluster * 4)])
    #expect(try bench.finish(slot) == .none)
  }

  @Test(arguments: [Command.read, .cache, .flush])
  func `has nothing of a request that only looks`(command: Command) throws {
    let bench = try ImageBench(bitmaps: [add("a")])
    try bench.call(command, 0, command == .flush ? 0 : 4_096)
    #expect(bench.dirty("a") == [])
  }

  /// The request may reach the disk after the moment, so whoever copies the disk from the moment on
  /// may have missed it.
  @Test func `has a request that is under way at the moment of a change, before it or after`()
    throws
  {
    let bench = try ImageBench(
      .raw, bitmaps: [add("cleared"), add("frozen"), add("off", isEnabled: false)])
    let written = try bench.start(write: [1, 2, 3], cluster * 7)
    let zeroed = try bench.start(.writeZeroes, cluster * 9, cluster)
    let runs = [
      ByteRange(start: cluster * 7, end: cluster * 8),
      ByteRange(start: cluster * 9, end: cluster * 10),
    ]
    try bench.change([
      .clear(name: "cleared"), .freeze(name: "frozen"), .enable(name: "off"), add("new"),
    ])
    #expect(bench.dirty("cleared") == runs)
    #expect(bench.dirty("off") == runs)
    #expect(bench.dirty("new") == runs)
    #expect(bench.dirty("frozen") == runs)
    try bench.change([.thaw(name: "frozen", .done)])
    #expect(bench.dirty("frozen") == runs)
    #expect(try bench.finish(written) == .none)
    #expect(try bench.finish(zeroed) == .none)
    try bench.change([.clear(name: "cleared")])
    #expect(bench.dirty("cleared") == [], "both requests have ended")
  }

  @Test func `has nothing of a request that has ended before a change, or not begun`() throws {
    let bench = try ImageBench(bitmaps: [add("a")])
    try bench.write([1], cluster)
    let arriving = try bench.prepare(.write, cluster * 3, 1, payload: [1])
    try bench.change([.clear(name: "a")])
    #expect(bench.dirty("a") == [])
    bench.image.start(arriving)
    #expect(bench.dirty("a") == [ByteRange(start: cluster * 3, end: cluster * 4)])
    #expect(try bench.finish(arriving) == .none)
  }

  @Test func `has a request that failed`() throws {
    let bench = try ImageBench(bitmaps: [add("a")])
    // Part of a cluster cannot be zeroed by its entry alone, so fast zeroing may refuse it.
    let error = try bench.call(.writeZeroes, cluster * 2, cluster, flags: [.fastZero, .noHole])
    #expect([BlockErrno.none, .notSupported].contains(error))
    #expect(bench.dirty("a") == [ByteRange(start: cluster * 2, end: cluster * 3)])
  }
}
