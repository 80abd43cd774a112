// SPDX-License-Identifier: Apache-2.0
//
// Disks that grow while they are served. Spec: proto.md of the branch extension-resize,
// "NBD_CMD_RESIZE"; qcow2.rst, "Header".

import Bitmaps
import BlockTypes
import Foundation
import LinuxIO
import NBDProtocol
import TestSupport
import Testing

@testable import DataPlane

private let mebibyte: UInt64 = 1 << 20

extension ImageBench {
  fileprivate convenience init(
    _ size: String, _ options: String, _ format: ImageFormat = .qcow2, base: Int? = nil
  ) throws {
    let folder = try TemporaryFolder()
    if let base {
      try folder.makeOverlay(
        baseByteCount: base, byteCount: Int(size) ?? 0, options: options)
    } else if format == .raw {
      try folder.qemu("qemu-img create -q -f raw @disk \(size)")
    } else {
      try folder.qemu("qemu-img create -q -f qcow2 -o \(options) @disk \(size)")
    }
    try self.init(folder, "disk", format: format)
  }

  fileprivate func resize(to byteCount: UInt64) throws -> BlockErrno {
    try call(.resize, byteCount, 0)
  }

  /// The size that QEMU finds in a file.
  fileprivate func sizeForQEMU(_ name: String = "disk") throws -> UInt64? {
    struct Info: Decodable {
      let size: UInt64
      enum CodingKeys: String, CodingKey { case size = "virtual-size" }
    }
    let text = try run("qemu-img", "info", "-U", "--output=json", folder.path(name))
    return try JSONDecoder().decode(Info.self, from: Data(text.utf8)).size
  }
}

private func expectClean(_ bench: ImageBench) throws {
  let verdict = try bench.check()
  #expect(verdict.isClean, "\(verdict.text)")
}

@Suite struct `A disk that grows` {
  /// In clusters of 4 KiB one cluster of the L1 table covers 1 GiB.
  @Test(arguments: [
    ("cluster_size=65536", 64 * mebibyte), ("cluster_size=4096", 64 * mebibyte),
    ("cluster_size=4096", 5_000 * mebibyte), ("cluster_size=512", 300 * mebibyte),
    ("cluster_size=65536,compat=0.10", 1 << 43), ("cluster_size=2M,refcount_bits=1", 1 << 50),
    // Tables that are longer than what a refcount block counts.
    ("cluster_size=512", 2_048 * mebibyte), ("cluster_size=512,refcount_bits=64", 1_024 * mebibyte),
    ("cluster_size=512,refcount_bits=1", 100 << 30), ("cluster_size=2048", 1 << 40),
  ])
  func `keeps what it has, reads as zeroes behind it, and can be written to its end`(
    options: String, newByteCount: UInt64
  ) throws {
    let bench = try ImageBench("16M", options)
    try bench.write(pattern(300_000), 16 * mebibyte - 300_000)
    #expect(try bench.resize(to: newByteCount) == .none)
    #expect(try bench.sizeForQEMU() == newByteCount)
    #expect(try bench.read(16 * mebibyte - 300_000, 300_000) == pattern(300_000))
    #expect(try bench.read(16 * mebibyte, 70_000) == zeroes(70_000))
    #expect(try bench.write(pattern(100_000, seed: 2), newByteCount - 100_000) == .none)
    try bench.settle()
    try expectClean(bench)
    let last = newByteCount - 100_000
    try bench.folder.qemuIO("copy", "read -P 0 16M 1M")
    let reopened = try ImageBench(bench.folder, "copy", isReadOnly: true)
    #expect(try reopened.read(last, 100_000) == pattern(100_000, seed: 2))
    #expect(try reopened.read(16 * mebibyte - 300_000, 300_000) == pattern(300_000))
  }

  /// What a cut leaves is the old disk or the new one; the file holds what was written so far, in
  /// the order of writing.
  @Test(arguments: [
    ("cluster_size=4096", 2_500 * mebibyte), ("cluster_size=512", 40 * mebibyte),
    ("cluster_size=512,refcount_bits=64", 200 * mebibyte),
  ])
  func `is whole in its file at each step of the way`(
    options: String, newByteCount: UInt64
  ) throws {
    let bench = try ImageBench("8M", options)
    try bench.write(pattern(100_000), mebibyte)
    let slot = try bench.start(.resize, newByteCount, 0)
    var sizes: [UInt64?] = []
    var isOver = false
    while !isOver {
      bench.step()
      let verdict = try bench.check()
      #expect(verdict.hasOnlyLeaks, "\(verdict.text)")
      sizes.append(try bench.sizeForQEMU("copy"))
      if let outcome = bench.outcome(slot) {
        #expect(outcome.error == .none)
        isOver = true
      }
      try #require(sizes.count < 500)
    }
    #expect(Set(sizes) == [8 * mebibyte, newByteCount])
    #expect(sizes.last == newByteCount)
    #expect(try bench.read(mebibyte, 100_000) == pattern(100_000))
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  @Test func `finds room for its table behind holes that are too short`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 -o cluster_size=512 @disk 1M")
    try folder.qemuIO("disk", "write -P 7 0 1M")
    do {
      let bench = try ImageBench(folder, "disk")
      for start in stride(from: UInt64(0), to: mebibyte, by: 1_024) {
        #expect(try bench.call(.trim, start, 512) == .none)
      }
      try bench.settle()
    }
    let bench = try ImageBench(folder, "disk")
    #expect(try bench.resize(to: 64 * mebibyte) == .none)
    #expect(try bench.read(512, 512) == [UInt8](repeating: 7, count: 512))
  }

  @Test func `shows nothing of a larger base`() throws {
    let bench = try ImageBench("\(mebibyte - 1_024)", "cluster_size=65536", base: 3 << 20)
    #expect(try bench.resize(to: 4 * mebibyte) == .none)
    let start = Int(mebibyte) - 1_024
    #expect(try bench.read(0, start) == Array(pattern(3 << 20)[..<start]))
    #expect(try bench.read(UInt64(start), 3 << 20) == zeroes(3 << 20))
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  /// A disk that QEMU made smaller leaves the end of its last cluster as it was.
  @Test func `shows nothing of what its last cluster held`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 @disk 128k")
    try folder.qemuIO("disk", "write -P 7 0 128k")
    try folder.qemu("qemu-img resize -q --shrink @disk 100k")
    let bench = try ImageBench(folder, "disk")
    #expect(try bench.resize(to: 256 << 10) == .none)
    #expect(try bench.read(0, 100 << 10) == [UInt8](repeating: 7, count: 100 << 10))
    #expect(try bench.read(100 << 10, 156 << 10) == zeroes(156 << 10))
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  @Test func `leaves its snapshots as large as they were, where they can tell`() throws {
    for (options, error) in [("compat=1.1", BlockErrno.none), ("compat=0.10", .notSupported)] {
      let folder = try TemporaryFolder()
      try folder.qemu("qemu-img create -q -f qcow2 -o cluster_size=4096,\(options) @disk 8M")
      try folder.qemuIO("disk", "write -P 7 1M 1M")
      try folder.qemu("qemu-img snapshot -c old @disk")
      let bench = try ImageBench(folder, "disk")
      #expect(try bench.resize(to: 3 << 30) == error)
      try bench.write(pattern(5_000), mebibyte)
      try bench.settle()
      try expectClean(bench)
      try folder.qemu("qemu-img snapshot -a old @copy")
      #expect(try bench.sizeForQEMU("copy") == 8 * mebibyte)
      try folder.qemuIO("copy", "read -P 7 1M 1M")
    }
  }

  @Test func `grows as a raw file does`() throws {
    let bench = try ImageBench("1M", "", .raw)
    try bench.write(pattern(512), mebibyte - 512)
    #expect(try bench.resize(to: 3 * mebibyte) == .none)
    #expect(try bench.fileByteCount() == 3 * mebibyte)
    #expect(try bench.read(mebibyte - 512, 1_024) == pattern(512) + zeroes(512))
    #expect(try bench.write(pattern(512, seed: 3), 3 * mebibyte - 512) == .none)
    #expect(try bench.read(3 * mebibyte - 512, 512) == pattern(512, seed: 3))
  }

  @Test func `takes its dirty bitmaps along, clean behind the old end`() throws {
    let bench = try ImageBench("1M", "cluster_size=65536")
    try bench.image.changeBitmaps([
      .add(name: "a", granularityByteCount: 65_536, isEnabled: true)
    ]) { _ in nil }
    try bench.write([1], mebibyte - 1)
    #expect(try bench.resize(to: 3 * mebibyte) == .none)
    try bench.write([1], 3 * mebibyte - 1)
    let bitmap = try #require(bench.image.bitmaps.all.first?.shown)
    #expect(bitmap.nextDirtyRun(from: 0) == ByteRange(start: 15 << 16, end: mebibyte))
    #expect(bitmap.nextDirtyRun(from: mebibyte) == ByteRange(start: 47 << 16, end: 48 << 16))
  }

  @Test(arguments: [ImageFormat.raw, .qcow2])
  func `never shrinks, nor grows to what is no disk`(format: ImageFormat) throws {
    let bench = try ImageBench("1M", "cluster_size=65536", format)
    #expect(try bench.resize(to: mebibyte) == .none)
    #expect(try bench.resize(to: mebibyte - 512) == .readOnly)
    #expect(try bench.resize(to: mebibyte + 100) == .invalid)
    if format == .qcow2 {
      #expect(try bench.resize(to: 1 << 62) == .noSpace)
      let small = try ImageBench("1M", "cluster_size=512")
      // An L1 table has 32 MiB at most.
      #expect(try small.resize(to: 128 << 30 + 512) == .noSpace)
      #expect(try small.resize(to: 128 << 30) == .none)
    }
    #expect(try bench.resize(to: 2 * mebibyte) == .none)
  }

  @Test func `waits for a zeroing up to its old end, and for none behind it`() throws {
    let bench = try ImageBench("\(mebibyte - 1_024)", "cluster_size=65536", base: 1 << 20)
    try bench.write(pattern(4_096), mebibyte - 65_536)
    let zeroing = try bench.start(.writeZeroes, mebibyte - 65_536, 65_536 - 1_024)
    let growing = try bench.start(.resize, 2 * mebibyte, 0)
    #expect(try bench.finish(growing) == .none)
    #expect(bench.outcome(zeroing)?.error == BlockErrno.none)
    #expect(try bench.read(mebibyte - 65_536, 65_536) == zeroes(65_536))
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  /// Two at once, amid writes that allocate clusters and tables: 16 lanes of 64 writes.
  @Test(arguments: ["cluster_size=512", "cluster_size=4096", "cluster_size=65536"])
  func `goes on serving meanwhile`(options: String) throws {
    let bench = try ImageBench("32M", options)
    var model = zeroes(32 << 20)
    var slots: [Int] = []
    for round in 1...4 {
      for number in 0..<64 {
        let offset = (number * 7_919 * 4_096 + round * 1_024) % (32 << 20 - 8_192)
        let data = pattern(3_000, seed: round * 64 + number)
        slots.append(try bench.start(write: data, UInt64(offset)))
        // Overlapping writes may end in any order; these do not overlap within a round.
        model.replaceSubrange(offset..<offset + data.count, with: data)
      }
      slots.append(try bench.start(.resize, UInt64(32 + round * 40) * mebibyte, 0))
      slots.append(try bench.start(.resize, UInt64(33 + round * 40) * mebibyte, 0))
      slots.append(try bench.start(.flush, 0, 0))
      for slot in slots { #expect(try bench.finish(slot) == .none) }
      slots = []
    }
    try bench.settle()
    try expectClean(bench)
    #expect(try bench.sizeForQEMU() == 193 * mebibyte)
    #expect(try bench.read(0, 32 << 20) == model)
  }
}
