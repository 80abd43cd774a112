// SPDX-License-Identifier: Apache-2.0
//
// Writes, zeroes and trims in images with extended L2 entries: what is filled, which bits change
// and when, and what becomes of the host cluster. Spec: qcow2.rst, "Extended L2 Entries".

import BlockTypes
import Foundation
import LinuxIO
import NBDProtocol
import Qcow2
import TestSupport
import Testing

@testable import DataPlane

private let cluster: UInt64 = 65_536
private let subcluster: UInt64 = 2_048

extension ImageBench {
  /// The entry of the cluster at `offset` as it is in memory; nil when no table is there.
  fileprivate func entry(_ offset: UInt64 = 0) throws -> ExtendedL2Entry? {
    let geometry = image.layers[0].geometry
    let guest = GuestOffset(byteOffset: offset)
    let l1 = L1Entry(rawValue: image.layers[0].l1[geometry.l1Index(of: guest)])
    if l1.isEmpty { return nil }
    let place = PagePlace(
      entryIndex: geometry.l2Index(of: guest), table: l1.tableOffset.byteOffset,
      geometry: geometry)
    guard let page = image.cache.find(0, place.pageOffset) else {
      _ = image.findPlace(offset, offset + 512)
      return ExtendedL2Entry(
        L2Entry(rawValue: try word(at: place.pageOffset + UInt64(place.entryInPage) * 16)),
        SubclusterBitmap(
          rawValue: try word(at: place.pageOffset + UInt64(place.entryInPage) * 16 + 8)))
    }
    return image.cache.pages[page].buffer.extendedEntry(place.entryInPage)
  }

  fileprivate var allocatedClusterCount: UInt64 { image.counters.allocatedClusterCount }

  fileprivate func expectClean() throws {
    try settle()
    let verdict = try check()
    #expect(verdict.isClean, "\(verdict.text)")
  }
}

/// Bits `first ..< first + count`.
private func bits(_ first: Int, _ count: Int = 1) -> UInt32 {
  SubclusterBitmap.mask(first..<first + count)
}

@Suite struct `A write to an image with subclusters` {
  /// An overlay over a base full of `pattern`.
  private func overlayBench(_ engine: ExportPlan.Engine = .sync) throws -> ImageBench {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(options: "extended_l2=on")
    return try ImageBench(folder, "disk", engine: engine)
  }

  @Test(arguments: [ExportPlan.Engine.sync, .aio])
  func `takes a host cluster, and fills the subclusters that it touches`(
    engine: ExportPlan.Engine
  ) throws {
    let bench = try overlayBench(engine)
    try bench.write(pattern(3_000, seed: 1), 5_000)
    let entry = try #require(try bench.entry())
    #expect(entry.bitmap == SubclusterBitmap(allocated: bits(2, 2), zero: 0))
    let expected = overlay(pattern(1 << 20), at: 5_000, with: pattern(3_000, seed: 1))
    #expect(try bench.read(0, 1 << 20) == expected)
    try bench.expectClean()
    guard engine == .sync else { return }  // the bench reads the file without alignment
    let host = entry.descriptor.hostOffset.byteOffset
    // Of the base, 4096 ..< 5000 and 8000 ..< 8192 were copied, and nothing more.
    #expect(try bench.bytes(at: host + 4_096, 4_096) == Array(expected[4_096..<8_192]))
    #expect(try bench.bytes(at: host, 4_096) == zeroes(4_096))
    #expect(try bench.bytes(at: host + 8_192, 4_096) == zeroes(4_096))
  }

  @Test func `of whole subclusters reads nothing of the base`() throws {
    let bench = try overlayBench()
    try bench.write([1], cluster)  // so that the tables are in memory
    let before = bench.systemCallCount
    try bench.write(pattern(4_096), 4_096)
    #expect(bench.systemCallCount == before + 1)
  }

  @Test func `adds to the host cluster that is there, and the bits follow the bytes`() throws {
    let bench = try overlayBench()
    try bench.write(pattern(2_048, seed: 1), 0)
    let first = try #require(try bench.entry())
    let slot = try bench.start(write: pattern(2_048, seed: 2), 10 * subcluster)
    // Nothing has been given to the disk yet.
    #expect(try bench.entry() == first)
    #expect(try bench.finish(slot) == .none)
    let second = try #require(try bench.entry())
    #expect(second.descriptor == first.descriptor)
    #expect(second.bitmap.allocated == bits(0) | bits(10))
    #expect(bench.allocatedClusterCount == 1)
    try bench.expectClean()
  }

  @Test func `in place changes no bit`() throws {
    let bench = try overlayBench()
    try bench.write(pattern(4_096), 0)
    try bench.settle()
    try bench.write(pattern(3_000, seed: 3), 17)
    #expect(!bench.hasDirtyTables)
    #expect(try bench.read(17, 3_000) == pattern(3_000, seed: 3))
  }

  @Test func `goes round the subclusters that are there`() throws {
    let bench = try overlayBench()
    for number: UInt64 in [3, 7, 31] {
      try bench.write(pattern(2_048, seed: Int(number)), number * subcluster)
    }
    try bench.write(pattern(200_000, seed: 9), 1_000)
    var expected = pattern(1 << 20)
    expected = overlay(expected, at: 1_000, with: pattern(200_000, seed: 9))
    #expect(try bench.read(0, 1 << 20) == expected)
    #expect(try bench.entry()?.bitmap.allocated == .max)
    #expect(try bench.entry(3 * cluster)?.bitmap.allocated == bits(0, 3))
    try bench.expectClean()
  }

  @Test func `to a cluster that is being taken waits for it, and the others do not`() throws {
    let bench = try overlayBench()
    let slots = try (0..<32).map { number in
      try bench.start(
        write: pattern(2_048, seed: Int(number)), UInt64(number * 7 % 32) * subcluster)
    }
    for slot in slots { #expect(try bench.finish(slot) == .none) }
    for number in 0..<32 {
      let start = UInt64(number * 7 % 32) * subcluster
      #expect(try bench.read(start, 2_048) == pattern(2_048, seed: number))
    }
    #expect(bench.allocatedClusterCount == 1)
    #expect(try bench.entry()?.bitmap.allocated == .max)
    try bench.expectClean()
  }

  @Test func `to a subcluster that another write is filling joins it`() throws {
    let bench = try overlayBench()
    let slots = try [
      bench.start(write: [1, 2, 3], 100), bench.start(write: [4, 5, 6], 900),
      bench.start(write: pattern(3_000), 2_000),
    ]
    for slot in slots { #expect(try bench.finish(slot) == .none) }
    var expected = overlay(pattern(1 << 20), at: 100, with: [1, 2, 3])
    expected = overlay(expected, at: 900, with: [4, 5, 6])
    expected = overlay(expected, at: 2_000, with: pattern(3_000))
    #expect(try bench.read(0, 8_192) == Array(expected[..<8_192]))
    #expect(try bench.entry()?.bitmap.allocated == bits(0, 3))
    try bench.expectClean()
  }

  @Test func `uses the cluster that was preallocated over the base`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(options: "extended_l2=on,preallocation=metadata")
    let bench = try ImageBench(folder, "disk")
    try bench.write(pattern(150_000, seed: 2), 3_000)
    #expect(bench.allocatedClusterCount == 0)
    let expected = overlay(pattern(1 << 20), at: 3_000, with: pattern(150_000, seed: 2))
    #expect(try bench.read(0, 1 << 20) == expected)
    try bench.expectClean()
  }

  @Test func `copies what a snapshot shares, as far as there is something`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(options: "extended_l2=on")
    try folder.qemuIO("disk", "write -P 7 8k 4k", "write -z 20k 2k")
    try folder.qemu("qemu-img snapshot -c old @disk")
    let bench = try ImageBench(folder, "disk")
    let before = try bench.read(0, 1 << 20)
    let shared = try #require(try bench.entry())
    try bench.write([1], 2_048)
    let entry = try #require(try bench.entry())
    #expect(entry.descriptor != shared.descriptor)
    #expect(entry.bitmap == SubclusterBitmap(allocated: bits(1, 5), zero: bits(10)))
    #expect(try bench.read(0, 1 << 20) == overlay(before, at: 2_048, with: [1]))
    try bench.expectClean()
    try folder.qemu("qemu-img convert -f qcow2 -O raw -l old @copy @snapshot")
    let old = try Data(contentsOf: URL(fileURLWithPath: folder.path("snapshot")))
    #expect([UInt8](old) == before)
  }

  @Test func `unpacks a compressed cluster`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(options: "extended_l2=on")
    try folder.qemuIO("disk", "write -c -P 7 64k 64k")
    let bench = try ImageBench(folder, "disk")
    try bench.write([1, 2], cluster + 9)
    #expect(try bench.entry(cluster)?.bitmap.allocated == .max)
    let packed = [UInt8](repeating: 7, count: Int(cluster))
    #expect(try bench.read(cluster, Int(cluster)) == overlay(packed, at: 9, with: [1, 2]))
    try bench.expectClean()
  }

  @Test func `fails when its entry contradicts itself, and changes nothing`() throws {
    for bitmap: UInt64 in [1 << 32 | 1, .max] {
      let folder = try TemporaryFolder()
      try folder.makeOverlay(options: "extended_l2=on")
      try folder.qemuIO("disk", "write -P 7 0 2k")
      let bench = try ImageBench(folder, "disk")
      let table = try bench.word(at: try bench.word(at: 40)) & ~(1 << 63)
      let file = try FileHandle(forUpdating: URL(fileURLWithPath: bench.path))
      try file.seek(toOffset: table + 8)
      try file.write(contentsOf: Data(wire(bitmap)))
      try file.close()
      #expect(try bench.write([1], 0) == .io)
      #expect(try bench.readError(0, 512) == .io)
      #expect(try bench.call(.trim, 0, 4_096) == .io)
      #expect(try bench.call(.writeZeroes, 0, cluster, flags: .noHole) == .io)
      #expect(try bench.readError(cluster, 512) == .none)
      #expect(try bench.word(at: table + 8) == bitmap)
    }
  }
}

@Suite struct `Zeroes in an image with subclusters` {
  private func overlayBench(_ commands: String...) throws -> ImageBench {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(options: "extended_l2=on")
    if !commands.isEmpty { try folder.qemuIO("disk", commands) }
    return try ImageBench(folder, "disk")
  }

  @Test(arguments: [Command.trim, .writeZeroes])
  func `are bits, without a host cluster`(_ command: Command) throws {
    let bench = try overlayBench()
    #expect(try bench.call(command, 4_096, 6_144) == .none)
    let expected = overlay(pattern(1 << 20), at: 4_096, with: zeroes(6_144))
    #expect(try bench.read(0, 1 << 20) == expected)
    let entry = try #require(try bench.entry())
    #expect(entry.descriptor == .unallocated)
    #expect(entry.bitmap == SubclusterBitmap(allocated: 0, zero: bits(2, 3)))
    #expect(bench.allocatedClusterCount == 0)
    try bench.expectClean()
  }

  @Test(arguments: [Command.trim, .writeZeroes])
  func `leave the other subclusters, and give the host cluster back with the last`(
    _ command: Command
  ) throws {
    let bench = try overlayBench("write -P 7 0 64k")
    let host = try #require(try bench.host(of: 0))
    #expect(try bench.call(command, 0, 32_768) == .none)
    #expect(
      try bench.entry()?.bitmap == SubclusterBitmap(allocated: bits(16, 16), zero: bits(0, 16)))
    #expect(try bench.count(ofClusterAt: host) == 1)
    #expect(try bench.call(command, 32_768, 32_768) == .none)
    let entry = try #require(try bench.entry())
    #expect(entry == ExtendedL2Entry(.unallocated, .allZero))
    #expect(try bench.read(0, Int(cluster)) == zeroes(Int(cluster)))
    try bench.expectClean()
    #expect(try bench.count(ofClusterAt: host) == 0)
  }

  @Test func `are written in parts of subclusters only, and a trim leaves those`() throws {
    let bench = try overlayBench("write -P 7 0 64k")
    let sevens = [UInt8](repeating: 7, count: Int(cluster))
    #expect(try bench.call(.trim, 1_000, 4_000) == .none)
    #expect(
      try bench.read(0, Int(cluster)) == overlay(sevens, at: 2_048, with: zeroes(2_048)))
    #expect(try bench.call(.writeZeroes, 1_000, 8_000) == .none)
    #expect(
      try bench.read(0, Int(cluster)) == overlay(sevens, at: 1_000, with: zeroes(8_000)))
    #expect(
      try bench.entry()?.bitmap
        == SubclusterBitmap(allocated: ~bits(1, 3), zero: bits(1, 3)))
    try bench.expectClean()
  }

  @Test func `in a part of a compressed cluster are written, and a trim leaves it`() throws {
    let bench = try overlayBench("write -c -P 7 0 64k")
    let sevens = [UInt8](repeating: 7, count: Int(cluster))
    #expect(try bench.call(.trim, 4_096, 4_096) == .none)
    #expect(try bench.read(0, Int(cluster)) == sevens)
    #expect(try bench.call(.writeZeroes, 4_096, 4_096) == .none)
    #expect(
      try bench.read(0, Int(cluster)) == overlay(sevens, at: 4_096, with: zeroes(4_096)))
    #expect(try bench.call(.trim, 0, cluster) == .none)
    #expect(try bench.read(0, Int(cluster)) == zeroes(Int(cluster)))
    try bench.expectClean()
  }

  @Test func `with NO_HOLE keep or take host clusters, for whole clusters`() throws {
    let bench = try overlayBench("write -P 7 4k 2k", "write -c -P 8 128k 64k")
    let host = try #require(try bench.entry()).descriptor
    #expect(try bench.call(.writeZeroes, 0, 3 * cluster, flags: .noHole) == .none)
    #expect(try bench.entry() == ExtendedL2Entry(host, .allZero))
    for number: UInt64 in 1...2 {
      let entry = try #require(try bench.entry(number * cluster))
      #expect(entry.bitmap == .allZero)
      #expect(entry.descriptor.isCopied)
    }
    let taken = bench.allocatedClusterCount
    try bench.write([1], 5 * 2_048)
    #expect(bench.allocatedClusterCount == taken)
    #expect(
      try bench.read(0, Int(3 * cluster))
        == overlay(zeroes(Int(3 * cluster)), at: 5 * 2_048, with: [1]))
    try bench.expectClean()
  }

  @Test func `at the end of a disk that ends inside a cluster reach its end, and no further`()
    throws
  {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(byteCount: 200_704, options: "extended_l2=on")
    let bench = try ImageBench(folder, "disk")
    for command: Command in [.trim, .writeZeroes] {
      try bench.write(pattern(4_096), 196_608)
      for length: UInt64 in [512, 1_024, 4_096] {
        #expect(try bench.call(command, 200_704 - length, length) == .none)
      }
      #expect(try bench.read(196_608, 4_096) == zeroes(4_096))
      #expect(try bench.call(command, 150_000, 50_704) == .none)
    }
    try bench.expectClean()
  }

  @Test func `without a base need no bits`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 -o extended_l2=on @disk 1M")
    let bench = try ImageBench(folder, "disk")
    try bench.write(pattern(8_192), 0)
    #expect(try bench.call(.writeZeroes, 0, 4_096) == .none)
    #expect(try bench.entry()?.bitmap == SubclusterBitmap(allocated: bits(2, 2), zero: 0))
    #expect(try bench.call(.trim, 4_096, 4_096) == .none)
    #expect(try bench.entry() == ExtendedL2Entry(.unallocated, .none))
    #expect(try bench.read(0, 8_192) == zeroes(8_192))
    try bench.expectClean()
  }
}
