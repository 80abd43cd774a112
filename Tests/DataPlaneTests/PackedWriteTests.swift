// SPDX-License-Identifier: Apache-2.0
//
// Writes of an export that compresses: what is packed and what is not, who counts it, and that
// neighbours in one host cluster, or in one block, leave each other alone.
// Spec: qcow2.rst, "Compressed Clusters Descriptor"; tools/decisions/0030.

import BlockTypes
import Foundation
import LinuxIO
import Qcow2
import TestSupport
import Testing

@testable import DataPlane

private let cluster = 65_536
private let engines: [ExportPlan.Engine] = [.sync, .aio]

/// Bytes of which about `noiseCount` in a thousand do not shrink.
func mixture(_ count: Int, seed: Int, noisePerThousand: Int = 300) -> [UInt8] {
  var state = UInt64(seed) &* 0x9e37_79b9_7f4a_7c15 | 1
  return (0..<count).map { place in
    guard place % 1_000 < noisePerThousand else { return UInt8(1 + (place / 512 + seed) % 255) }
    state ^= state << 13
    state ^= state >> 7
    state ^= state << 17
    return UInt8(truncatingIfNeeded: state >> 32)
  }
}

extension ImageBench {
  /// The compressed entry of the active layer at a guest offset; nil when it has another one.
  fileprivate func packedEntry(at offset: UInt64) throws -> L2Entry? {
    _ = try read(offset, 1)  // so that the table is in memory
    guard case .compressed(0, let entry, _) = image.resolve(offset, offset + 1) else { return nil }
    return entry
  }

  fileprivate func packedStart(at offset: UInt64) throws -> UInt64 {
    guard let entry = try packedEntry(at: offset) else { throw BenchError("not compressed") }
    return entry.rawValue & ((1 << UInt64(70 - image.layers[0].geometry.clusterBits)) - 1)
  }

  fileprivate var tail: PackedTail { image.allocator.packedTail }
  fileprivate var packedClusterCount: UInt64 { image.counters.packedClusterCount }
}

extension TemporaryFolder {
  fileprivate func makeImage(_ options: String = "cluster_size=65536", _ byteCount: Int = 2 << 20)
    throws
  {
    try qemu("qemu-img create -q -f qcow2 -o \(options) @disk \(byteCount)")
  }

  /// What QEMU reads from a copy of the image.
  fileprivate func contents(_ name: String, snapshot: String? = nil) throws -> [UInt8] {
    let choice = snapshot.map { "-l snapshot.name=\($0) " } ?? ""
    try qemu("qemu-img convert -f qcow2 -O raw \(choice)@\(name) @\(name).raw")
    return [UInt8](try Data(contentsOf: URL(fileURLWithPath: path("\(name).raw"))))
  }
}

@Suite struct `A whole cluster written to an export that compresses` {
  static let shapes = [
    "cluster_size=65536", "cluster_size=65536,compression_type=zstd", "cluster_size=512",
    "cluster_size=4096,compat=0.10", "cluster_size=2M", "cluster_size=16384,extended_l2=on",
    "cluster_size=4096,refcount_bits=1", "cluster_size=4096,refcount_bits=2",
    "cluster_size=4096,refcount_bits=64",
  ]

  @Test(arguments: shapes, engines)
  func `is compressed, reads as it was written, and QEMU reads the same`(
    options: String, engine: ExportPlan.Engine
  ) throws {
    let folder = try TemporaryFolder()
    try folder.makeImage(options)
    let bench = try ImageBench(folder, "disk", engine: engine, packsWrites: true)
    let data = mixture(2 << 20, seed: 1)
    #expect(try bench.write(data, 0) == .none)
    #expect(try bench.packedEntry(at: 0) != nil)
    #expect(try bench.read(0, 2 << 20) == data)
    try bench.settle()
    #expect(try bench.check().isClean)
    #expect(try folder.contents("copy") == data)
  }

  @Test(arguments: engines)
  func `shares its host cluster, which counts each of them`(engine: ExportPlan.Engine) throws {
    let folder = try TemporaryFolder()
    try folder.makeImage()
    let bench = try ImageBench(folder, "disk", engine: engine, packsWrites: true)
    for number in 0..<3 {
      try bench.write(
        mixture(cluster, seed: number, noisePerThousand: 100), UInt64(number * cluster))
    }
    let first = try bench.packedStart(at: 0) / UInt64(cluster)
    let last = try bench.packedStart(at: UInt64(2 * cluster)) / UInt64(cluster)
    #expect(first == last)
    #expect(try bench.count(ofClusterAt: first * UInt64(cluster)) == 3)
    #expect(try bench.packedEntry(at: 0)?.isCopied == false)
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  @Test(arguments: ["", ",extended_l2=on"])
  func `is a zero cluster if it is all zeroes, over a base too`(more: String) throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(options: "cluster_size=65536" + more)
    let bench = try ImageBench(folder, "disk", packsWrites: true)
    #expect(try bench.write(mixture(cluster, seed: 1), 0) == .none)
    #expect(try bench.write(zeroes(3 * cluster), 0) == .none)
    #expect(try bench.read(0, 3 * cluster) == zeroes(3 * cluster))
    guard case .zero(0, _, false) = bench.image.resolve(0, 1) else {
      throw BenchError("not a zero cluster")
    }
    try bench.settle()
    #expect(try bench.check().isClean)
    let left = pattern(1 << 20)
    #expect(try folder.contents("copy") == overlay(left, at: 0, with: zeroes(3 * cluster)))
  }

  @Test func `of zeroes in a version 2 image over a base is data`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(options: "cluster_size=65536,compat=0.10")
    let bench = try ImageBench(folder, "disk", packsWrites: true)
    #expect(try bench.write(zeroes(cluster), 0) == .none)
    #expect(try bench.packedEntry(at: 0) != nil)
    #expect(try bench.read(0, cluster) == zeroes(cluster))
  }

  @Test(arguments: ["", ",extended_l2=on"])
  func `is stored as it is if it does not shrink`(more: String) throws {
    let folder = try TemporaryFolder()
    try folder.makeImage("cluster_size=65536" + more)
    let bench = try ImageBench(folder, "disk", packsWrites: true)
    let noise = mixture(2 * cluster, seed: 5, noisePerThousand: 1_000)
    let soft = mixture(2 * cluster, seed: 6, noisePerThousand: 10)
    // A request of both kinds.
    #expect(try bench.write(noise + soft + noise, 0) == .none)
    #expect(try bench.host(of: 0) != nil)
    #expect(try bench.packedEntry(at: UInt64(2 * cluster)) != nil)
    #expect(try bench.host(of: UInt64(5 * cluster)) != nil)
    #expect(try bench.read(0, 6 * cluster) == noise + soft + noise)
    #expect(bench.packedClusterCount == 2)
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  @Test(arguments: ["", ",extended_l2=on"])
  func `is overwritten in place if it has a place of its own`(more: String) throws {
    let folder = try TemporaryFolder()
    try folder.makeImage("cluster_size=65536" + more)
    let bench = try ImageBench(folder, "disk", packsWrites: true)
    #expect(try bench.write(pattern(100), 0) == .none)
    let host = try bench.host(of: 0)
    // All subclusters, so that none needs a place.
    #expect(try bench.write(mixture(cluster, seed: 5, noisePerThousand: 1_000), 0) == .none)
    #expect(try bench.write(pattern(cluster), 0) == .none)
    #expect(try bench.host(of: 0) == host)
    #expect(bench.packedClusterCount == 0)
  }

  @Test(arguments: ["", ",extended_l2=on"])
  func `begins and ends in clusters that are written in part`(more: String) throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(options: "cluster_size=65536" + more)
    let bench = try ImageBench(folder, "disk", packsWrites: true)
    let data = mixture(3 * cluster, seed: 9)
    #expect(try bench.write(data, 1_000) == .none)
    #expect(try bench.packedEntry(at: 0) == nil)
    #expect(try bench.packedEntry(at: UInt64(cluster)) != nil)
    #expect(try bench.packedEntry(at: UInt64(3 * cluster)) == nil)
    #expect(try bench.read(0, 1 << 20) == overlay(pattern(1 << 20), at: 1_000, with: data))
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  @Test(arguments: ["", ",extended_l2=on"], engines)
  func `that was compressed gives way to a part written, and to another whole one`(
    more: String, engine: ExportPlan.Engine
  ) throws {
    let folder = try TemporaryFolder()
    try folder.makeImage("cluster_size=65536" + more)
    let bench = try ImageBench(folder, "disk", engine: engine, packsWrites: true)
    var data = mixture(8 * cluster, seed: 2)
    #expect(try bench.write(data, 0) == .none)
    try bench.settle()
    let again = mixture(cluster, seed: 3)
    #expect(try bench.write(again, 0) == .none)
    data = overlay(data, at: 0, with: again)
    #expect(try bench.packedEntry(at: 0) != nil)
    #expect(try bench.write(pattern(700), UInt64(cluster + 300)) == .none)
    data = overlay(data, at: cluster + 300, with: pattern(700))
    #expect(try bench.host(of: UInt64(cluster)) != nil)
    #expect(try bench.read(0, data.count) == data)
    try bench.settle()
    #expect(try bench.check().isClean)
    #expect(try folder.contents("copy").starts(with: data))
  }

  @Test func `leaves what a snapshot holds`() throws {
    let folder = try TemporaryFolder()
    try folder.makeImage()
    let old = mixture(8 * cluster, seed: 2)
    do {
      let bench = try ImageBench(folder, "disk", packsWrites: true)
      #expect(try bench.write(old, 0) == .none)
      #expect(try bench.write(pattern(100), 0) == .none)
      try bench.settle()
    }
    try folder.qemu("qemu-img snapshot -c one @disk")
    let bench = try ImageBench(folder, "disk", packsWrites: true)
    let new = mixture(8 * cluster, seed: 3)
    #expect(try bench.write(new, 0) == .none)
    #expect(try bench.packedEntry(at: 0) != nil)
    try bench.settle()
    #expect(try bench.check().isClean)
    #expect(try folder.contents("copy").starts(with: new))
    let kept = try folder.contents("copy", snapshot: "one")
    #expect(kept.starts(with: overlay(old, at: 0, with: pattern(100))))
  }

  @Test func `is durable when it was written with FUA`() throws {
    let folder = try TemporaryFolder()
    try folder.makeImage()
    let bench = try ImageBench(folder, "disk", packsWrites: true)
    #expect(try bench.write(mixture(cluster, seed: 1), 0, flags: .fua) == .none)
    #expect(!bench.hasDirtyTables)
    #expect(!bench.hasUnsyncedWrites)
  }

  @Test func `is left as it is by an export that does not compress`() throws {
    let folder = try TemporaryFolder()
    try folder.makeImage()
    let bench = try ImageBench(folder, "disk")
    #expect(try bench.write(pattern(2 * cluster), 0) == .none)
    #expect(try bench.packedEntry(at: 0) == nil)
    #expect(bench.packedClusterCount == 0)
  }
}

@Suite struct `The end of the packed bytes` {
  /// An image with one small packed cluster, durable, at guest offset 0.
  private func fixture(
    _ engine: ExportPlan.Engine = .sync
  ) throws -> (folder: TemporaryFolder, bench: ImageBench) {
    let folder = try TemporaryFolder()
    try folder.makeImage()
    let bench = try ImageBench(folder, "disk", engine: engine, packsWrites: true)
    try bench.write(pattern(cluster), 0)
    try bench.settle()
    return (folder, bench)
  }

  @Test(arguments: engines)
  func `is where the next one begins, in the same block`(engine: ExportPlan.Engine) throws {
    let (folder, bench) = try fixture(engine)
    let end = bench.tail.cursor
    try bench.write(pattern(cluster, seed: 1), UInt64(cluster))
    #expect(try bench.packedStart(at: UInt64(cluster)) == end)
    #expect(try bench.read(0, cluster) == pattern(cluster))
    try bench.settle()
    #expect(try bench.check().isClean)
    _ = folder
  }

  @Test func `is forgotten when its host cluster becomes free`() throws {
    let (folder, bench) = try fixture()
    #expect(bench.tail.cursor != 0)
    try bench.call(.trim, 0, UInt64(cluster))
    try bench.settle()
    #expect(bench.tail.cursor == 0)
    try bench.write(pattern(cluster, seed: 1), 0)
    try bench.write(pattern(cluster, seed: 2), UInt64(cluster))
    try bench.settle()
    #expect(try bench.check().isClean)
    #expect(try bench.read(0, cluster) == pattern(cluster, seed: 1))
    _ = folder
  }

  @Test func `is not written to while its host cluster is being punched out`() throws {
    let (folder, bench) = try fixture()
    try bench.call(.trim, 0, UInt64(cluster))
    #expect(try bench.finish(try bench.start(.flush, 0, 0)) == .none)
    try bench.until { bench.releases.isPunching }
    #expect(bench.tail.cursor == 0)
    let write = try bench.start(write: pattern(cluster, seed: 4), UInt64(cluster))
    #expect(try bench.finish(write) == .none)
    try bench.settle()
    #expect(try bench.read(UInt64(cluster), cluster) == pattern(cluster, seed: 4))
    #expect(try bench.check().isClean)
    _ = folder
  }

  @Test func `keeps its host cluster from being punched out when it was written to before`() throws
  {
    let (folder, bench) = try fixture()
    let old = try bench.packedStart(at: 0) / UInt64(cluster)
    try bench.call(.trim, 0, UInt64(cluster))
    try bench.write(pattern(cluster, seed: 4), UInt64(cluster))
    #expect(try bench.packedStart(at: UInt64(cluster)) / UInt64(cluster) == old)
    try bench.settle()
    #expect(try bench.count(ofClusterAt: old * UInt64(cluster)) == 1)
    #expect(try bench.read(UInt64(cluster), cluster) == pattern(cluster, seed: 4))
    #expect(try bench.check().isClean)
    _ = folder
  }

  @Test(arguments: ["cluster_size=65536", "cluster_size=4096", "cluster_size=16384,extended_l2=on"])
  func `is kept by many at once, whose blocks are one another's`(options: String) throws {
    for engine in engines {
      let folder = try TemporaryFolder()
      try folder.makeImage(options, 4 << 20)
      let bench = try ImageBench(folder, "disk", engine: engine, packsWrites: true)
      let unit = Int(bench.image.layers[0].geometry.clusterByteCount)
      var model = zeroes(64 * unit)
      var slots: [Int] = []
      for number in 0..<64 {
        let data = mixture(unit, seed: number, noisePerThousand: number * 13 % 700)
        slots.append(try bench.start(write: data, UInt64(number * unit)))
        model = overlay(model, at: number * unit, with: data)
      }
      for slot in slots { #expect(try bench.finish(slot) == .none) }
      #expect(try bench.read(0, model.count) == model)
      try bench.settle()
      #expect(try bench.check().isClean)
      #expect(try folder.contents("copy").starts(with: model))
    }
  }

  @Test(arguments: [1, 2, 3, 4])
  func `survives writes, zeroes and trims in any order`(seed: Int) throws {
    let options = [
      "cluster_size=4096", "cluster_size=4096,refcount_bits=2", "cluster_size=16384,extended_l2=on",
      "cluster_size=512",
    ][seed - 1]
    let folder = try TemporaryFolder()
    try folder.makeOverlay(options: options)
    let bench = try ImageBench(
      folder, "disk", engine: seed % 2 == 0 ? .sync : .aio, cacheByteCount: 1 << 20,
      packsWrites: true)
    let unit = Int(bench.image.layers[0].geometry.clusterByteCount)
    var model = pattern(1 << 20)
    var random = SystemRandomNumberGenerator()
    for round in 0..<60 {
      // Ranges of one round do not overlap, so that their order does not matter.
      var slots: [Int] = []
      var start = Int.random(in: 0..<4, using: &random) * 512
      while start < model.count / 2 {
        let whole = Bool.random(using: &random)
        if whole { start = (start + unit - 1) / unit * unit }
        let wanted = whole ? unit * Int.random(in: 1...5) : Int.random(in: 1...9_000)
        let length = min(wanted, model.count - start)
        switch Int.random(in: 0..<8) {
        case 0:
          slots.append(try bench.start(.writeZeroes, UInt64(start), UInt64(length)))
          model = overlay(model, at: start, with: zeroes(length))
        case 1:
          let data = zeroes(length)
          slots.append(try bench.start(write: data, UInt64(start)))
          model = overlay(model, at: start, with: data)
        default:
          let data = mixture(length, seed: round * 99 + start, noisePerThousand: start % 1_001)
          slots.append(try bench.start(write: data, UInt64(start)))
          model = overlay(model, at: start, with: data)
        }
        start += length + Int.random(in: 0..<3) * 4_096 + Int.random(in: 0...unit)
      }
      if round % 5 == 0 { slots.append(try bench.start(.flush, 0, 0)) }
      for slot in slots { #expect(try bench.finish(slot) == .none) }
    }
    #expect(try bench.read(0, model.count) == model)
    try bench.settle()
    #expect(try bench.check().isClean)
    #expect(try bench.read(0, model.count) == model)
  }
}
