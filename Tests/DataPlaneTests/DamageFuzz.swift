// SPDX-License-Identifier: Apache-2.0
//
// Images with random damage in their tables, under random requests: nothing traps, nothing hangs,
// and the header stays. The seed of a failure is printed. Source: tools/STYLE.md, "Input never
// traps".

import BlockTypes
import Foundation
import NBDProtocol
import TestSupport
import Testing

@testable import DataPlane

/// A generator that gives the same numbers for the same seed (Knuth's MMIX constants).
private struct Sequence: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
    return (state >> 33) << 32 | (state &* 0x9e37_79b9_7f4a_7c15) >> 32
  }
}

/// An image to damage, and the base that it may have.
private struct Victim {
  let folder: TemporaryFolder
  private let bytes: [UInt8]
  /// Where tables are: all of them lie at the start of so small an image.
  private let tableByteCount: Int

  init(clusterByteCount: Int, hasBase: Bool, hasSubclusters: Bool) throws {
    folder = try TemporaryFolder()
    let options =
      "cluster_size=\(clusterByteCount)" + (hasSubclusters ? ",extended_l2=on" : "")
    if hasBase {
      try folder.makeOverlay(baseByteCount: 300_032, byteCount: 1 << 20, options: options)
    } else {
      try folder.qemu("qemu-img create -q -f qcow2 -o \(options) @disk 1M")
    }
    try folder.qemuIO(
      "disk", "write -P 7 0 20k", "write -P 7 200k 9k", "write -z 204k 4k", "write -P 8 900k 1k")
    bytes = [UInt8](try Data(contentsOf: URL(fileURLWithPath: folder.path("disk"))))
    tableByteCount = min(bytes.count, 8 * clusterByteCount)
  }

  func write(damagedBy random: inout Sequence) throws {
    var damaged = bytes
    for _ in 0..<Int.random(in: 1...6, using: &random) {
      // Words, so that flags, offsets and counts change as a whole now and then.
      let at = Int.random(in: 14..<tableByteCount / 8, using: &random) * 8
      let value: UInt64
      switch Int.random(in: 0..<6, using: &random) {
      case 0: value = 0
      case 1: value = .max
      case 2: value = 1 << UInt64.random(in: 0..<64, using: &random)
      case 3: value = 1 << 63 | UInt64.random(in: 0..<64, using: &random) << 9
      case 4: value = 1 << 62 | UInt64.random(in: 0..<1 << 40, using: &random)
      default: value = UInt64.random(in: 0..<64, using: &random) << 9
      }
      damaged.replaceSubrange(at..<at + 8, with: wire(value))
    }
    try Data(damaged).write(to: URL(fileURLWithPath: folder.path("disk")))
  }

  func hasHeader() throws -> Bool {
    let now = try Data(contentsOf: URL(fileURLWithPath: folder.path("disk")))
    return now.prefix(48) == Data(bytes.prefix(48))
  }
}

/// Runs requests on the image, whatever they answer.
private func use(_ bench: ImageBench, _ random: inout Sequence) throws {
  for _ in 0..<30 {
    var slots: [Int] = []
    for _ in 0..<Int.random(in: 1...4, using: &random) {
      let start = UInt64.random(in: 0..<(1 << 20) - 1, using: &random)
      let length = UInt64.random(in: 1...min(60_000, 1 << 20 - start), using: &random)
      switch Int.random(in: 0..<5, using: &random) {
      case 0: slots.append(try bench.start(.read, start, length))
      case 1: slots.append(try bench.start(.trim, start, length))
      case 2: slots.append(try bench.start(.writeZeroes, start, length))
      case 3: slots.append(try bench.start(.flush, 0, 0))
      default: slots.append(try bench.start(write: pattern(Int(length)), start))
      }
    }
    for slot in slots { _ = try bench.finish(slot, deadlineSeconds: 5) }
  }
  for _ in 0..<3 {
    _ = try bench.flush()
    try bench.until(deadlineSeconds: 5) { bench.image.isIdle }
  }
}

/// Damages, opens and uses images, one for each seed.
private func fuzz(
  clusterByteCount: Int, hasBase: Bool, hasSubclusters: Bool = false, seeds: Range<Int>
) throws {
  let victim = try Victim(
    clusterByteCount: clusterByteCount, hasBase: hasBase, hasSubclusters: hasSubclusters)
  for seed in seeds {
    FileHandle.standardError.write(Data("seed \(seed)\n".utf8))
    alarm(30)
    var random = Sequence(state: UInt64(seed))
    try victim.write(damagedBy: &random)
    let bench: ImageBench
    do {
      bench = try ImageBench(victim.folder, "disk", cacheByteCount: 0, slotCount: 16)
    } catch { continue }  // refused, which is an answer too
    do {
      try use(bench, &random)
      guard try victim.hasHeader() else { throw BenchError("the header changed") }
    } catch {
      FileHandle.standardError.write(Data("seed \(seed): \(error)\n".utf8))
      exit(1)
    }
  }
}

@Suite struct `Random damage to tables` {
  @Test func `of an image with clusters of 4096 bytes`() async {
    await #expect(processExitsWith: .success) {
      try fuzz(clusterByteCount: 4_096, hasBase: false, seeds: 0..<100)
    }
  }

  @Test func `of an overlay with clusters of 512 bytes`() async {
    await #expect(processExitsWith: .success) {
      try fuzz(clusterByteCount: 512, hasBase: true, seeds: 0..<100)
    }
  }

  @Test func `of an overlay with subclusters`() async {
    await #expect(processExitsWith: .success) {
      try fuzz(clusterByteCount: 16_384, hasBase: true, hasSubclusters: true, seeds: 0..<100)
    }
  }
}
