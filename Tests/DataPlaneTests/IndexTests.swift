// SPDX-License-Identifier: Apache-2.0
//
// The index over the whole chain says what the layers say, one by one, whatever happens to the
// active layer. Spec: qcow2.rst, "Cluster mapping".

import BlockTypes
import Foundation
import LinuxIO
import TestSupport
import Testing

@testable import DataPlane

@Suite struct `The index of a chain` {
  /// Three layers with clusters of 4 KiB, 64 KiB and none, the middle one shorter than the others.
  private func threeLayers(
    middle: String = "cluster_size=65536", top: String = "cluster_size=4096"
  ) throws -> TemporaryFolder {
    let folder = try TemporaryFolder()
    try folder.makeRaw("base", byteCount: 3_000_320)
    try folder.qemu("qemu-img create -q -f qcow2 -o \(middle) -b @base -F raw @middle 2000384")
    try folder.qemuIO(
      "middle", "write -P 1 0 64k", "write -P 2 300k 100k", "write -z -u 1M 192k",
      "write -P 3 1950k 1k")
    try folder.qemu("qemu-img create -q -f qcow2 -o \(top) -b @middle -F qcow2 @disk 4M")
    return folder
  }

  /// The answers of both lookups over the whole disk, cut where either of them cuts.
  private func differences(_ bench: ImageBench) throws -> [String] {
    var found: [String] = []
    var cursor: UInt64 = 0
    let end = bench.image.diskByteCount
    while cursor < end {
      _ = try bench.readError(cursor, 1)  // so that tables and index are in memory
      let byIndex = bench.image.resolve(cursor, end)
      let byLayers = bench.image.resolveByLayers(cursor, end)
      let common = min(byIndex.byteCount, byLayers.byteCount)
      if byIndex.start(common) != byLayers.start(common) || common == 0 {
        found.append("\(cursor): \(byIndex.place) instead of \(byLayers.place)")
      }
      cursor += max(common, 1)
    }
    return found
  }

  @Test func `agrees with the layers of a fresh chain`() throws {
    let bench = try ImageBench(try threeLayers(), "disk")
    let usesIndex = bench.image.usesIndex
    #expect(usesIndex)
    #expect(try differences(bench) == [])
  }

  @Test(arguments: 1...4)
  func `agrees with the layers after writes, zeroes and trims`(round: Int) throws {
    try expectAgreement(try threeLayers(), unit: 4_096)
  }

  @Test(arguments: 1...4)
  func `agrees with layers that have subclusters`(round: Int) throws {
    let extended = "extended_l2=on,cluster_size=65536"
    try expectAgreement(try threeLayers(middle: extended, top: extended), unit: 2_048)
    try expectAgreement(
      try threeLayers(middle: extended, top: "cluster_size=4096"), unit: 4_096)
    try expectAgreement(
      try threeLayers(
        middle: "cluster_size=4096", top: "extended_l2=on,cluster_size=131072"), unit: 4_096)
  }

  /// - Parameter unit: what a trim forgets as a whole.
  private func expectAgreement(_ folder: TemporaryFolder, unit: UInt64) throws {
    let bench = try ImageBench(folder, "disk")
    var model = try bench.read(0, 4 << 20)
    for number in 0..<40 {
      let start = Int.random(in: 0..<(4 << 20) - 1)
      let count = Int.random(in: 1...min(200_000, (4 << 20) - start))
      switch number % 4 {
      case 0, 1:
        let data = pattern(count, seed: number)
        model = overlay(model, at: start, with: data)
        #expect(try bench.write(data, UInt64(start)) == .none)
      case 2:
        model = overlay(model, at: start, with: zeroes(count))
        #expect(try bench.call(.writeZeroes, UInt64(start), UInt64(count)) == .none)
      default:
        let whole = ByteRange(start: UInt64(start), end: UInt64(start + count))
          .roundedIn(to: unit)
        let gone = Int(whole.byteCount)
        model = overlay(model, at: Int(whole.start), with: zeroes(gone))
        #expect(try bench.call(.trim, UInt64(start), UInt64(count)) == .none)
      }
    }
    #expect(try differences(bench) == [])
    #expect(try bench.read(0, 4 << 20) == model)
    try bench.settle()
    #expect(try bench.read(0, 4 << 20) == model)
    #expect(try bench.check().isClean)
  }

  @Test func `is filled anew after it was evicted`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f raw @base 1G")
    try folder.qemu("qemu-img create -q -f qcow2 -o cluster_size=512 -b @base -F raw @disk")
    // One page of the index covers 256 KiB here, and the cache has 256 pages.
    let bench = try ImageBench(folder, "disk", cacheByteCount: 0)
    let places = (0..<1_000).map { UInt64($0) << 20 }
    for place in places.prefix(100) { #expect(try bench.write([9], place) == .none) }
    for place in places { #expect(try bench.read(place, 1) == [place < 100 << 20 ? 9 : 0]) }
    for place in places { #expect(try bench.read(place, 1) == [place < 100 << 20 ? 9 : 0]) }
  }

  @Test func `lets 300 readers in that all need another page at once`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f raw @base 1G")
    try folder.qemu(
      "qemu-img create -q -f qcow2 -o cluster_size=512 -b @base -F raw @middle")
    try folder.qemu(
      "qemu-img create -q -f qcow2 -o cluster_size=512 -b @middle -F qcow2 @disk")
    try folder.qemuIO("middle", (0..<300).map { "write -P 5 \($0)M 512" })
    try folder.qemuIO("disk", (0..<300).map { "write -P 6 \($0 * 1024 + 4)k 512" })
    for engine: ExportPlan.Engine in [.sync, .aio] {
      let bench = try ImageBench(folder, "disk", engine: engine, cacheByteCount: 0)
      let slots = try (0..<300).map { try bench.start(.read, UInt64($0) << 20, 512) }
      for slot in slots {
        let outcome = try bench.finishReading(slot)
        #expect(outcome.error == .none)
        #expect(outcome.data.first == 5)
      }
    }
  }

  @Test func `fails readers whose tables are gone, again and again, and stays usable`() async {
    await #expect(processExitsWith: .success) {
      alarm(60)
      let folder = try TemporaryFolder()
      try folder.qemu("qemu-img create -q -f qcow2 -o cluster_size=512 @base 1G")
      // Data at each MiB of the base makes a table for it, in the order of the file.
      try folder.qemuIO("base", (0..<600).map { "write -P 5 \($0)M 512" })
      try folder.qemu("qemu-img create -q -f qcow2 -o cluster_size=512 -b @base -F qcow2 @disk")
      let bench = try ImageBench(folder, "disk", cacheByteCount: 0)
      #expect(try bench.read(0, 1) == [5])
      let base = bench.image.storages[1]
      let byteCount = try base.file.byteCount()
      truncate(folder.path("base"), off_t(byteCount / 2))
      var failed = 0
      for number in 310..<600 {
        if try bench.readError(UInt64(number) << 20, 1) != .none { failed += 1 }
      }
      guard failed > 260 else { throw BenchError("only \(failed) reads failed") }
      guard try bench.read(0, 1) == [5] else { throw BenchError("the good part is lost") }
    }
  }
}

extension Resolution {
  fileprivate var place: String {
    switch self {
    case .data(_, let host, _): "\(words) at \(host)"
    case .zero, .compressed, .needsTable, .needsIndex, .damaged: words
    }
  }

  var byteCount: UInt64 {
    switch self {
    case .data(_, _, let byteCount): byteCount
    case .zero(_, let byteCount, _): byteCount
    case .compressed(_, _, let byteCount): byteCount
    case .needsTable, .needsIndex, .damaged: 0
    }
  }

  /// The answer for the first `byteCount` bytes, in words.
  fileprivate func start(_ byteCount: UInt64) -> String {
    switch self {
    case .data(let layer, let host, _): "data of \(layer) at \(host)"
    case .zero(let layer, _, let isProvisioned): "zero of \(layer ?? -1) \(isProvisioned)"
    case .compressed(let layer, let entry, _): "compressed in \(layer): \(entry.rawValue)"
    case .needsTable, .needsIndex: "unknown"
    case .damaged: "damaged"
    }
  }
}
