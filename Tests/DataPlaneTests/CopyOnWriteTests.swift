// SPDX-License-Identifier: Apache-2.0
//
// First writes to clusters that the active layer does not have, one at a time and many at once.
// Spec: qcow2.rst, "Cluster mapping".

import BlockTypes
import Foundation
import TestSupport
import Testing

@testable import DataPlane

private let cluster = 65_536
private let engines: [ExportPlan.Engine] = [.sync, .aio]

@Suite struct `A first write to a cluster` {
  @Test(
    arguments: engines,
    [
      (0, 65_536), (0, 4_096), (61_440, 4_096), (8_192, 4_096), (1, 1), (100, 70_000), (65_535, 2),
      (512, 196_608),
    ])
  func `keeps the base's bytes around it`(
    engine: ExportPlan.Engine, place: (start: Int, count: Int)
  ) throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay()
    let bench = try ImageBench(folder, "disk", engine: engine)
    let data = pattern(place.count, seed: 3)
    #expect(try bench.write(data, UInt64(place.start)) == .none)
    let expected = overlay(pattern(1 << 20), at: place.start, with: data)
    #expect(try bench.read(0, 1 << 20) == expected)
    try bench.settle()
    #expect(try bench.check().isClean)
    let base = try Data(contentsOf: URL(fileURLWithPath: folder.path("base")))
    #expect([UInt8](base) == pattern(1 << 20))
  }

  @Test(arguments: engines)
  func `keeps zeroes behind the end of a short base`(engine: ExportPlan.Engine) throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(baseByteCount: 70_000, byteCount: 1 << 20)
    let bench = try ImageBench(folder, "disk", engine: engine)
    let data = pattern(100, seed: 3)
    #expect(try bench.write(data, 80_000) == .none)
    let disk = pattern(70_000) + zeroes((1 << 20) - 70_000)
    #expect(try bench.read(0, 1 << 20) == overlay(disk, at: 80_000, with: data))
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  @Test(arguments: engines, ["zlib", "zstd"])
  func `keeps the bytes of a compressed cluster around it`(
    engine: ExportPlan.Engine, compression: String
  ) throws {
    let folder = try TemporaryFolder()
    try folder.makeRaw("plain", byteCount: 1 << 20)
    try folder.qemu(
      "qemu-img convert -c -f raw -O qcow2 -o compression_type=\(compression) @plain @disk")
    let bench = try ImageBench(folder, "disk", engine: engine)
    let data = pattern(1_000, seed: 3)
    #expect(try bench.write(data, 100_000) == .none)
    #expect(try bench.read(0, 1 << 20) == overlay(pattern(1 << 20), at: 100_000, with: data))
    try bench.settle()
    let verdict = try bench.check()
    #expect(verdict.isClean, "\(verdict.text)")
  }

  @Test func `uses the place that a preallocated zero cluster has`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 @disk 1M")
    try folder.qemuIO("disk", "write -P 7 0 64k", "write -z 0 64k")
    let bench = try ImageBench(folder, "disk")
    let before = try bench.fileByteCount()
    #expect(try bench.write([1, 2, 3], 1_000) == .none)
    let expected = overlay(zeroes(cluster), at: 1_000, with: [1, 2, 3])
    #expect(try bench.read(0, cluster) == expected)
    #expect(try bench.fileByteCount() == before)
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  @Test func `fills a place that was used before with the right bytes`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 @disk 1M")
    let bench = try ImageBench(folder, "disk")
    try bench.write(pattern(cluster, seed: 1), 0)
    try bench.settle()
    let old = try #require(try bench.host(of: 0))
    try bench.call(.trim, 0, UInt64(cluster))
    try bench.settle()
    try bench.write([9], UInt64(3 * cluster + 5))
    #expect(try bench.host(of: UInt64(3 * cluster)) == old, "the test wants the place again")
    #expect(
      try bench.read(UInt64(3 * cluster), cluster)
        == overlay(
          zeroes(cluster), at: 5, with: [9]))
    try bench.settle()
    #expect(try bench.check().isClean)
  }
}

@Suite struct `Concurrent first writes` {
  @Test(arguments: engines)
  func `to one cluster all survive`(engine: ExportPlan.Engine) throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay()
    let bench = try ImageBench(folder, "disk", engine: engine)
    var expected = pattern(1 << 20)
    let slots = try (0..<16).map { number in
      let data = pattern(4_096, seed: number + 1)
      expected = overlay(expected, at: cluster + number * 4_096, with: data)
      return try bench.start(write: data, UInt64(cluster + number * 4_096))
    }
    for slot in slots { #expect(try bench.finish(slot) == .none) }
    #expect(try bench.read(0, 1 << 20) == expected)
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  @Test func `to one cluster take one place`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay()
    let bench = try ImageBench(folder, "disk")
    let slots = try (0..<16).map { number in
      try bench.start(write: pattern(4_096), UInt64(number * 4_096))
    }
    for slot in slots { #expect(try bench.finish(slot) == .none) }
    #expect(bench.releases.isEmpty, "nothing was allocated twice and given back")
    try bench.settle()
    let verdict = try bench.check()
    #expect(verdict.isClean, "\(verdict.text)")
  }

  @Test(arguments: engines)
  func `under one new L2 table make one table`(engine: ExportPlan.Engine) throws {
    let folder = try TemporaryFolder()
    // 512-byte clusters: 64 entries of 512 bytes, so one table maps 32 KiB.
    try folder.makeOverlay(baseByteCount: 1 << 20, options: "cluster_size=4096")
    let bench = try ImageBench(folder, "disk", engine: engine)
    var expected = pattern(1 << 20)
    let slots = try (0..<200).map { number in
      let at = (number * 7 % 256) * 4_096
      let data = pattern(4_096, seed: number + 1)
      expected = overlay(expected, at: at, with: data)
      return try bench.start(write: data, UInt64(at))
    }
    for slot in slots { #expect(try bench.finish(slot) == .none) }
    #expect(try bench.read(0, 1 << 20) == expected)
    try bench.settle()
    let verdict = try bench.check()
    #expect(verdict.isClean, "\(verdict.text)")
  }

  @Test(arguments: engines)
  func `over more tables than one refcount block covers end clean`(
    engine: ExportPlan.Engine
  ) throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 -o cluster_size=512 @disk 4M")
    let bench = try ImageBench(folder, "disk", engine: engine == .aio ? .sync : engine)
    for start in stride(from: 0, to: 4 << 20, by: 1 << 18) {
      #expect(try bench.write(pattern(1 << 18, seed: start >> 18), UInt64(start)) == .none)
    }
    #expect(try bench.read(3 << 20, 1 << 18) == pattern(1 << 18, seed: 12))
    try bench.settle()
    let verdict = try bench.check()
    #expect(verdict.isClean, "\(verdict.text)")
  }
}

@Suite struct `Unaligned writes` {
  @Test(arguments: engines)
  func `beside each other in one block lose nothing`(engine: ExportPlan.Engine) throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay()
    let bench = try ImageBench(folder, "disk", engine: engine)
    var expected = pattern(1 << 20)
    // 16 neighbours of 32 bytes in one sector, started together, in three blocks.
    for start in [0, 4_096, 100_000] {
      let slots = try (0..<16).map { number in
        let data = pattern(32, seed: number + 1)
        expected = overlay(expected, at: start + number * 32, with: data)
        return try bench.start(write: data, UInt64(start + number * 32))
      }
      for slot in slots { #expect(try bench.finish(slot) == .none) }
    }
    #expect(try bench.read(0, 1 << 20) == expected)
    #expect(bench.claimCount == 0)
    #expect(bench.image.serialisingClaimCount == 0)
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  @Test(arguments: engines)
  func `over a block border keep what an aligned neighbour writes`(
    engine: ExportPlan.Engine
  ) throws {
    let folder = try TemporaryFolder()
    try folder.makeRaw("disk", byteCount: 1 << 20)
    let bench = try ImageBench(folder, "disk", format: .raw, engine: engine)
    var expected = pattern(1 << 20)
    var slots: [Int] = []
    for round in 0..<20 {
      let at = round * 16_384
      for (start, count) in [(at + 4_000, 200), (at + 8_192, 4_096), (at + 4_200, 3_992)] {
        let data = pattern(count, seed: round + count)
        expected = overlay(expected, at: start, with: data)
        slots.append(try bench.start(write: data, UInt64(start)))
      }
    }
    for slot in slots { #expect(try bench.finish(slot) == .none) }
    #expect(try bench.read(0, 1 << 20) == expected)
  }

  @Test func `to blocks that do not touch each other do not wait for each other`() throws {
    let folder = try TemporaryFolder()
    try folder.makeRaw("disk", byteCount: 1 << 20)
    let bench = try ImageBench(folder, "disk", format: .raw, engine: .aio)
    guard bench.image.alignment > 1 else { return }
    let step = Int(bench.image.alignment)
    for number in 0..<4 { _ = try bench.start(write: [1], UInt64(number * step)) }
    #expect(bench.claimCount == 4)
    let nobodyWaits = bench.image.claimWaiters.isEmpty
    #expect(nobodyWaits)
    _ = try bench.start(write: [2], 2)
    #expect(bench.claimCount == 4, "the fifth shares a block with the first")
    try bench.until { bench.claimCount == 0 }
  }

  @Test func `of any place and length match a model, many at once`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(baseByteCount: 300_000, byteCount: 1_000_448)
    let bench = try ImageBench(folder, "disk", engine: .aio)
    var model = pattern(300_000) + zeroes(1_000_448 - 300_000)
    var random = SystemRandomNumberGenerator()
    for round in 0..<25 {
      // Ranges of one round do not overlap, so their order does not matter.
      var slots: [Int] = []
      for lane in 0..<10 {
        let first = lane * 100_000 + Int.random(in: 0..<40_000, using: &random)
        let count = Int.random(in: 1...60_000, using: &random)
        let data = pattern(count, seed: round * 10 + lane)
        model = overlay(model, at: first, with: data)
        slots.append(try bench.start(write: data, UInt64(first)))
      }
      for slot in slots { #expect(try bench.finish(slot) == .none) }
    }
    #expect(try bench.read(0, 1_000_448) == model)
    try bench.settle()
    #expect(try bench.check().isClean)
  }
}
