// SPDX-License-Identifier: Apache-2.0
//
// Snapshots of a disk that is served: the image stands still, its file is changed, and requests go
// on. QEMU reads what came of it. Source: decision 0031; qcow2.rst, "Snapshots".

import BlockTypes
import Foundation
import LinuxIO
import NBDProtocol
import TestSupport
import Testing

@testable import DataPlane

private let mebibyte = 1 << 20
private let diskByteCount = 4 * mebibyte

extension ImageBench {
  fileprivate convenience init(
    _ options: String, _ engine: ExportPlan.Engine = .sync, cacheByteCount: Int = 1 << 20
  ) throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 -o \(options) @disk 4M")
    try self.init(folder, "disk", engine: engine, cacheByteCount: cacheByteCount)
  }

  /// The disk of a snapshot, as QEMU reads it from a copy of the file.
  fileprivate func disk(ofSnapshot name: String) throws -> [UInt8] {
    let verdict = try check()
    guard verdict.isClean else { throw BenchError(verdict.text) }
    try folder.qemu("qemu-img convert -f qcow2 -O raw -l \(name) @copy @snapshot")
    return [UInt8](try Data(contentsOf: URL(fileURLWithPath: folder.path("snapshot"))))
  }
}

@Suite struct `A snapshot of a disk that is served` {
  static let formats = [
    "cluster_size=65536", "cluster_size=512", "cluster_size=4096,refcount_bits=2",
    "cluster_size=16384,extended_l2=on", "cluster_size=65536,compat=0.10",
    "cluster_size=4096,lazy_refcounts=on", "cluster_size=2M,refcount_bits=64",
  ]

  @Test(arguments: formats, [ExportPlan.Engine.sync, .aio])
  func `has what was answered before it and nothing of what came later`(
    options: String, engine: ExportPlan.Engine
  ) throws {
    let bench = try ImageBench(options, engine)
    let end = diskByteCount - 200_000
    var disk = zeroes(diskByteCount)
    func write(_ count: Int, _ seed: Int, at offset: Int) throws {
      let data = pattern(count, seed: seed)
      #expect(try bench.write(data, UInt64(offset)) == .none)
      disk.replaceSubrange(offset..<(offset + count), with: data)
    }
    try write(mebibyte, 1, at: 0)
    try write(200_000, 2, at: end)
    #expect(try bench.snapshot("one") == "1")
    let one = disk
    try write(300_000, 3, at: 100_000)
    try write(100_000, 4, at: 2 * mebibyte)
    #expect(try bench.call(.trim, 0, 65_536) == .none)
    disk.replaceSubrange(0..<65_536, with: try bench.read(0, 65_536))
    #expect(try bench.snapshot("two") == "2")
    let two = disk
    try write(5_000, 5, at: 101_000)
    #expect(try bench.call(.writeZeroes, UInt64(end), 100_000) == .none)
    disk.replaceSubrange(end..<(end + 100_000), with: zeroes(100_000))
    #expect(try bench.read(0, diskByteCount) == disk)
    try bench.settle()
    #expect(try bench.disk(ofSnapshot: "one") == one)
    #expect(try bench.disk(ofSnapshot: "two") == two)
    try bench.deleteSnapshot("one")
    try write(70_000, 6, at: 200_000)
    #expect(try bench.read(0, diskByteCount) == disk)
    try bench.settle()
    #expect(try bench.disk(ofSnapshot: "two") == two)
    try bench.deleteSnapshot("two")
    try write(70_000, 7, at: 300_000)
    #expect(try bench.read(0, diskByteCount) == disk)
    try bench.settle()
    let verdict = try bench.check()
    #expect(verdict.isClean, "\(verdict.text)")
  }

  /// The file is complete when the verb is answered: nobody flushes behind it.
  @Test func `is durable and clean when it is answered`() throws {
    let bench = try ImageBench("cluster_size=4096")
    try bench.write(pattern(300_000), 0)
    try bench.snapshot("now")
    #expect(!bench.hasDirtyTables && !bench.hasUnsyncedWrites)
    #expect(try bench.disk(ofSnapshot: "now")[..<300_000] == pattern(300_000)[...])
  }

  @Test(arguments: [ExportPlan.Engine.sync, .aio])
  func `has all of the requests that had begun, and none that had not`(
    engine: ExportPlan.Engine
  ) throws {
    let bench = try ImageBench("cluster_size=4096", engine)
    try bench.write(pattern(diskByteCount / 2, seed: 9), 0)
    // A flush in the midst of them, and two rounds of work on some.
    let before = try (0..<64).map { try bench.start(write: pattern(20_000, seed: $0), place($0)) }
    let flush = try bench.start(.flush, 0, 0)
    bench.step()
    try bench.startSnapshot("mid")
    bench.step()
    let after = try (0..<64).map {
      try bench.start(write: pattern(20_000, seed: 100 + $0), place($0))
    }
    let lateFlush = try bench.start(.flush, 0, 0)
    for slot in after { #expect(bench.image.requests.slots[slot].stage == .held) }
    try bench.finishEdit()
    for slot in before + [flush] { #expect(bench.outcome(slot)?.error == BlockErrno.none) }
    for slot in after + [lateFlush] { #expect(try bench.finish(slot) == .none) }
    try bench.settle()
    let disk = try bench.disk(ofSnapshot: "mid")
    for number in 0..<64 {
      let start = Int(place(number))
      #expect(disk[start..<(start + 20_000)] == pattern(20_000, seed: number)[...])
      #expect(try bench.read(place(number), 20_000) == pattern(20_000, seed: 100 + number))
    }
  }

  private func place(_ number: Int) -> UInt64 { UInt64(number * 60_000 + 700) }

  /// What was freed and not yet given back is counted until the export has gone on.
  @Test(arguments: ["cluster_size=65536", "cluster_size=512,refcount_bits=8"])
  func `leaves nothing behind of clusters that were being released`(options: String) throws {
    let bench = try ImageBench(options)
    for round in 0..<4 {
      try bench.write(pattern(500_000, seed: round), 0)
      try bench.write(pattern(500_000, seed: round), UInt64(mebibyte))
      let trim = try bench.start(.trim, 0, 400_000)
      let flush = try bench.start(.flush, 0, 0)
      bench.step()
      try bench.snapshot("r\(round)")
      #expect(try bench.finish(trim) == .none)
      #expect(try bench.finish(flush) == .none)
      let second = try bench.start(.trim, UInt64(mebibyte), 400_000)
      bench.step()
      if round > 1 { try bench.deleteSnapshot("r\(round - 1)") }
      #expect(try bench.finish(second) == .none)
    }
    try bench.settle()
    let verdict = try bench.check()
    #expect(verdict.isClean, "\(verdict.text)")
  }

  /// A small cache, so that tables come and go; each write finds the table as the file has it.
  @Test func `lets no cached table forget that its clusters are shared`() throws {
    let bench = try ImageBench("cluster_size=512", cacheByteCount: 256 << 12)
    try bench.write(pattern(diskByteCount), 0)
    var host = try bench.host(of: 4_096)
    for number in 0..<3 {
      try bench.snapshot("s\(number)")
      try bench.write(pattern(512, seed: number), 4_096)
      let other = try bench.host(of: 4_096)
      #expect(other != host, "snapshot \(number) shares the cluster that was overwritten")
      host = other
      try bench.write(pattern(512, seed: number + 50), 4_096)
      #expect(try bench.host(of: 4_096) == host)
    }
    for number in 0..<3 { try bench.deleteSnapshot("s\(number)") }
    try bench.write(pattern(512, seed: 99), 4_096)
    #expect(try bench.host(of: 4_096) == host, "a cluster of its own was copied")
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  @Test(arguments: [ExportPlan.Engine.sync, .aio])
  func `shares packed clusters, and what is packed later lies behind them`(
    engine: ExportPlan.Engine
  ) throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 @disk 4M")
    let bench = try ImageBench(folder, "disk", engine: engine, packsWrites: true)
    func text(_ seed: UInt8) -> [UInt8] { (0..<65_536).map { seed ^ UInt8($0 / 1_024) } }
    for number in 0..<4 { try bench.write(text(UInt8(number)), UInt64(number) << 16) }
    try bench.snapshot("one")
    for number in 2..<6 { try bench.write(text(UInt8(number + 9)), UInt64(number) << 16) }
    try bench.settle()
    let disk = try bench.disk(ofSnapshot: "one")
    for number in 0..<4 {
      #expect(disk[number << 16..<(number + 1) << 16] == text(UInt8(number))[...])
    }
    try bench.deleteSnapshot("one")
    try bench.write(text(77), 6 << 16)
    try bench.settle()
    #expect(try bench.check().isClean)
    #expect(try bench.read(2 << 16, 65_536) == text(11))
    #expect(try bench.read(0, 65_536) == text(0))
  }

  @Test func `is followed by a larger disk, and keeps its size`() throws {
    let bench = try ImageBench("cluster_size=4096")
    try bench.write(pattern(mebibyte), 0)
    try bench.snapshot("small")
    #expect(try bench.call(.resize, 5 << 30, 0) == .none)
    try bench.write(pattern(50_000, seed: 1), 4 << 30)
    try bench.snapshot("large")
    try bench.write(pattern(50_000, seed: 2), 4 << 30)
    try bench.deleteSnapshot("small")
    #expect(try bench.read(4 << 30, 50_000) == pattern(50_000, seed: 2))
    try bench.settle()
    #expect(try bench.check().isClean)
    let old = try ImageBench("compat=0.10")
    try old.snapshot("small")
    #expect(try old.call(.resize, 5 << 30, 0) == .notSupported)
  }
}

@Suite struct `A change of the file for which a disk stands still` {
  @Test func `that is refused leaves all as it was`() throws {
    let bench = try ImageBench("cluster_size=4096,refcount_bits=1")
    try bench.write(pattern(100_000), 0)
    #expect(throws: BenchError.self) { try bench.snapshot("narrow") }
    #expect(throws: BenchError.self) { try bench.deleteSnapshot("none") }
    #expect(try bench.write(pattern(100_000, seed: 1), 50_000) == .none)
    #expect(try bench.flush() == .none)
    try bench.settle()
    #expect(try bench.check().isClean)
  }

  @Test func `waits for what is in flight, and what comes waits for it`() throws {
    let bench = try ImageBench("cluster_size=65536")
    let began = DispatchSemaphore(value: 0)
    let mayEnd = DispatchSemaphore(value: 0)
    try bench.write(pattern(9), 0)
    try bench.startEdit { _ in
      began.signal()
      mayEnd.wait()
      return .done("")
    }
    try bench.until { began.wait(timeout: .now()) == .success }
    let read = try bench.start(.read, 0, 9)
    let flush = try bench.start(.flush, 0, 0)
    for _ in 0..<20 { bench.step() }
    #expect(bench.outcome(read) == nil && bench.outcome(flush) == nil)
    #expect(bench.image.disks.inFlightCount == 0)
    mayEnd.signal()
    try bench.finishEdit()
    #expect(try bench.finishReading(read).data == pattern(9))
    #expect(try bench.finish(flush) == .none)
  }

  // fsync(2): what a failed synchronisation dropped is unknown, so no flush may succeed behind it.
  @Test func `that may have lost writes lets no flush succeed any more`() throws {
    let bench = try ImageBench("cluster_size=65536")
    try bench.write(pattern(9), 0)
    try bench.startEdit { _ in .failed("fdatasync: EIO", losesWrites: true) }
    #expect(throws: BenchError.self) { try bench.finishEdit() }
    #expect(try bench.flush() == .io)
    #expect(try bench.read(0, 9) == pattern(9))
  }

  @Test func `whose tables cannot be read again is followed by no allocation`() throws {
    let bench = try ImageBench("cluster_size=65536")
    try bench.write(pattern(65_536), 0)
    try bench.startEdit { storage in
      // Nobody would: the header is gone.
      do { try storage.file.write([0], at: 0) } catch { return .failed("\(error)") }
      return .done("")
    }
    try bench.finishEdit()
    #expect(try bench.write(pattern(9), UInt64(mebibyte)) == .io)
    #expect(try bench.read(0, 65_536) == pattern(65_536))
    #expect(try bench.bytes(at: 1, 3) == Array("FI\u{fb}".unicodeScalars.map { UInt8($0.value) }))
  }

  /// Bytes that nothing counts yet are cut off first, as at the end of a session: a table that is
  /// put behind the end of the file lies behind its content.
  @Test func `finds the file as long as its content`() throws {
    let bench = try ImageBench("cluster_size=4096")
    try bench.write(pattern(50_000), 0)
    let grown = try bench.fileByteCount()
    try bench.snapshot("one")
    #expect(try bench.fileByteCount() < grown)
    try bench.write(pattern(50_000, seed: 1), 0)
    try bench.settle()
    #expect(try bench.check().isClean)
  }
}
