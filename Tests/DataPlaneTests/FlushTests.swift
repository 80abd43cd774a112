// SPDX-License-Identifier: Apache-2.0
//
// The order of durability: data before its mapping, a count before what it counts, a table before
// what names it; and what becomes of a flush that fails. The sync engine does one step at a time,
// so the file can be looked at between any two. Spec: qcow2.rst, "Data file ordering" as
// DESIGN.md 3.5 puts it; proto.md, "NBD_CMD_FLUSH".

import BlockTypes
import Foundation
import TestSupport
import Testing

@testable import DataPlane

private let cluster: UInt64 = 65_536

/// Watches the file of an image between the operations of a flush.
final class Watcher {
  let bench: ImageBench
  /// The file as it was when the last synchronisation had ended: what a power cut leaves for sure.
  private(set) var durable: [UInt8]
  private(set) var synchronisationCount = 0

  init(_ bench: ImageBench) throws {
    self.bench = bench
    durable = try Self.contents(bench)
  }

  static func contents(_ bench: ImageBench) throws -> [UInt8] {
    [UInt8](try Data(contentsOf: URL(fileURLWithPath: bench.path)))
  }

  /// Steps until the request is done; after each step, `look` sees what is durable and what may
  /// reach the disk at any time.
  func finish(
    _ slot: Int, _ look: (_ durable: [UInt8], _ visible: [UInt8]) throws -> Void
  ) throws -> BlockErrno {
    for _ in 0..<200 {
      let isSynchronising = bench.image.flush.syncIsQueued
      bench.step()
      let visible = try Self.contents(bench)
      if isSynchronising {
        durable = visible
        synchronisationCount += 1
      }
      try look(durable, visible)
      if let outcome = bench.outcome(slot) { return outcome.error }
      usleep(100)
    }
    throw BenchError("the request does not end")
  }
}

/// A qcow2 file with 64 KiB clusters and 16-bit counts, as far as these tests need it.
struct PlainImage {
  let bytes: [UInt8]

  func word(_ offset: UInt64) -> UInt64 {
    guard offset + 8 <= UInt64(bytes.count) else { return 0 }
    return bytes[Int(offset)..<Int(offset) + 8].reduce(0) { $0 << 8 | UInt64($1) }
  }

  static let offsetMask: UInt64 = 0x00ff_ffff_ffff_fe00

  var table: UInt64? { place(word(word(40))) }
  func entry(_ index: UInt64) -> UInt64? { table.flatMap { place(word($0 + index * 8)) } }
  private func place(_ word: UInt64) -> UInt64? {
    word & Self.offsetMask == 0 ? nil : word & Self.offsetMask
  }

  func count(of host: UInt64) -> UInt64 {
    let index = host / cluster
    let block = word(word(48) + index / 32_768 * 8)
    return block == 0 ? 0 : word(block + index % 32_768 * 2) >> 48
  }

  func holds(_ data: [UInt8], at host: UInt64) -> Bool {
    Int(host) + data.count <= bytes.count
      && Array(bytes[Int(host)..<Int(host) + data.count]) == data
  }
}

@Suite struct `A flush` {
  private func bench(_ name: String = "disk") throws -> ImageBench {
    let folder = try TemporaryFolder()
    try folder.makeOverlay()
    return try ImageBench(folder, name)
  }

  @Test func `makes a count and a table durable before the L1 entry that leads to them`() throws {
    let bench = try bench()
    let data = pattern(Int(cluster), seed: 1)
    try bench.write(data, 0)
    let watcher = try Watcher(bench)
    var sawMapping = false
    let error = try watcher.finish(bench.start(.flush, 0, 0)) { durable, visible in
      let seen = PlainImage(bytes: visible)
      guard let table = seen.table else { return }
      sawMapping = true
      let sure = PlainImage(bytes: durable)
      #expect(sure.count(of: table) == 1)
      #expect(sure.word(table) & PlainImage.offsetMask != 0)
      guard let host = seen.entry(0) else { return }
      #expect(sure.count(of: host) == 1)
      #expect(sure.holds(data, at: host))
    }
    #expect(error == .none)
    #expect(sawMapping)
    #expect(PlainImage(bytes: watcher.durable).table != nil)
    #expect(watcher.synchronisationCount == 2)
  }

  @Test func `makes data and counts durable before an entry in a table that the disk knows`() throws
  {
    let bench = try bench()
    try bench.write(pattern(512, seed: 1), 0)
    try bench.settle()
    let data = pattern(Int(cluster), seed: 2)
    try bench.write(data, 5 * cluster)
    let watcher = try Watcher(bench)
    #expect(PlainImage(bytes: watcher.durable).entry(5) == nil)
    var sawEntry = false
    let error = try watcher.finish(bench.start(.flush, 0, 0)) { durable, visible in
      guard let host = PlainImage(bytes: visible).entry(5) else { return }
      sawEntry = true
      #expect(PlainImage(bytes: durable).count(of: host) == 1)
      #expect(PlainImage(bytes: durable).holds(data, at: host))
    }
    #expect(error == .none)
    #expect(sawEntry)
    #expect(PlainImage(bytes: watcher.durable).entry(5) != nil)
  }

  @Test func `makes a mapping's end durable before the count that it ended`() throws {
    let bench = try bench()
    try bench.write(pattern(Int(cluster), seed: 1), 0)
    try bench.write(pattern(Int(cluster), seed: 1), cluster)
    try bench.settle()
    let host = try #require(try bench.host(of: 0))
    try bench.call(.trim, 0, cluster)
    let watcher = try Watcher(bench)
    for _ in 0..<2 {
      _ = try watcher.finish(bench.start(.flush, 0, 0)) { durable, visible in
        if PlainImage(bytes: visible).count(of: host) == 0 {
          #expect(PlainImage(bytes: durable).entry(0) == nil)
        }
      }
      try bench.until { bench.releases.isEmpty }
    }
    #expect(PlainImage(bytes: watcher.durable).count(of: host) == 0)
  }

  @Test func `leaves only leaks if the machine stops between any two operations`() throws {
    let bench = try bench()
    for number: UInt64 in 0..<6 { try bench.write(pattern(5_000, seed: 1), number * cluster) }
    try bench.flush()
    try bench.call(.trim, 0, 2 * cluster)
    try bench.write(pattern(5_000, seed: 2), 8 * cluster)
    let flush = try bench.start(.flush, 0, 0)
    for _ in 0..<20 {
      bench.step()
      let verdict = try bench.check()
      #expect(verdict.hasOnlyLeaks, "\(verdict.text)")
    }
    #expect(try bench.finish(flush) == .none)
  }

  @Test func `names new refcount blocks only when these are durable`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 -o cluster_size=512 @disk 1M")
    let bench = try ImageBench(folder, "disk")
    // 512-byte clusters: a block counts 256 clusters, so this needs several new ones.
    try bench.write(pattern(300_000, seed: 1), 0)
    let flush = try bench.start(.flush, 0, 0)
    for _ in 0..<20 {
      bench.step()
      let verdict = try bench.check()
      #expect(verdict.hasOnlyLeaks, "\(verdict.text)")
    }
    #expect(try bench.finish(flush) == .none)
    #expect(try bench.check().isClean)
  }

  @Test func `of an image without changes does nothing`() throws {
    let bench = try bench()
    let before = bench.systemCallCount
    #expect(try bench.flush() == .none)
    #expect(bench.systemCallCount == before)
  }

  @Test func `is shared by all that ask in one tick`() throws {
    let bench = try bench()
    try bench.write(pattern(512), 0)
    let slots = try (0..<5).map { _ in try bench.start(.flush, 0, 0) }
    let watcher = try Watcher(bench)
    #expect(try watcher.finish(slots[0]) { _, _ in } == .none)
    for slot in slots.dropFirst() { #expect(try bench.finish(slot) == .none) }
    #expect(watcher.synchronisationCount == 2)
  }

  @Test func `covers a write that was answered before it, even while another one runs`() throws {
    let bench = try bench()
    try bench.write(pattern(512, seed: 1), 0)
    let first = try bench.start(.flush, 0, 0)
    bench.step()
    bench.step()
    let isRunning = bench.image.flush.isRunning
    #expect(isRunning)
    try bench.write(pattern(512, seed: 2), 7 * cluster)
    let second = try bench.start(.flush, 0, 0)
    let watcher = try Watcher(bench)
    #expect(try watcher.finish(second) { _, _ in } == .none)
    #expect(PlainImage(bytes: watcher.durable).entry(7) != nil)
    _ = bench.outcome(first)
  }

  @Test func `is told of as failed for ever after one synchronisation failed`() throws {
    let bench = try bench()
    try bench.write(pattern(512), 0)
    bench.image.lostWrites = true
    #expect(try bench.flush() == .io)
    #expect(try bench.flush() == .io)
    #expect(try bench.write(pattern(512), 0, flags: .fua) == .io, "its table is not durable")
    #expect(try bench.read(0, 512) == pattern(512), "reads still work")
  }
}

@Suite struct `A write with FUA` {
  @Test func `to a new cluster waits until its mapping is durable`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay()
    let bench = try ImageBench(folder, "disk")
    #expect(try bench.write(pattern(512, seed: 1), 0, flags: .fua) == .none)
    #expect(!bench.hasDirtyTables)
    #expect(!bench.hasUnsyncedWrites)
  }

  @Test func `to a cluster whose mapping is not durable waits for that`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay()
    let bench = try ImageBench(folder, "disk")
    try bench.write(pattern(512, seed: 1), 0)
    #expect(bench.hasDirtyTables)
    #expect(try bench.write(pattern(512, seed: 2), 4_096, flags: .fua) == .none)
    #expect(!bench.hasDirtyTables)
  }

  @Test func `to a durable cluster does not flush tables`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay()
    let bench = try ImageBench(folder, "disk")
    try bench.write(pattern(512, seed: 1), 0)
    try bench.settle()
    try bench.write(pattern(512, seed: 1), 5 * cluster)  // some other table page is dirty now
    try bench.settle()
    let calls = bench.systemCallCount
    #expect(try bench.write(pattern(4_096, seed: 2), 0, flags: .fua) == .none)
    #expect(bench.systemCallCount == calls + 1)
  }
}

@Suite struct `A cache full of changes that cannot be written` {
  /// An image of 512-byte clusters whose 256 cached pages hold 64 entries each.
  private func fullBench() throws -> ImageBench {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 -o cluster_size=512 @disk 64M")
    return try ImageBench(folder, "disk", cacheByteCount: 0)
  }

  @Test func `is written by a flush of its own when that works`() throws {
    let bench = try fullBench()
    for number: UInt64 in 0..<400 {
      #expect(try bench.write([UInt8(number & 255)], number * 32_768) == .none)
    }
    #expect(try bench.read(399 * 32_768, 1) == [UInt8(399 & 255)])
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  // reliability.md, "fsync failure": after a failed synchronisation no flush can succeed, so a
  // request that needs room in the cache can never get it. It has to fail, and nothing may spin.
  @Test(.timeLimit(.minutes(1)))
  func `fails requests after a lost synchronisation and does not spin`() throws {
    let bench = try fullBench()
    bench.image.lostWrites = true
    var failed = 0
    for number: UInt64 in 0..<400 {
      let slot = try bench.start(write: [1], number * 32_768)
      var rounds = 0
      while rounds < 2_000, bench.step() { rounds += 1 }
      #expect(rounds < 2_000, "the tick of request \(number) does not end")
      if rounds == 2_000 { return }
      try bench.until { bench.image.requests.usedCount == 1 }
      if let outcome = bench.outcome(slot), outcome.error != .none { failed += 1 }
    }
    #expect(failed > 0)
    #expect(try bench.read(0, 1) == [1])
  }
}
