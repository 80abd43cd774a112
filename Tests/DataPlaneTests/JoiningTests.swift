// SPDX-License-Identifier: Apache-2.0
//
// Writes that join another first write to their cluster: how many disk operations they take, and
// what becomes of the one when the other fails. With the sync engine each operation is one system
// call, and what is queued is done when the test says so. Decision: tools/decisions/0010.

import BlockTypes
import Foundation
import NBDProtocol
import TestSupport
import Testing

@testable import DataPlane

private let cluster = 65_536
private let block = 4_096

extension ImageBench {
  fileprivate func slot(_ index: Int) -> RequestSlot { image.requests.slots[index] }
  /// Lets requests go on without doing what they queue.
  fileprivate func queue() { image.runReady() }

  /// The same, until the request has queued the write of its clusters.
  fileprivate func queueClusters(_ index: Int) throws {
    let deadline = Deadline(seconds: 20)
    while image.requests.slots[index].stage != .writingClusters {
      guard deadline.secondsLeft > 0 else { throw BenchError("the write is not queued") }
      image.takePoolCompletions()
      queue()
    }
  }

  /// An image whose first table is made and durable, and whose file has room.
  fileprivate static func prepared(
    _ folder: TemporaryFolder, engine: ExportPlan.Engine = .sync
  ) throws -> ImageBench {
    let bench = try ImageBench(folder, "disk", engine: engine)
    try bench.write([1], 0)
    try bench.settle()
    return bench
  }

  fileprivate static func emptyDisk(
    _ size: String = "16M", options: String = "cluster_size=65536"
  ) throws -> ImageBench {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 -o \(options) @disk \(size)")
    return try prepared(folder)
  }

  /// The disk operations that the writes take, started together.
  fileprivate func operationCount(_ writes: [(start: Int, count: Int)]) throws -> UInt64 {
    let before = systemCallCount
    let slots = try writes.map {
      try start(write: pattern($0.count, seed: $0.start), UInt64($0.start))
    }
    for slot in slots { #expect(try finish(slot) == .none) }
    let count = systemCallCount - before
    for write in writes {
      #expect(try read(UInt64(write.start), write.count) == pattern(write.count, seed: write.start))
    }
    try settle()
    let verdict = try check()
    #expect(verdict.isClean, "\(verdict.text)")
    return count
  }
}

@Suite struct `First writes to a cluster, counted in disk operations,` {
  private func overlay() throws -> ImageBench {
    let folder = try TemporaryFolder()
    try folder.makeOverlay()
    return try ImageBench.prepared(folder)
  }

  @Test func `of 16 neighbours on an empty disk are one write`() throws {
    let writes = (16..<32).map { ($0 * block, block) }
    #expect(try ImageBench.emptyDisk().operationCount(writes) == 1)
  }

  @Test func `of 16 neighbours in any order are one write`() throws {
    let writes = (0..<16).map { (cluster + $0 * 7 % 16 * block, block) }
    #expect(try ImageBench.emptyDisk().operationCount(writes) == 1)
  }

  @Test func `of 32 neighbours in two clusters are two writes`() throws {
    let writes = (16..<48).map { ($0 * block, block) }
    #expect(try ImageBench.emptyDisk().operationCount(writes) == 2)
  }

  @Test func `of neighbours over base data are one read and one write`() throws {
    let writes = [3, 5, 9, 15].map { (cluster + $0 * block, block) }
    #expect(try overlay().operationCount(writes) == 2)
  }

  @Test func `of the middle of base data are one read and one write`() throws {
    #expect(try overlay().operationCount([(cluster + 5 * block, block)]) == 2)
  }

  @Test func `of a large middle are not worth reading through it`() throws {
    #expect(try overlay().operationCount([(cluster + block, 14 * block)]) == 3)
  }

  @Test func `of whole clusters read nothing`() throws {
    #expect(try overlay().operationCount([(cluster, 3 * cluster)]) == 1)
  }

  @Test func `of halves of two clusters are one write and one read for each end`() throws {
    #expect(try overlay().operationCount([(cluster + cluster / 2, cluster)]) == 3)
  }

  @Test func `far apart in a large cluster write nothing between them`() throws {
    let bench = try ImageBench.emptyDisk("64M", options: "cluster_size=2M")
    let first = try bench.start(write: pattern(block), 4 << 20)
    let second = try bench.start(write: pattern(block), (6 << 20) - UInt64(block))
    try bench.queueClusters(first)
    #expect(bench.slot(first).allocation.written.byteCount == UInt64(block))
    #expect(bench.slot(second).writeCount == 1, "it is written beside the first")
    #expect(try bench.finish(first) == .none)
    #expect(try bench.finish(second) == .none)
    #expect(try bench.read(4 << 20, 2 << 20).filter { $0 != 0 }.count == 2 * block)
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  @Test func `in a place that was zero before are one write`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 @disk 1M")
    try folder.qemuIO("disk", "write -P 7 0 128k", "write -z 64k 64k")
    let bench = try ImageBench.prepared(folder)
    #expect(try bench.operationCount([(cluster + 512, 512), (cluster + 9_216, 1_024)]) == 1)
    #expect(try bench.read(UInt64(cluster), 512) == zeroes(512))
  }
}

@Suite struct `A write that joins another one's cluster` {
  /// Two writes to one new cluster, of which the first is queued and the second goes beside it.
  private func besideBench() throws -> (bench: ImageBench, first: Int, second: Int) {
    let bench = try ImageBench.emptyDisk()
    let first = try bench.start(write: pattern(block, seed: 1), UInt64(cluster))
    try bench.queueClusters(first)
    let second = try bench.start(write: pattern(block, seed: 2), UInt64(cluster + 8 * block))
    #expect(bench.slot(second).writeCount == 1)
    return (bench, first, second)
  }

  /// The cluster on an empty disk, or over the base, with what was written to it.
  private func expected(_ base: [UInt8], _ writes: (seed: Int, at: Int)...) -> [UInt8] {
    writes.reduce(base) { overlay($0, at: $1.at * block, with: pattern(block, seed: $1.seed)) }
  }

  private func expectClean(_ bench: ImageBench) throws {
    try bench.settle()
    let verdict = try bench.check()
    #expect(verdict.isClean, "\(verdict.text)")
  }

  @Test func `is not answered before the cluster is mapped`() throws {
    let (bench, first, second) = try besideBench()
    // As if a part of the first one's write were still on its way.
    bench.image.requests.slots[first].clusterWriteCount += 1
    for _ in 0..<10 { bench.step() }
    #expect(bench.slot(second).writeCount == 0, "its bytes are in the file")
    #expect(bench.outcome(second) == nil)
    #expect(try bench.host(of: UInt64(cluster)) == nil)
    bench.image.requests.slots[first].clusterWriteCount -= 1
    bench.image.wake(first)
    #expect(try bench.finish(first) == .none)
    #expect(try bench.finish(second) == .none)
    #expect(
      try bench.read(UInt64(cluster), cluster) == expected(zeroes(cluster), (1, 0), (2, 8)))
    try expectClean(bench)
  }

  @Test(arguments: [BlockErrno.io, .noSpace])
  func `beside it succeeds when the other one fails`(error: BlockErrno) throws {
    let (bench, first, second) = try besideBench()
    bench.image.requests.slots[first].error = error
    #expect(try bench.finish(first) == error)
    #expect(try bench.finish(second) == .none)
    #expect(try bench.read(UInt64(cluster), cluster) == expected(zeroes(cluster), (2, 8)))
    try expectClean(bench)
  }

  @Test(arguments: [BlockErrno.io, .noSpace])
  func `in the same operation succeeds when that fails`(error: BlockErrno) throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay()
    let bench = try ImageBench.prepared(folder)
    let first = try bench.start(write: pattern(block, seed: 1), UInt64(cluster))
    let second = try bench.start(write: pattern(block, seed: 2), UInt64(cluster + 8 * block))
    bench.queue()
    bench.image.disks.submit()
    _ = bench.image.takeDiskCompletions()  // the read of the base
    bench.queue()
    #expect(bench.slot(first).stage == .writingClusters)
    bench.image.requests.slots[first].error = error
    #expect(try bench.finish(first) == error)
    #expect(try bench.finish(second) == .none)
    let base = Array(pattern(1 << 20)[cluster..<2 * cluster])
    #expect(try bench.read(UInt64(cluster), cluster) == expected(base, (2, 8)))
    try expectClean(bench)
  }

  @Test func `and fails takes nothing from the other one`() throws {
    let (bench, first, second) = try besideBench()
    bench.image.requests.slots[second].error = .io
    #expect(try bench.finish(first) == .none)
    #expect(try bench.finish(second) == .io)
    #expect(try bench.read(UInt64(cluster), block) == pattern(block, seed: 1))
    try expectClean(bench)
  }

  // Release.swift: a cluster is free when nobody can touch it any more. A write that joined may
  // still be on its way to a cluster that was given up before it was mapped.
  @Test func `keeps the cluster from others while its bytes are on their way`() throws {
    let (bench, first, second) = try besideBench()
    let host = bench.slot(first).allocation.host
    bench.image.requests.slots[first].error = .io
    bench.image.requests.slots[second].writeCount += 1  // as if it took longer
    #expect(try bench.finish(first) == .io)
    for _ in 0..<50 {
      bench.step()
      usleep(1_000)  // the hole would be punched by another thread
    }
    #expect(bench.outcome(second) == nil)
    #expect(try bench.count(ofClusterAt: host) == 1)
    bench.image.requests.slots[second].writeCount -= 1
    bench.image.wake(second)
    #expect(try bench.finish(second) == .none)
    try bench.until { bench.releases.isEmpty }
    #expect(try bench.count(ofClusterAt: host) == 0)
    try expectClean(bench)
  }

  @Test func `with FUA waits until the mapping is durable, the other one does not`() throws {
    let bench = try ImageBench.emptyDisk()
    let first = try bench.start(write: pattern(block, seed: 1), UInt64(cluster))
    let second = try bench.start(
      write: pattern(block, seed: 2), UInt64(cluster + 8 * block), flags: .fua)
    #expect(try bench.finish(first) == .none)
    #expect(bench.outcome(second) == nil)
    #expect(try bench.finish(second) == .none)
    #expect(!bench.hasDirtyTables)
    #expect(!bench.hasUnsyncedWrites)
  }

  @Test func `waits where the other one writes the same bytes`() throws {
    let bench = try ImageBench.emptyDisk()
    let first = try bench.start(write: pattern(block, seed: 1), UInt64(cluster))
    let second = try bench.start(write: pattern(2 * block, seed: 2), UInt64(cluster))
    #expect(bench.slot(first).allocation.joiners.isEmpty)
    #expect(try bench.finish(first) == .none)
    #expect(try bench.finish(second) == .none)
    #expect(try bench.read(UInt64(cluster), 2 * block) == pattern(2 * block, seed: 2))
    try expectClean(bench)
  }

  @Test func `gives the clusters before it a place itself`() throws {
    let bench = try ImageBench.emptyDisk()
    let first = try bench.start(write: pattern(block, seed: 1), UInt64(2 * cluster + block))
    let second = try bench.start(
      write: pattern(cluster, seed: 2), UInt64(cluster + block), flags: [])
    #expect(bench.slot(second).allocation.clusterCount == 1)
    #expect(try bench.finish(first) == .none)
    #expect(try bench.finish(second) == .none)
    #expect(
      try bench.read(UInt64(cluster + block), cluster + block)
        == pattern(cluster, seed: 2) + pattern(block, seed: 1))
    try expectClean(bench)
  }

  @Test func `while the file has to grow joins when there is a place`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 @disk 16M")
    let bench = try ImageBench(folder, "disk")  // nothing was written: the file has to grow
    let slots = try (0..<16).map { try bench.start(write: pattern(block), UInt64($0 * block)) }
    let before = bench.systemCallCount
    for slot in slots { #expect(try bench.finish(slot) == .none) }
    // The page of the counts, that of the new table, and the write.
    #expect(bench.systemCallCount - before == 3)
    try expectClean(bench)
  }

  @Test func `leaves only leaks if the machine stops at any step, and what was flushed`() throws {
    let (bench, _, second) = try besideBench()
    #expect(try bench.finish(second) == .none)
    let flush = try bench.start(.flush, 0, 0)
    _ = try bench.start(write: pattern(block, seed: 3), UInt64(3 * cluster))
    _ = try bench.start(write: pattern(block, seed: 3), UInt64(3 * cluster + 9 * block))
    for _ in 0..<20 {
      bench.step()
      let verdict = try bench.check()
      #expect(verdict.hasOnlyLeaks, "\(verdict.text)")
    }
    #expect(try bench.finish(flush) == .none)
    try FileManager.default.copyItem(atPath: bench.path, toPath: bench.folder.path("cut"))
    try bench.folder.qemuIO("cut", "read 0 16M")
    let cut = try ImageBench(bench.folder, "cut")
    #expect(
      try cut.read(UInt64(cluster), cluster) == expected(zeroes(cluster), (1, 0), (2, 8)))
  }

  @Test(arguments: [ExportPlan.Engine.sync, .aio], ["base", "empty"])
  func `of any place and length matches a model, with trims and flushes between`(
    engine: ExportPlan.Engine, kind: String
  ) throws {
    let folder = try TemporaryFolder()
    let size = 8 * cluster
    if kind == "base" {
      try folder.makeOverlay(baseByteCount: size)
    } else {
      try folder.qemu("qemu-img create -q -f qcow2 @disk \(size)")
    }
    let bench = try ImageBench(folder, "disk", engine: engine)
    var model = kind == "base" ? pattern(size) : zeroes(size)
    var random = SystemRandomNumberGenerator()
    for round in 0..<40 {
      var slots: [Int] = []
      // Half of the clusters are new again in each round; lanes of 3 KiB do not touch each other.
      for number in 0..<4 {
        let start = (number * 2 + round % 2) * cluster
        let command: [CommandFlags] = [[], .noHole]
        let slot =
          number < 2
          ? try bench.start(.trim, UInt64(start), UInt64(cluster))
          : try bench.start(
            .writeZeroes, UInt64(start), UInt64(cluster), flags: command[number - 2])
        #expect(try bench.finish(slot) == .none)
        model = overlay(model, at: start, with: zeroes(cluster))
      }
      for lane in (0..<size / 3_072).shuffled(using: &random).prefix(80) {
        let start = lane * 3_072 + Int.random(in: 0..<1_500, using: &random)
        let data = pattern(Int.random(in: 1...1_500, using: &random), seed: round + lane)
        model = overlay(model, at: start, with: data)
        slots.append(try bench.start(write: data, UInt64(start), flags: lane % 9 == 0 ? .fua : []))
        if lane % 7 == 0 { slots.append(try bench.start(.flush, 0, 0)) }
        if lane % 5 == 0 { bench.queue() }
        if lane % 11 == 0 { _ = bench.image.runRound() }
      }
      for slot in slots { #expect(try bench.finish(slot) == .none) }
      #expect(try bench.read(0, size) == model, "round \(round)")
      if bench.claimCount > 0 { throw BenchError("a claim is left") }
    }
    try expectClean(bench)
  }
}
