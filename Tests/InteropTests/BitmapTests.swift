// SPDX-License-Identifier: Apache-2.0
//
// Dirty bitmaps as the clients of QEMU and libnbd see them, and the same ones as QEMU records them.
// Sources: QEMU docs/interop/bitmaps.rst, docs/interop/nbd.rst; nbdinfo(1).
// This file starts servers and clients.

import Foundation
import TestSupport
import Testing

private let diskByteCount = 8 << 20
private let context = "qemu:dirty-bitmap:b0"

/// A request that changes a disk, in qemu-io's words.
private struct Change: CustomStringConvertible {
  let description: String

  /// Anything that a guest may send: mostly short, unaligned, now and then a large one.
  init(_ random: inout some RandomNumberGenerator, _ number: Int) {
    let longest = Int.random(in: 0..<8, using: &random) == 0 ? 1 << 20 : 70_000
    let offset = Int.random(in: 0..<diskByteCount - 1, using: &random)
    let length = Int.random(in: 1...min(longest, diskByteCount - offset), using: &random)
    description =
      switch Int.random(in: 0..<5, using: &random) {
      case 0: "discard \(offset) \(length)"
      case 1: "write -z \(offset) \(length)"
      case 2: "write -z -u \(offset) \(length)"
      default: "write -P \(number % 255 + 1) \(offset) \(length)"
      }
  }

  static func random(seed: UInt64, count: Int) -> [Change] {
    var random = SeededGenerator(state: seed)
    return (0..<count).map { Change(&random, $0) }
  }
}

private struct SeededGenerator: RandomNumberGenerator {
  var state: UInt64
  mutating func next() -> UInt64 {
    state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
    return (state ^ state >> 29) &* 0xbf58_476d_1ce4_e5b9
  }
}

/// A disk that stratad serves with a bitmap.
private final class RecordedDisk {
  let folder: TemporaryFolder
  let daemon: Daemon

  init(_ format: String = "qcow2", _ arguments: [String] = ["--bitmap", "b0"]) throws {
    folder = try TemporaryFolder()
    try run("qemu-img", "create", "-q", "-f", format, folder.path("disk"), "\(diskByteCount)")
    daemon = try Daemon(
      daemonPath(),
      [
        folder.path("disk"), "--format", format, "--socket", folder.path("s"), "--control",
        folder.path("c"),
      ] + arguments, socketPath: folder.path("s"))
  }

  func bitmap(_ words: String...) throws {
    let strata = URL(fileURLWithPath: try daemonPath()).deletingLastPathComponent().path + "/strata"
    try runTool(strata, ["bitmap"] + words)
  }

  /// The option string by which QEMU's client sees the bitmap in place of the allocation.
  var dirtyOptions: String {
    "driver=nbd,server.type=unix,server.path=\(daemon.socketPath),x-dirty-bitmap=\(context)"
  }

  /// The dirty ranges as QEMU's client sees them: for it, dirty blocks are no data.
  func dirtyRanges() throws -> [Range<Int>] {
    struct Run: Decodable {
      let start: Int
      let length: Int
      let data: Bool
    }
    let text = try run("qemu-img", "map", "--output=json", "--image-opts", dirtyOptions)
    return try JSONDecoder().decode([Run].self, from: Data(text.utf8)).filter { !$0.data }
      .map { $0.start..<$0.start + $0.length }
  }
}

private func change(_ uri: String, _ changes: [Change]) throws {
  let commands = changes.flatMap { ["-c", $0.description] }
  let text = try runTool("qemu-io", ["-f", "raw", "-d", "unmap"] + commands + [uri])
  guard !text.contains("failed") else { throw WireError.violation(text) }
}

@Suite struct `A dirty bitmap that is served` {
  @Test func `is a map for nbdinfo`() throws {
    let disk = try RecordedDisk()
    try run("qemu-io", "-f", "raw", "-c", "write 1M 1", "-c", "discard 3M 128k", disk.daemon.uri)
    let map = try run("nbdinfo", "--map=\(context)", disk.daemon.uri)
    let lines = map.split(separator: "\n").map { $0.split(separator: " ").joined(separator: " ") }
    #expect(
      lines == [
        "0 1048576 0 clean", "1048576 65536 1 dirty", "1114112 2031616 0 clean",
        "3145728 131072 1 dirty", "3276800 5111808 0 clean",
      ])
    let totals = try run("nbdinfo", "--map=\(context)", "--totals", disk.daemon.uri)
    #expect(totals.contains("196608"), Comment(rawValue: totals))
    #expect(try run("nbdinfo", "--list", disk.daemon.uri).contains(context))
    #expect(disk.daemon.stop() == 0)
  }

  @Test func `is absent for QEMU when there is none of that name`() throws {
    let disk = try RecordedDisk("raw", ["--bitmap", "other"])
    #expect(throws: (any Error).self) {
      try run("qemu-img", "map", "--image-opts", disk.dirtyOptions)
    }
    #expect(disk.daemon.stop() == 0)
  }

  /// Freeze, copy what is dirty, thaw: two rounds, and then the copy is the disk.
  @Test func `is enough for an incremental backup by QEMU's client`() throws {
    let disk = try RecordedDisk()
    let uri = disk.daemon.uri
    let target = disk.folder.path("backup")
    try change(uri, Change.random(seed: 1, count: 20))
    try disk.bitmap("clear", disk.folder.path("c"), "b0")
    try run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, target)
    for round in UInt64(2)...3 {
      try change(uri, Change.random(seed: round, count: 12))
      try disk.bitmap("freeze", disk.folder.path("c"), "b0")
      let ranges = try disk.dirtyRanges()
      #expect(!ranges.isEmpty)
      for range in ranges {
        try run(
          "qemu-img", "dd", "-f", "raw", "-O", "raw", "bs=512",
          "skip=\(range.lowerBound / 512)", "count=\(range.upperBound / 512)", "if=\(uri)",
          "of=\(disk.folder.path("piece"))")
        try run(
          "dd", "if=\(disk.folder.path("piece"))", "of=\(target)", "bs=512",
          "seek=\(range.lowerBound / 512)", "conv=notrunc", "status=none")
      }
      try disk.bitmap("thaw", "--done", disk.folder.path("c"), "b0")
      try run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, target)
    }
    #expect(try disk.dirtyRanges().isEmpty)
    #expect(disk.daemon.stop() == 0)
  }

  @Test(arguments: ["raw", "qcow2"], [512, 4_096, 65_536, 2 << 20])
  func `is what QEMU records of the same requests`(format: String, granularity: Int) throws {
    let disk = try RecordedDisk(format, ["--bitmap", "b0:\(granularity)"])
    let other = disk.folder.path("qemu")
    let socket = disk.folder.path("qs")
    try run("qemu-img", "create", "-q", "-f", "qcow2", other, "\(diskByteCount)")
    try run("qemu-img", "bitmap", "--add", "-g", "\(granularity)", other, "b0")
    let qemu = try Daemon(
      requireTool("qemu-nbd"),
      [
        "-f", "qcow2", "-B", "b0", "-k", socket, "--persistent", "--discard=unmap", "-e", "4",
        "--detect-zeroes=off", other,
      ], socketPath: socket, readiness: .socketAnswers)
    for seed in UInt64(1)...3 {
      let changes = Change.random(seed: seed * 100 + UInt64(granularity), count: 15)
      try change(disk.daemon.uri, changes)
      try change(qemu.uri, changes)
      let ours = try run("nbdinfo", "--map=\(context)", disk.daemon.uri)
      let theirs = try run("nbdinfo", "--map=\(context)", qemu.uri)
      #expect(ours == theirs, "seed \(seed): \(changes)")
    }
    #expect(disk.daemon.stop() == 0)
    qemu.stop()
  }
}
