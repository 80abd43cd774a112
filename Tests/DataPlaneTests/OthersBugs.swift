// SPDX-License-Identifier: Apache-2.0
//
// Bugs that other writers of qcow2 had, each as a rule that ours keeps: the numbers are the rows of
// reference/users.md 1.3. What needs a failing disk or a killed daemon is in
// Tests/FaultTests/OthersBugs.swift.

import BlockTypes
import Foundation
import ImageTools
import LinuxIO
import NBDProtocol
import Qcow2
import TestSupport
import Testing

@testable import DataPlane

private let cluster: UInt64 = 65_536

@Suite struct `Bugs of other qcow2 writers` {
  private func overlay(_ options: String = "cluster_size=65536") throws -> ImageBench {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(options: options)
    return try ImageBench(folder, "disk")
  }

  private func empty(_ options: String, _ size: String = "64M") throws -> ImageBench {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 -o \(options) @disk \(size)")
    return try ImageBench(folder, "disk")
  }

  @Test func `1: an L2 table is counted durably before the L1 table names it`() throws {
    let bench = try overlay()
    try bench.write(pattern(512), 0)
    let watcher = try Watcher(bench)
    var isNamed = false
    _ = try watcher.finish(bench.start(.flush, 0, 0)) { durable, visible in
      guard let table = PlainImage(bytes: visible).table else { return }
      isNamed = true
      #expect(PlainImage(bytes: durable).count(of: table) == 1)
    }
    #expect(isNamed)
  }

  @Test func `3: a cluster is free only when its hole is punched`() throws {
    let bench = try empty("cluster_size=64k")
    try bench.write(pattern(Int(cluster)), 0)
    try bench.settle()
    let host = try #require(try bench.host(of: 0))
    try bench.call(.trim, 0, cluster)
    let flush = try bench.start(.flush, 0, 0)
    var isFlushed = false
    var isFree = false
    var number: UInt64 = 0
    while !isFree, number < 200 {
      number += 1
      bench.step()
      isFlushed = isFlushed || bench.outcome(flush) != nil
      isFree = try bench.count(ofClusterAt: host) == 0
      if isFree { #expect(try bench.bytes(at: host, Int(cluster)) == zeroes(Int(cluster))) }
      // Allocations race for the place meanwhile.
      try bench.write([UInt8](repeating: 9, count: Int(cluster)), number * cluster)
      isFlushed = isFlushed || bench.outcome(flush) != nil
    }
    #expect(isFree && isFlushed)
    for written in 1...number { #expect(try bench.read(written * cluster, 1) == [9]) }
  }

  @Test func `4: the place of a refcount table that moved is used again`() throws {
    let bench = try empty("cluster_size=512", "24M")
    let old = try bench.word(at: 48)
    for offset in stride(from: UInt64(0), to: 12 << 20, by: 65_536) {
      try bench.write(pattern(65_536), offset)
    }
    try bench.settle()
    #expect(try bench.word(at: 48) != old)
    // Free, or taken for something that is counted: a leak is what QEMU would report.
    let verdict = try bench.check()
    #expect(verdict.isClean, "\(verdict.text)")
  }

  @Test func `5: WRITE_ZEROES never shows the backing file`() throws {
    for options in ["cluster_size=65536", "cluster_size=65536,compat=0.10"] {
      let bench = try overlay(options)
      try bench.call(.writeZeroes, 100, 3 * cluster)
      try bench.call(.trim, 8 * cluster, cluster)
      let expected = zeroes(Int(3 * cluster))
      #expect(try bench.read(100, expected.count) == expected)
      try bench.settle()
      let verdict = try bench.check()
      #expect(verdict.isClean)
      try bench.folder.qemuIO("copy", "read -P 0 100 \(3 * cluster)")
    }
  }

  @Test func `6: bit 0 of a packed cluster's entry is part of its place`() throws {
    let folder = try TemporaryFolder()
    // Each cluster packs to another length, so that places are odd, too.
    var disk: [UInt8] = []
    for number in 0..<64 {
      disk += pattern(1_000 + 37 * number, seed: number)
      disk += zeroes(65_536 - (1_000 + 37 * number))
    }
    try Data(disk).write(to: URL(fileURLWithPath: folder.path("raw")))
    try folder.qemu("qemu-img convert -c -f raw -O qcow2 @raw @disk")
    let bench = try ImageBench(folder, "disk")
    let table = try bench.word(at: try bench.word(at: 40)) & 0x00ff_ffff_ffff_fe00
    let entries = try (0..<64).map { try bench.word(at: table + $0 * 8) }
    #expect(entries.contains { $0 >> 62 & 1 == 1 && $0 & 1 == 1 })
    #expect(try bench.read(0, disk.count) == disk)
  }

  /// The header's cluster, but the fields that a larger disk changes: its size and L1 table.
  private func header(_ bench: ImageBench) throws -> [UInt8] {
    let bytes = try bench.bytes(at: 0, 65_536)
    return Array(bytes[..<24]) + Array(bytes[32..<36]) + Array(bytes[48...])
  }

  @Test(arguments: ["compression_type=zstd", "compat=0.10", "lazy_refcounts=on"])
  func `7, 14, 15: a larger disk changes no other field of the header`(_ options: String) throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(options: options)
    let bench = try ImageBench(folder, "disk")
    let before = try header(bench)
    try bench.write(pattern(512), 0)
    #expect(try bench.call(.resize, 2 << 40, 0) == .none)
    try bench.settle()
    #expect(try bench.word(at: 24) == 2 << 40)
    #expect(try header(bench) == before)
    #expect(try bench.check().isClean)
  }

  @Test func `9: a relative backing file is sought beside the image`() throws {
    let folder = try TemporaryFolder()
    try folder.makeRaw("base", byteCount: 65_536)
    try folder.qemu("qemu-img create -q -f qcow2 -u -b base -F raw @disk 64k")
    #expect(FileManager.default.currentDirectoryPath != folder.root)
    let bench = try ImageBench(folder, "disk")
    #expect(try bench.read(0, 65_536) == pattern(65_536))
  }

  @Test func `10: what a shorter backing file does not have reads as zeroes`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(baseByteCount: 100_000, byteCount: 262_144)
    let bench = try ImageBench(folder, "disk")
    let expected = pattern(100_000) + zeroes(162_144)
    #expect(try bench.read(0, 262_144) == expected)
    // Also where a write fills the rest of its cluster from below.
    try bench.write([7], 131_000)
    #expect(try bench.read(65_536, 131_072)[..<65_464] == expected[65_536..<131_000])
  }

  @Test func `11: counts are rebuilt for the file, not for the disk that it claims`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 -o cluster_size=2M @disk 1P")
    try folder.qemuIO("disk", "write -P 1 0 64k", "write -P 2 1000T 64k")
    let path = folder.path("disk")
    let file = try ImageFile(opening: path, access: .readWrite)
    // The refcount table is lost.
    let place = try file.read(at: 48, byteCount: 8).reduce(0) { $0 << 8 | UInt64($1) }
    try file.write(zeroes(4_096), at: place)
    var options = Check.Options()
    options.format = .qcow2
    options.repair = .all
    options.takesLocks = false
    let outcome = try Check.run(path: path, options: options) { _ in }
    #expect(outcome.exitCode == 0)
    #expect(try #require(try file.allocatedByteCount()) < 64 << 20)
    #expect(try CheckedImage(path).isClean)
    try folder.qemuIO("disk", "read -P 1 0 64k", "read -P 2 1000T 64k")
  }

  @Test func `16: requests of any offset pass where the disk wants whole blocks`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay()
    let bench = try ImageBench(folder, "disk", engine: .aio)
    var disk = pattern(1 << 20)
    for (number, offset) in [1, 511, 513, 4_095, 65_535, 200_001].enumerated() {
      let data = pattern(offset % 5_000 + 1, seed: number + 1)
      #expect(try bench.write(data, UInt64(offset)) == .none)
      disk.replaceSubrange(offset..<(offset + data.count), with: data)
      #expect(try bench.read(UInt64(offset) + 1, 77) == Array(disk[(offset + 1)..<(offset + 78)]))
    }
    #expect(try bench.call(.writeZeroes, 300_001, 999) == .none)
    disk.replaceSubrange(300_001..<301_000, with: zeroes(999))
    #expect(try bench.read(0, 1 << 20) == disk)
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  @Test func `17: no read or write moves a place that another one shares`() throws {
    let bench = try overlay()
    let flush = try bench.start(.flush, 0, 0)
    let slots = try (0..<32).map { try bench.start(write: [UInt8($0)], UInt64($0) * 30_001) }
    for slot in slots { #expect(try bench.finish(slot) == .none) }
    _ = try bench.finish(flush)
    try bench.settle()
    for layer in 0..<2 {
      #expect(lseek(bench.image.storages[layer].file.descriptor, 0, SEEK_CUR) == 0)
    }
  }

  @Test func `18: flags are read beside the command, not as a part of it`() throws {
    // Magic, FUA, WRITE, cookie, offset, length (proto.md, "Request message").
    var bytes: [UInt8] = [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1]
    bytes += [UInt8](repeating: 7, count: 8) + [UInt8](repeating: 0, count: 8) + [0, 0, 2, 0]
    let decoded = RequestHeader(decoding: bytes.span.bytes, at: 0)
    let header = try #require(decoded)
    #expect(header.command == Command.write.rawValue)
    #expect(header.flags == .fua)
    #expect(header.length == 512)
  }

  @Test func `19: a read that begins after a write's answer sees it on a busy disk`()
    throws
  {
    let bench = try overlay()
    for round in 0..<40 {
      let byte = UInt8(round + 1)
      let place = UInt64(round % 7) * 40_000
      var others = try (0..<16).map { number in
        try number % 3 == 0
          ? bench.start(write: [byte], 600_000 + UInt64(number) * 999)
          : bench.start(.read, UInt64(number) * 30_000, 65_536)
      }
      #expect(try bench.write([UInt8](repeating: byte, count: 5_000), place) == .none)
      others.removeAll { bench.outcome($0)?.error == BlockErrno.none }
      #expect(try bench.read(place, 5_000) == [UInt8](repeating: byte, count: 5_000))
      for slot in others { #expect(try bench.finish(slot) == .none) }
    }
  }

  @Test func `20: writes that are joined keep each other's bytes`() throws {
    let bench = try overlay()
    var disk = pattern(1 << 20)
    for round in 0..<12 {
      let slots = try (0..<64).map { number in
        let offset = (number * 7_919 + round * 131) % 190_000
        let data = [UInt8(truncatingIfNeeded: round * 64 + number)]
        disk[offset] = data[0]
        return try bench.start(write: data, UInt64(offset))
      }
      for slot in slots { #expect(try bench.finish(slot) == .none) }
    }
    #expect(try bench.read(0, 1 << 20) == disk)
    try bench.settle()
    #expect(try bench.check().isClean)
  }
}
