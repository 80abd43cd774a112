// SPDX-License-Identifier: Apache-2.0
//
// Images with internal snapshots: what a snapshot shares is copied on write. Spec: qcow2.rst,
// "Snapshots", "L2 table entry" (COPIED flag).

import Foundation
import TestSupport
import Testing

@testable import DataPlane

private let cluster: UInt64 = 65_536

@Suite struct `A cluster that a snapshot shares` {
  /// An image with data in four clusters, all of which a snapshot named "old" shares.
  private func sharedBench() throws -> ImageBench {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 @disk 1M")
    try folder.qemuIO("disk", "write -P 7 0 256k")
    try folder.qemu("qemu-img snapshot -c old @disk")
    return try ImageBench(folder, "disk")
  }

  /// The disk as the snapshot has it.
  private func snapshot(_ bench: ImageBench) throws -> [UInt8] {
    let copy = bench.folder.path("snapshot")
    _ = try bench.check()
    try bench.folder.qemu("qemu-img convert -f qcow2 -O raw -l old @copy @snapshot")
    return [UInt8](try Data(contentsOf: URL(fileURLWithPath: copy)))
  }

  private let old = [UInt8](repeating: 7, count: 262_144) + zeroes((1 << 20) - 262_144)

  @Test func `is copied by a write, and the snapshot keeps its bytes`() throws {
    let bench = try sharedBench()
    let before = try #require(try bench.host(of: cluster))
    #expect(try bench.write([1, 2, 3], cluster + 100) == .none)
    #expect(try bench.host(of: cluster) != before)
    #expect(try bench.read(0, 1 << 20) == overlay(old, at: 65_636, with: [1, 2, 3]))
    try bench.settle()
    let verdict = try bench.check()
    #expect(verdict.isClean, "\(verdict.text)")
    #expect(try snapshot(bench) == old)
  }

  @Test func `is overwritten in place once it was copied`() throws {
    let bench = try sharedBench()
    try bench.write([1], 0)
    let copied = try #require(try bench.host(of: 0))
    try bench.write([2], 1)
    #expect(try bench.host(of: 0) == copied)
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  @Test func `is given up by a trim, and the snapshot keeps its bytes`() throws {
    let bench = try sharedBench()
    #expect(try bench.call(.trim, 0, 2 * cluster) == .none)
    #expect(try bench.read(0, Int(2 * cluster)) == zeroes(Int(2 * cluster)))
    try bench.settle()
    let verdict = try bench.check()
    #expect(verdict.isClean, "\(verdict.text)")
    #expect(try snapshot(bench) == old)
  }

  @Test func `leaves only leaks if the machine stops at any step of its copy`() throws {
    let bench = try sharedBench()
    try bench.write([1], 0)
    let flush = try bench.start(.flush, 0, 0)
    for _ in 0..<30 {
      bench.step()
      let verdict = try bench.check()
      #expect(verdict.hasOnlyLeaks, "\(verdict.text)")
    }
    #expect(try bench.finish(flush) == .none)
  }

  @Test func `is copied by sixteen writers at once, into one place`() throws {
    let bench = try sharedBench()
    let slots = try (0..<16).map { try bench.start(write: [9], UInt64($0 * 4_096)) }
    for slot in slots { #expect(try bench.finish(slot) == .none) }
    var expected = old
    for number in 0..<16 { expected[number * 4_096] = 9 }
    #expect(try bench.read(0, 1 << 20) == expected)
    try bench.settle()
    let verdict = try bench.check()
    #expect(verdict.isClean, "\(verdict.text)")
    #expect(try snapshot(bench) == old)
  }
}

@Suite struct `A table that was given up` {
  // An image whose COPIED flag is clear although nobody shares the table: QEMU's check calls that
  // an error, but an image may arrive so. The table is copied, its cluster becomes free, and when a
  // table is made there again the cache must not know the old one.
  @Test func `is not found in the cache when its place becomes a table again`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 -o cluster_size=4096 @disk 64M")
    try folder.qemuIO("disk", "write -P 7 0 4k", "write -P 7 8k 4k")
    try folder.clearCopied("disk")
    let bench = try ImageBench(folder, "disk")
    let table = try bench.word(at: try bench.word(at: 40)) & 0x00ff_ffff_ffff_fe00
    // Copies the table, and gives the old one up.
    #expect(try bench.write(pattern(4_096, seed: 1), 4_096) == .none)
    try bench.settle()
    #expect(try bench.count(ofClusterAt: table) == 0)
    // One 4 KiB table maps 2 MiB: each of these writes makes a table.
    var tables: [UInt64] = []
    for number: UInt64 in 1..<20 {
      #expect(try bench.write(pattern(4_096, seed: 2), number << 21) == .none)
      tables.append(bench.image.layers[0].l1[Int(number)] & 0x00ff_ffff_ffff_fe00)
      #expect(try bench.read(number << 21 | 8_192, 4_096) == zeroes(4_096), "table \(number)")
      #expect(try bench.read(number << 21, 4_096) == pattern(4_096, seed: 2))
    }
    #expect(tables.contains(table), "the test wants the place again")
    try bench.settle()
    let verdict = try bench.check()
    #expect(verdict.isClean, "\(verdict.text)")
  }
}

extension TemporaryFolder {
  /// Clears the COPIED flag of the first L1 entry.
  fileprivate func clearCopied(_ name: String) throws {
    let image = try FileHandle(forUpdating: URL(fileURLWithPath: path(name)))
    try image.seek(toOffset: 40)
    let table = try image.read(upToCount: 8)?.reduce(0) { $0 << 8 | UInt64($1) } ?? 0
    try image.seek(toOffset: table)
    let first = try image.read(upToCount: 1) ?? Data()
    try image.seek(toOffset: table)
    try image.write(contentsOf: Data(first.map { $0 & 0x7f }))
    try image.close()
  }
}
