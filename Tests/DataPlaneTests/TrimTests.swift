// SPDX-License-Identifier: Apache-2.0
//
// TRIM and WRITE_ZEROES from the inside: base data never shows again, and a freed cluster is not
// reused before the flush that forgot it is durable. Spec: proto.md, "NBD_CMD_TRIM"; qcow2.rst,
// "Host cluster management".

import BlockTypes
import Foundation
import TestSupport
import Testing

@testable import DataPlane

private let cluster: UInt64 = 65_536

@Suite struct `A trim` {
  @Test(arguments: [ExportPlan.Engine.sync, .aio])
  func `of a written cluster never shows the base again`(engine: ExportPlan.Engine) throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay()
    let bench = try ImageBench(folder, "disk", engine: engine)
    try bench.write(pattern(Int(cluster), seed: 1), cluster)
    #expect(try bench.call(.trim, cluster, cluster) == .none)
    #expect(try bench.read(cluster, Int(cluster)) == zeroes(Int(cluster)))
    try bench.settle()
    #expect(try bench.read(cluster, Int(cluster)) == zeroes(Int(cluster)))
    // Nor after a first write into the trimmed cluster, whose rest is filled.
    try bench.write([5], cluster + 9)
    let expected = overlay(zeroes(Int(cluster)), at: 9, with: [5])
    #expect(try bench.read(cluster, Int(cluster)) == expected)
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  @Test func `of a cluster that only the base has makes it zero`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay()
    let bench = try ImageBench(folder, "disk")
    #expect(try bench.call(.trim, cluster, 2 * cluster) == .none)
    #expect(try bench.read(cluster, Int(2 * cluster)) == zeroes(Int(2 * cluster)))
    #expect(try bench.read(0, Int(cluster)) == Array(pattern(1 << 20)[..<Int(cluster)]))
    #expect(try bench.read(3 * cluster, 512) == Array(pattern(1 << 20)[196_608..<197_120]))
  }

  @Test func `of a part of a cluster changes nothing`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay()
    let bench = try ImageBench(folder, "disk")
    #expect(try bench.call(.trim, 1, 2 * cluster - 2) == .none)
    #expect(try bench.read(0, 1 << 20) == pattern(1 << 20))
    #expect(!bench.hasDirtyTables)
  }

  @Test func `takes the whole clusters in its range only`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay()
    let bench = try ImageBench(folder, "disk")
    #expect(try bench.call(.trim, cluster - 1, cluster + 2) == .none)
    let expected = overlay(pattern(1 << 20), at: Int(cluster), with: zeroes(Int(cluster)))
    #expect(try bench.read(0, 1 << 20) == expected)
  }

  @Test func `of the last, partial cluster of the disk takes that as well`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(baseByteCount: 100_352)
    let bench = try ImageBench(folder, "disk")
    #expect(try bench.call(.trim, cluster, 100_352 - cluster) == .none)
    #expect(try bench.read(cluster, 34_816) == zeroes(34_816))
  }

  @Test func `of a version 2 overlay changes nothing, because it has no zero clusters`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(options: "compat=0.10")
    let bench = try ImageBench(folder, "disk")
    try bench.write(pattern(Int(cluster), seed: 1), 0)
    #expect(try bench.call(.trim, 0, 1 << 20) == .none)
    #expect(try bench.read(0, Int(cluster)) == pattern(Int(cluster), seed: 1))
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  @Test func `of written clusters gives their space back`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 @disk 16M")
    let bench = try ImageBench(folder, "disk")
    try bench.write(pattern(8 << 20), 0)
    try bench.settle()
    let before = try bench.allocatedByteCount()
    #expect(try bench.call(.trim, 0, 8 << 20) == .none)
    try bench.settle()
    #expect(try bench.allocatedByteCount() <= before - (8 << 20))
    #expect(try bench.check().isClean)
  }
}

@Suite struct `A cluster that was given up` {
  /// A bench with one durable cluster, its host place, and a trim of it that has been answered.
  private func trimmedBench() throws -> (bench: ImageBench, host: UInt64) {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 @disk 64M")
    let bench = try ImageBench(folder, "disk")
    try bench.write(pattern(Int(cluster), seed: 1), 0)
    try bench.settle()
    let host = try #require(try bench.host(of: 0))
    #expect(try bench.call(.trim, 0, cluster) == .none)
    return (bench, host)
  }

  @Test func `keeps its count and its bytes until a flush`() throws {
    let (bench, host) = try trimmedBench()
    for _ in 0..<50 { bench.step() }
    #expect(bench.releases.pending.count == 1)
    #expect(bench.releases.releasable.isEmpty)
    #expect(try bench.count(ofClusterAt: host) == 1)
    #expect(try bench.bytes(at: host, Int(cluster)) == pattern(Int(cluster), seed: 1))
  }

  @Test func `is not handed out before the flush`() throws {
    let (bench, host) = try trimmedBench()
    for number in 1..<40 {
      try bench.write([1], UInt64(number) * cluster)
      #expect(try bench.host(of: UInt64(number) * cluster) != host)
    }
  }

  @Test func `is not handed out while the flush runs`() throws {
    let (bench, host) = try trimmedBench()
    let flush = try bench.start(.flush, 0, 0)
    var rounds = 0
    var number: UInt64 = 1
    // The flush joins with the first step; each further step is one of its operations.
    while bench.outcome(flush) == nil, rounds < 100 {
      rounds += 1
      let write = try bench.start(write: [1], number * cluster)
      bench.step()
      if bench.image.flush.isRunning {
        #expect(bench.releases.releasable.isEmpty)
        #expect(try bench.count(ofClusterAt: host) == 1)
        #expect(try bench.bytes(at: host, 8) == pattern(8, seed: 1))
      }
      _ = write
      number += 1
    }
    #expect(rounds > 2, "the test has seen the flush run")
    for taken in 1..<number {
      #expect(try bench.host(of: taken * cluster) != host)
    }
  }

  @Test func `is punched out, counted free and handed out again after the flush`() throws {
    let (bench, host) = try trimmedBench()
    #expect(try bench.flush() == .none)
    try bench.until { bench.releases.isEmpty }
    #expect(try bench.count(ofClusterAt: host) == 0)
    #expect(try bench.bytes(at: host, Int(cluster)) == zeroes(Int(cluster)))
    try bench.write([1], 9 * cluster)
    #expect(try bench.host(of: 9 * cluster) == host)
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  @Test func `is not touched while a read that found it has not ended`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 @disk 64M")
    let bench = try ImageBench(folder, "disk")
    try bench.write(pattern(Int(cluster), seed: 1), 0)
    try bench.settle()
    let host = try #require(try bench.host(of: 0))
    // A read that is older than the trim, as one that has found its place and waits.
    let reader = try bench.prepare(.read, 0, cluster)
    bench.image.requests.slots[reader].stage = .scanning
    #expect(try bench.call(.trim, 0, cluster) == .none)
    #expect(try bench.flush() == .none)
    for _ in 0..<50 { bench.step() }
    #expect(bench.releases.releasable.count == 1)
    #expect(try bench.count(ofClusterAt: host) == 1)
    #expect(try bench.bytes(at: host, Int(cluster)) == pattern(Int(cluster), seed: 1))
    bench.image.start(reader)
    _ = try bench.finish(reader)
    try bench.until { bench.releases.isEmpty }
    #expect(try bench.count(ofClusterAt: host) == 0)
  }

  @Test func `leaves only leaks if the machine stops at any step of it`() throws {
    let (bench, _) = try trimmedBench()
    let flush = try bench.start(.flush, 0, 0)
    for _ in 0..<30 {
      bench.step()
      let verdict = try bench.check()
      #expect(verdict.hasOnlyLeaks, "\(verdict.text)")
    }
    #expect(try bench.finish(flush) == .none)
  }
}

@Suite struct `WRITE_ZEROES` {
  @Test(
    arguments: [ExportPlan.Engine.sync, .aio],
    [
      (0, 65_536), (1, 1), (100, 200_000), (65_535, 2), (0, 1 << 20), (4_096, 4_096),
    ])
  func `is exact to the byte`(
    engine: ExportPlan.Engine, place: (start: Int, count: Int)
  ) throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay()
    let bench = try ImageBench(folder, "disk", engine: engine)
    #expect(try bench.call(.writeZeroes, UInt64(place.start), UInt64(place.count)) == .none)
    let expected = overlay(pattern(1 << 20), at: place.start, with: zeroes(place.count))
    #expect(try bench.read(0, 1 << 20) == expected)
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  @Test(arguments: [(0, 65_536), (1, 1), (100, 200_000)])
  func `of a raw image is exact to the byte`(place: (start: Int, count: Int)) throws {
    let folder = try TemporaryFolder()
    try folder.makeRaw("disk", byteCount: 1 << 20)
    let bench = try ImageBench(folder, "disk", format: .raw, engine: .aio)
    #expect(try bench.call(.writeZeroes, UInt64(place.start), UInt64(place.count)) == .none)
    let expected = overlay(pattern(1 << 20), at: place.start, with: zeroes(place.count))
    #expect(try bench.read(0, 1 << 20) == expected)
  }

  @Test func `that insists on speed fails where zeroes must be written`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(options: "compat=0.10")
    let bench = try ImageBench(folder, "disk")
    #expect(try bench.call(.writeZeroes, 0, cluster, flags: .fastZero) == .notSupported)
    #expect(try bench.read(0, Int(cluster)) == Array(pattern(1 << 20)[..<Int(cluster)]))
  }

  // proto.md "NBD_CMD_FLAG_FUA": the reply means that the effect is on stable storage. That holds
  // as well where nothing has to be written because the bytes read as zeroes already.
  @Test func `with FUA on bytes that are zero but not durably so makes them durable`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay()
    let bench = try ImageBench(folder, "disk")
    #expect(try bench.call(.trim, 0, cluster) == .none)
    #expect(bench.hasDirtyTables)
    #expect(try bench.call(.writeZeroes, 4_096, 4_096, flags: .fua) == .none)
    #expect(!bench.hasDirtyTables, "FUA was answered and the zero cluster is not durable")
  }
}
