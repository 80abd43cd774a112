// SPDX-License-Identifier: Apache-2.0
//
// Images that keep guest data in an external data file, made and read back by QEMU's tools.
// Spec: qcow2.rst, "Header" (external data file, raw external data), "L2 table entry".

import BlockTypes
import Foundation
import NBDProtocol
import TestSupport
import Testing

@testable import DataPlane

private let cluster = 65_536
private let engines: [ExportPlan.Engine] = [.sync, .aio]

/// What an image with a data file is like besides.
struct DataFileKind: CustomTestStringConvertible {
  var isRaw = false
  var isExtended = false
  static let all = [
    DataFileKind(), DataFileKind(isRaw: true), DataFileKind(isExtended: true),
    DataFileKind(isRaw: true, isExtended: true),
  ]
  var options: String {
    (isRaw ? ",data_file_raw=on" : "") + (isExtended ? ",extended_l2=on" : "")
  }
  var testDescription: String { "data file\(options)" }
}

extension TemporaryFolder {
  /// "disk" with the data file "data"; QEMU finds it by the name alone when it runs here.
  fileprivate func makeDataFileDisk(
    _ kind: DataFileKind = DataFileKind(), size: String = "1M", more: String = ""
  ) throws {
    try qemu(
      "qemu-img create -q -f qcow2 -o data_file=\(path("data"))\(kind.options) \(more) @disk"
        + " \(size)")
  }

  /// What QEMU reads from the disk.
  fileprivate func contents(_ name: String = "disk") throws -> [UInt8] {
    try qemu("qemu-img convert -f qcow2 -O raw @\(name) @plain")
    return [UInt8](try Data(contentsOf: URL(fileURLWithPath: path("plain"))))
  }

  fileprivate func bytes(_ name: String) throws -> [UInt8] {
    [UInt8](try Data(contentsOf: URL(fileURLWithPath: path(name))))
  }
}

extension ImageBench {
  /// Flushes, gives the locks back, and returns QEMU's verdict: it opens the data file, too.
  fileprivate func leave() throws -> CheckedImage {
    try settle()
    for storage in image.storages { storage.file.unlock() }
    return try CheckedImage(path)
  }
}

@Suite struct `An image with an external data file` {
  @Test(arguments: engines, DataFileKind.all)
  func `keeps what is written to it, and QEMU reads it back`(
    engine: ExportPlan.Engine, kind: DataFileKind
  ) throws {
    let folder = try TemporaryFolder()
    try folder.makeDataFileDisk(kind)
    try folder.qemuIO("disk", "write -P 7 0 128k")
    let bench = try ImageBench(folder, "disk", engine: engine)
    #expect(try bench.read(0, 2 * cluster) == [UInt8](repeating: 7, count: 2 * cluster))
    var expected = [UInt8](repeating: 7, count: 2 * cluster) + zeroes((1 << 20) - 2 * cluster)
    for (offset, count) in [(100, 50), (200_000, 300_000), (983_040, 65_536), (65_000, 1_000)] {
      let data = pattern(count, seed: offset)
      #expect(try bench.write(data, UInt64(offset)) == .none)
      expected = overlay(expected, at: offset, with: data)
    }
    #expect(try bench.read(0, 1 << 20) == expected)
    #expect(try bench.leave().isClean)
    #expect(try folder.contents() == expected)
    if kind.isRaw { #expect(try folder.bytes("data") == expected) }
  }

  @Test func `has its clusters at their own offsets and counts none of them`() throws {
    let folder = try TemporaryFolder()
    try folder.makeDataFileDisk()
    let bench = try ImageBench(folder, "disk")
    let before = try bench.fileByteCount()
    for number in [0, 5, 3] {
      try bench.write(pattern(10, seed: number), UInt64(number * cluster))
      #expect(try bench.host(of: UInt64(number * cluster)) == UInt64(number * cluster))
    }
    #expect(try bench.leave().isClean)
    // One table at most came into the image itself.
    #expect(bench.image.allocator.keptByteCount <= before + UInt64(2 * cluster))
  }

  static let zeroings = DataFileKind.all.flatMap { kind in
    [CommandFlags(), .noHole].map { (kind: kind, flags: $0) }
  }

  @Test(arguments: engines, zeroings)
  func `reads as zeroes where it was zeroed, and so does a raw data file`(
    engine: ExportPlan.Engine, zeroing: (kind: DataFileKind, flags: CommandFlags)
  ) throws {
    let (kind, flags) = zeroing
    let folder = try TemporaryFolder()
    try folder.makeDataFileDisk(kind)
    let bench = try ImageBench(folder, "disk", engine: engine)
    var expected = pattern(1 << 20)
    try bench.write(expected, 0)
    for (offset, count) in [(0, cluster), (100_000, 500_000), (983_040, 65_536)] {
      #expect(
        try bench.call(.writeZeroes, UInt64(offset), UInt64(count), flags: flags) == .none)
      expected = overlay(expected, at: offset, with: zeroes(count))
    }
    #expect(try bench.read(0, 1 << 20) == expected)
    // A first write behind the zeroes finds them around it.
    #expect(try bench.write([9, 9], 300_000) == .none)
    expected = overlay(expected, at: 300_000, with: [9, 9])
    #expect(try bench.read(0, 1 << 20) == expected)
    #expect(try bench.leave().isClean)
    #expect(try folder.contents() == expected)
    if kind.isRaw { #expect(try folder.bytes("data") == expected) }
  }

  @Test(arguments: DataFileKind.all)
  func `gives the space of trimmed clusters back`(kind: DataFileKind) throws {
    let folder = try TemporaryFolder()
    try folder.makeDataFileDisk(kind, size: "4M")
    let bench = try ImageBench(folder, "disk")
    try bench.write(pattern(4 << 20), 0)
    try bench.settle()
    let storage = try #require(bench.image.storages.last)
    let before = try #require(try storage.file.allocatedByteCount())
    #expect(try bench.call(.trim, 0, 3 << 20) == .none)
    try bench.settle()
    let after = try #require(try storage.file.allocatedByteCount())
    #expect(after + (2 << 20) < before)
    #expect(try bench.read(0, 3 << 20) == zeroes(3 << 20))
    // Nothing that was given up is punched out later, when it holds new bytes.
    try bench.write(pattern(cluster, seed: 4), 0)
    try bench.settle()
    #expect(try bench.read(0, cluster) == pattern(cluster, seed: 4))
    #expect(try bench.leave().isClean)
  }

  @Test(arguments: [false, true])
  func `hides its base where it was zeroed, and shows it elsewhere`(isExtended: Bool) throws {
    let folder = try TemporaryFolder()
    try folder.makeRaw("base", byteCount: 1 << 20)
    try folder.makeDataFileDisk(DataFileKind(isExtended: isExtended), more: "-b @base -F raw")
    let bench = try ImageBench(folder, "disk")
    var expected = pattern(1 << 20)
    #expect(try bench.call(.writeZeroes, 0, UInt64(3 * cluster)) == .none)
    expected = overlay(expected, at: 0, with: zeroes(3 * cluster))
    #expect(try bench.write([1, 2, 3], 70_000) == .none)
    expected = overlay(expected, at: 70_000, with: [1, 2, 3])
    #expect(try bench.write([4], 500_000) == .none)
    expected = overlay(expected, at: 500_000, with: [4])
    #expect(try bench.call(.trim, UInt64(7 * cluster), UInt64(cluster)) == .none)
    expected = overlay(expected, at: 7 * cluster, with: zeroes(cluster))
    #expect(try bench.read(0, 1 << 20) == expected)
    #expect(try bench.leave().isClean)
    #expect(try folder.contents() == expected)
  }

  @Test(arguments: engines, [false, true])
  func `may be a base`(engine: ExportPlan.Engine, isExtended: Bool) throws {
    let folder = try TemporaryFolder()
    try folder.makeDataFileDisk(DataFileKind(isExtended: isExtended))
    try folder.qemuIO("disk", "write -P 7 0 128k", "write -P 8 512k 64k")
    try folder.qemu(
      "qemu-img create -q -f qcow2 -o cluster_size=4k -b @disk -F qcow2 @top")
    let before = try folder.bytes("data")
    let bench = try ImageBench(folder, "top", engine: engine)
    #expect(try bench.read(10_000, 50_000) == [UInt8](repeating: 7, count: 50_000))
    #expect(try bench.write([1], 524_288) == .none)
    #expect(try bench.read(524_288, 3) == [1, 8, 8])
    try bench.settle()
    #expect(try folder.bytes("data") == before)
  }

  @Test(arguments: DataFileKind.all)
  func `grows with its data file, and what it grows by is zero`(kind: DataFileKind) throws {
    let folder = try TemporaryFolder()
    try folder.makeDataFileDisk(kind, size: "1000k")
    let data = try FileHandle(forUpdating: URL(fileURLWithPath: folder.path("data")))
    try data.seek(toOffset: 1_024_000)
    try data.write(contentsOf: Data(pattern(100_000)))
    try data.close()
    let bench = try ImageBench(folder, "disk")
    try bench.write(pattern(24_000), 1_000_000)
    #expect(try bench.call(.resize, 2 << 20) == .none)
    #expect(try bench.read(1_024_000, 100_000) == zeroes(100_000))
    try bench.write([5], (2 << 20) - 1)
    let expected = try bench.read(0, 2 << 20)
    #expect(try bench.leave().isClean)
    #expect(try folder.contents() == expected)
    if kind.isRaw { #expect(try Array(folder.bytes("data").prefix(expected.count)) == expected) }
  }

  @Test(arguments: [false, true])
  func `ends its data file where the disk ends`(isExtended: Bool) throws {
    let folder = try TemporaryFolder()
    try folder.makeDataFileDisk(DataFileKind(isExtended: isExtended), size: "1000k")
    let bench = try ImageBench(folder, "disk")
    try bench.write([1], 1_023_999)
    #expect(try bench.leave().isClean)
    #expect(try folder.bytes("data").count == 1_024_000)
  }

  /// Data is durable before the table that names it: with one synchronisation of the data file in
  /// the first step of the flush.
  @Test func `is synchronised with its data file`() throws {
    let folder = try TemporaryFolder()
    try folder.makeDataFileDisk()
    let bench = try ImageBench(folder, "disk")
    let slot = try bench.start(write: pattern(cluster), 0)
    #expect(try bench.finish(slot) == .none)
    bench.image.wantFlush()
    bench.image.startFlushIfWanted()
    try bench.until { bench.image.flush.syncIsQueued || !bench.image.flush.isRunning }
    #expect(bench.image.flush.phase == .unreferenced)
    #expect(bench.image.flush.inFlightCount == 2)
    try bench.until { bench.image.isIdle }
    let verdict = try bench.leave()
    #expect(verdict.isClean, "\(verdict.text)")
  }

  /// L2 entries of clusters of 64 KiB that no data file can have, for guest offset 64 KiB.
  static let strayEntries: [UInt64] = [
    1 << 63 | 2 << 16, 1 << 63, 1 << 62 | 1 << 16, 1 << 63 | 1 << 16 | 2,
  ]

  @Test(arguments: strayEntries, [false, true])
  func `refuses entries that lead elsewhere`(entry: UInt64, isExtended: Bool) throws {
    let folder = try TemporaryFolder()
    try folder.makeDataFileDisk(DataFileKind(isExtended: isExtended))
    try folder.qemuIO("disk", "write -P 7 0 256k")
    let file = try FileHandle(forUpdating: URL(fileURLWithPath: folder.path("disk")))
    func word(_ offset: UInt64) throws -> UInt64 {
      try file.seek(toOffset: offset)
      return try file.read(upToCount: 8)?.reduce(0) { $0 << 8 | UInt64($1) } ?? 0
    }
    let table = try word(try word(40)) & 0x00ff_ffff_ffff_fe00
    try file.seek(toOffset: table + (isExtended ? 16 : 8))
    try file.write(contentsOf: Data(wire(entry)))
    try file.close()
    let bench = try ImageBench(folder, "disk")
    #expect(try bench.readError(UInt64(cluster), 512) == .io)
    #expect(try bench.write([1], UInt64(cluster)) == .io)
    #expect(try bench.read(0, 512) == [UInt8](repeating: 7, count: 512))
    #expect(try bench.read(UInt64(2 * cluster), 512) == [UInt8](repeating: 7, count: 512))
  }
}
