// SPDX-License-Identifier: Apache-2.0
//
// Extended L2 entries whose clusters lie in an external data file: which bits change when parts of
// a cluster are written, zeroed and trimmed, alone and at the same time. QEMU's tools make the
// images and read them back. Spec: qcow2.rst, "Extended L2 Entries", "Header" (external data file).

import BlockTypes
import Foundation
import NBDProtocol
import Qcow2
import TestSupport
import Testing

@testable import DataPlane

private let cluster: UInt64 = 65_536
private let subcluster: UInt64 = 2_048

/// Bits `first ..< first + count`.
private func bits(_ first: Int, _ count: Int = 1) -> UInt32 {
  SubclusterBitmap.mask(first..<first + count)
}

@Suite struct `Subclusters in a data file` {
  private let folder: TemporaryFolder

  init() throws { folder = try TemporaryFolder() }

  private func makeDisk(_ options: String = "", _ more: String = "") throws -> ImageBench {
    try folder.qemu(
      "qemu-img create -q -f qcow2 -o data_file=\(folder.path("data")),extended_l2=on\(options)"
        + " \(more) @disk 1M")
    return try ImageBench(folder, "disk")
  }

  /// The entry of the cluster at `offset`, when all is in the file.
  private func entry(_ bench: ImageBench, _ offset: UInt64) throws -> ExtendedL2Entry {
    try bench.settle()
    let table = try bench.word(at: bench.word(at: 40)) & 0x00ff_ffff_ffff_fe00
    let place = table + offset / cluster * 16
    return ExtendedL2Entry(
      L2Entry(rawValue: try bench.word(at: place)),
      SubclusterBitmap(rawValue: try bench.word(at: place + 8)))
  }

  /// What QEMU reads from the disk, after it found nothing wrong with it.
  private func contents(_ bench: ImageBench) throws -> [UInt8] {
    try bench.settle()
    for storage in bench.image.storages { storage.file.unlock() }
    let verdict = try CheckedImage(bench.path)
    #expect(verdict.isClean, "\(verdict.text)")
    try folder.qemu("qemu-img convert -f qcow2 -O raw @disk @plain")
    return [UInt8](try Data(contentsOf: URL(fileURLWithPath: folder.path("plain"))))
  }

  @Test func `have their bits in the entry, also those of the first cluster`() throws {
    let bench = try makeDisk()
    for start in [0, 3 * cluster] {
      try bench.write(pattern(3_000), start + 5_000)
      let written = try entry(bench, start)
      #expect(written.descriptor == L2Entry(normalAt: HostOffset(byteOffset: start)))
      #expect(written.bitmap == SubclusterBitmap(allocated: bits(2, 2), zero: 0))
      try bench.write(pattern(2_048), start + 10 * subcluster)
      #expect(try entry(bench, start).bitmap.allocated == bits(2, 2) | bits(10))
      #expect(try bench.call(.writeZeroes, start + 5_000, 3_000) == .none)
      #expect(try bench.call(.trim, start + 2 * subcluster, subcluster) == .none)
      #expect(try entry(bench, start).bitmap.allocated == bits(3) | bits(10))
      #expect(try bench.call(.trim, start, cluster) == .none)
      #expect(try entry(bench, start) == ExtendedL2Entry(.unallocated, .none))
    }
    #expect(try contents(bench) == zeroes(1 << 20))
  }

  @Test func `keep their cluster for as long as one of them has data`() throws {
    let bench = try makeDisk()
    try bench.write(pattern(Int(cluster)), 0)
    #expect(try bench.call(.trim, 0, 31 * subcluster) == .none)
    #expect(try entry(bench, 0).descriptor.isCopied)
    #expect(try entry(bench, 0).bitmap.allocated == bits(31))
    #expect(try bench.call(.trim, 31 * subcluster, subcluster) == .none)
    #expect(try entry(bench, 0).descriptor == .unallocated)
  }

  @Test func `that are to have space keep a descriptor, also at offset 0`() throws {
    let bench = try makeDisk()
    #expect(try bench.call(.writeZeroes, 0, 2 * cluster, flags: .noHole) == .none)
    for start in [0, cluster] {
      let new = try entry(bench, start)
      #expect(new.descriptor == L2Entry(normalAt: HostOffset(byteOffset: start)))
      #expect(new.bitmap == .allZero)
    }
    #expect(try contents(bench) == zeroes(1 << 20))
  }

  @Test func `say that they are zero where a base has data`() throws {
    try folder.makeRaw("base", byteCount: 1 << 20)
    let bench = try makeDisk("", "-b @base -F raw")
    #expect(try bench.call(.writeZeroes, 2 * subcluster, 3 * subcluster) == .none)
    #expect(try bench.call(.trim, cluster, cluster) == .none)
    #expect(try entry(bench, 0).bitmap == SubclusterBitmap(allocated: 0, zero: bits(2, 3)))
    #expect(try entry(bench, cluster) == ExtendedL2Entry(.unallocated, .allZero))
    var expected = overlay(pattern(1 << 20), at: 4_096, with: zeroes(6_144))
    expected = overlay(expected, at: Int(cluster), with: zeroes(Int(cluster)))
    #expect(try bench.read(0, 1 << 20) == expected)
    #expect(try contents(bench) == expected)
  }

  /// The data file is cleared on the pool, while others go on.
  @Test(arguments: [",data_file_raw=on", ""], [false, true])
  func `are cleared beside writes to others of their cluster`(
    options: String, isWrittenFirst: Bool
  ) throws {
    let bench = try makeDisk(options)
    var expected = pattern(1 << 20)
    try bench.write(expected, 0)
    // Part of the first cluster has a place and no data, so that a write to it changes the entry.
    try bench.call(.trim, 8 * subcluster, 8 * subcluster)
    expected = overlay(expected, at: 16_384, with: zeroes(16_384))
    var slots: [Int] = []
    for round in 0..<8 {
      let at = UInt64(8 + round) * subcluster
      let write = { try bench.start(write: pattern(2_048, seed: round), at) }
      if isWrittenFirst { slots.append(try write()) }
      // The last of these leave the cluster without any data but what is written.
      slots.append(
        try bench.start(.trim, round % 2 == 0 ? 0 : 16 * subcluster, 8 * subcluster))
      slots.append(try bench.start(.trim, 24 * subcluster, 16 * subcluster))
      if !isWrittenFirst { slots.append(try write()) }
      expected = overlay(expected, at: Int(at), with: pattern(2_048, seed: round))
    }
    for slot in slots { #expect(try bench.finish(slot) == .none) }
    expected = overlay(expected, at: 0, with: zeroes(16_384))
    expected = overlay(expected, at: 32_768, with: zeroes(49_152))
    #expect(try bench.read(0, 1 << 20) == expected)
    #expect(try entry(bench, 0).bitmap.allocated == bits(8, 8))
    #expect(try contents(bench) == expected)
    if !options.isEmpty {
      let data = try Data(contentsOf: URL(fileURLWithPath: folder.path("data")))
      #expect([UInt8](data) == expected)
    }
  }

  @Test(arguments: ["", ",data_file_raw=on", ",cluster_size=16k", ",cluster_size=2M"])
  func `of QEMU's writes are read, and changed`(options: String) throws {
    let disk = folder.path("disk")
    try folder.qemu(
      "qemu-img create -q -f qcow2 -o data_file=\(folder.path("data")),extended_l2=on\(options)"
        + " @disk 1M")
    try folder.qemuIO(
      "disk", "write -P 1 0 1k", "write -P 2 70k 3k", "write -z 128k 64k", "write -z 200k 10k",
      "write -P 3 256k 128k", "discard 256k 64k", "write -z 330k 8k", "write -z -u 352k 8k")
    func model() throws -> [UInt8] {
      try folder.qemu("qemu-img convert -f qcow2 -O raw @disk @plain")
      return [UInt8](try Data(contentsOf: URL(fileURLWithPath: folder.path("plain"))))
    }
    var expected = try model()
    let bench = try ImageBench(folder, "disk")
    #expect(bench.path == disk)
    #expect(try bench.read(0, 1 << 20) == expected)
    for (offset, count) in [(0, 100), (71_000, 5_000), (130_000, 70_000), (334_000, 30_000)] {
      try bench.write(pattern(count, seed: offset), UInt64(offset))
      expected = overlay(expected, at: offset, with: pattern(count, seed: offset))
    }
    for (offset, count) in [(500, 8_000), (262_144, 100_000)] {
      #expect(try bench.call(.writeZeroes, UInt64(offset), UInt64(count)) == .none)
      expected = overlay(expected, at: offset, with: zeroes(count))
    }
    #expect(try bench.read(0, 1 << 20) == expected)
    #expect(try contents(bench) == expected)
  }
}
