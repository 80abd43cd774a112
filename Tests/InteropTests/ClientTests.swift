// SPDX-License-Identifier: Apache-2.0
//
// The clients that people use: nbdinfo, nbdcopy, qemu-io, qemu-img, fio. One overlay over a raw
// base for each test. This file starts servers and clients.

import Foundation
import TestSupport
import Testing

/// An overlay of 64 MiB over a raw base with data in its first half.
private final class Overlay {
  let folder: TemporaryFolder
  let daemon: Daemon
  static let byteCount = 64 << 20

  var image: String { folder.path("overlay.qcow2") }
  var base: String { folder.path("base.raw") }

  init(engine: String = "native", cluster: Int = 65_536) throws {
    folder = try TemporaryFolder()
    let base = folder.path("base.raw")
    let image = folder.path("overlay.qcow2")
    try run("qemu-img", "create", "-q", "-f", "raw", base, "\(Overlay.byteCount)")
    try run("qemu-io", "-f", "raw", "-c", "write -P 0x5a 0 32M", base)
    try run(
      strataPath(), "create", "-f", "qcow2", "-b", base, "-F", "raw", "-o",
      "cluster_size=\(cluster)", image)
    let socket = folder.path("nbd.sock")
    daemon = try Daemon(
      daemonPath(), [image, "--socket", socket, "--aio", engine], socketPath: socket)
  }

  /// Ends the server and asks QEMU what it thinks of the image.
  func finish() throws {
    #expect(daemon.stop() == 0, Comment(rawValue: daemon.errorText))
    try run("qemu-img", "check", "-f", "qcow2", image)
  }
}

/// `strata` beside the daemon under test.
private func strataPath() throws -> String {
  URL(fileURLWithPath: try daemonPath()).deletingLastPathComponent().path + "/strata"
}

@Suite struct `nbdinfo` {
  @Test func `sees the size, the flags and both contexts`() throws {
    let overlay = try Overlay()
    let text = try run("nbdinfo", overlay.daemon.uri)
    for line in [
      "export-size: 67108864", "base:allocation", "qemu:allocation-depth", "can_multi_conn: true",
      "can_fast_zero: true", "is_read_only: false", "block_size_maximum: 33554432",
    ] {
      #expect(text.contains(line), Comment(rawValue: line))
    }
    try overlay.finish()
  }

  @Test func `lists the export by name and can open it by that name`() throws {
    let overlay = try Overlay()
    #expect(try run("nbdinfo", "--list", overlay.daemon.uri).contains("overlay.qcow2"))
    let named = "nbd+unix:///overlay.qcow2?socket=\(overlay.daemon.socketPath)"
    #expect(try run("nbdinfo", "--size", named) == "67108864\n")
    try overlay.finish()
  }

  @Test func `maps what is data, what is a hole and how deep it lies`() throws {
    let overlay = try Overlay()
    try run(
      "qemu-io", "-f", "raw", "-c", "write -P 1 1M 1M", "-c", "write -zu 4M 1M", overlay.daemon.uri)
    let depth = try run("nbdinfo", "--map=qemu:allocation-depth", overlay.daemon.uri)
    // A raw base has all of its bytes, so nothing is absent: 2 below, 1 in the overlay.
    #expect(
      numbers(depth) == [
        0, 1_048_576, 2, 1_048_576, 1_048_576, 1, 2_097_152, 2_097_152, 2,
        4_194_304, 1_048_576, 1, 5_242_880, 61_865_984, 2,
      ])
    let allocation = try run("nbdinfo", "--map", overlay.daemon.uri)
    #expect(
      numbers(allocation) == [
        0, 4_194_304, 0, 4_194_304, 1_048_576, 3, 5_242_880, 28_311_552, 0,
        33_554_432, 33_554_432, 3,
      ])
    try overlay.finish()
  }

  /// The first three numbers of each line.
  private func numbers(_ text: String) -> [Int] {
    text.split(separator: "\n").flatMap { line in
      line.split(separator: " ").prefix(3).compactMap { Int($0) }
    }
  }
}

@Suite struct `nbdcopy` {
  @Test(arguments: ["native", "sync"])
  func `copies out what the chain holds`(_ engine: String) throws {
    let overlay = try Overlay(engine: engine)
    try run("qemu-io", "-f", "raw", "-c", "write -P 7 12345 777777", overlay.daemon.uri)
    let target = overlay.folder.path("copy.raw")
    try run("nbdcopy", overlay.daemon.uri, target)
    try run("qemu-img", "compare", "-f", "raw", "-F", "raw", overlay.daemon.uri, target)
    try overlay.finish()
  }

  @Test(arguments: ["native", "sync"])
  func `copies in over several connections, and the image is clean`(_ engine: String) throws {
    let overlay = try Overlay(engine: engine)
    let source = overlay.folder.path("source.raw")
    try run("qemu-img", "create", "-q", "-f", "raw", source, "64M")
    try run(
      "qemu-io", "-f", "raw", "-c", "write -P 3 1M 20M", "-c", "write -P 4 50M 300k", source)
    try run("nbdcopy", "--connections=4", "--flush", source, overlay.daemon.uri)
    try overlay.finish()
    try run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, overlay.image)
  }
}

@Suite struct `fio` {
  @Test(arguments: ["native", "sync"], [4_096, 65_536])
  func `verifies what it wrote, at random and unaligned to clusters`(
    _ engine: String, _ cluster: Int
  ) throws {
    let overlay = try Overlay(engine: engine, cluster: cluster)
    let output = try runTool(
      "fio",
      [
        "--name=verify", "--ioengine=nbd", "--uri=\(overlay.daemon.uri)", "--rw=randwrite",
        "--bsrange=512-128k", "--blockalign=512", "--iodepth=16", "--size=24M", "--io_size=24M",
        "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_state_save=0",
        "--fsync=32", "--randseed=7",
        "--output=\(overlay.folder.path("fio.txt"))",
      ])
    #expect(!output.contains("verify:"), Comment(rawValue: output))
    try overlay.finish()
  }
}

@Suite struct `A base that several overlays share` {
  @Test func `is the same file, byte for byte, after all of them were written`() throws {
    let first = try Overlay()
    let before = try run("sha256sum", first.base)
    let second = first.folder.path("second.qcow2")
    let socket = first.folder.path("second.sock")
    try run(strataPath(), "create", "-f", "qcow2", "-b", first.base, "-F", "raw", second)
    let other = try Daemon(daemonPath(), [second, "--socket", socket], socketPath: socket)
    for daemon in [first.daemon, other] {
      try run(
        "qemu-io", "-f", "raw", "-c", "write -P 9 0 10M", "-c", "discard 20M 10M", daemon.uri)
    }
    #expect(other.stop() == 0)
    try first.finish()
    #expect(try run("sha256sum", first.base) == before)
  }
}
