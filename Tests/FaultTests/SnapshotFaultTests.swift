// SPDX-License-Identifier: Apache-2.0
//
// A snapshot of a disk that is served while its file fails at one call: the verb says so or is
// done, the disk and the snapshots are what they were, and the daemon goes on.
// Source: decision 0031; fsync(2).

import Foundation
import TestSupport
import Testing

private let dataByteCount = 1 << 20

@Suite(.enabled(if: Need.strace && Need.root, "strace is not installed, or this is not root"))
struct `A live snapshot on a disk that fails` {
  static let faults = [
    ("pwrite64", "ENOSPC"), ("pwrite64", "EIO"), ("pread64", "EIO"), ("ftruncate", "EIO"),
    ("fallocate", "ENOSPC"), ("fdatasync", "EIO"),
  ]

  /// Each number is an n-th call of one thread: that of the loop or one of the pool.
  @Test(arguments: faults, [1, 2, 3, 4, 5, 7, 9, 12, 16])
  func `is made or refused, and the disk is whole`(
    fault: (call: String, error: String), when: Int
  ) throws {
    let bench = try FaultBench()
    let disk = bench.folder.path("disk")
    try run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", disk, "8M")
    try run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", disk)
    try run("qemu-img", "snapshot", "-c", "first", disk)
    let control = bench.folder.path("c")
    let daemon = try bench.serve(["--aio", "sync", "--control", control])
    let client = try bench.client()
    #expect(try client.write(0, pattern(dataByteCount)) == 0)
    let tracer = try Tracer(of: daemon.processID, fault.call, fault.error, when: "\(when)")
    let made = try strata("snapshot", "create", control, "live")
    let deleted = try strata("snapshot", "delete", control, "first")
    tracer.stop()
    #expect(made.code == 0 || made.text.contains(control), "\(made)")
    #expect(try client.write(0, pattern(300_000, seed: 5)) == 0)
    let flush = try client.call(.flush).error
    // What a synchronisation lost is lost for good; all else is over.
    #expect(fault.call == "fdatasync" || flush == 0)
    let bytes = try client.read(0, dataByteCount).data.bytes
    #expect(
      bytes == pattern(300_000, seed: 5) + Array(pattern(dataByteCount)[300_000...]))
    try client.disconnect()
    daemon.stop()
    // What the image is marked for, whoever opens it next does.
    _ = try tool(["qemu-img", "check", "-q", "-r", "all", disk])
    #expect(try bench.hasOnlyLeaks())
    let names = try run("qemu-img", "snapshot", "-l", disk)
    if made.code == 0 { #expect(names.contains("live")) }
    if deleted.code == 0 { #expect(!names.contains("first")) }
    // A verb that fails behind its main thing says so. What a synchronisation did nobody knows.
    if made.code != 0, fault.call != "fdatasync" {
      #expect(names.contains("live") == made.text.contains("is made all the same"), "\(made)")
    }
    if deleted.code != 0, fault.call != "fdatasync" {
      #expect(
        names.contains("first") != deleted.text.contains("is gone all the same"), "\(deleted)")
    }
    if names.contains("first") { try expect(disk, "first", [UInt8](repeating: 7, count: 1 << 20)) }
    if names.contains("live") { try expect(disk, "live", pattern(dataByteCount)) }
  }

  /// The daemon cannot follow the change, and must not cut off the file where it ended before.
  @Test func `keeps the snapshot whose tables cannot be read again`() throws {
    let bench = try FaultBench()
    let disk = bench.folder.path("disk")
    try run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", disk, "8M")
    try run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", disk)
    let control = bench.folder.path("c")
    let daemon = try bench.serve(["--aio", "sync", "--control", control])
    let client = try bench.client()
    // So that the file has grown ahead of need.
    #expect(try client.write(2 << 20, pattern(300_000)) == 0)
    #expect(try client.call(.flush).error == 0)
    // All threads but those of the pool, which make the change.
    let tracers = try daemon.waitingThreads().map {
      try Tracer(of: $0, "pread64", "EIO", when: "1+", followsThreads: false)
    }
    try #require(tracers.count == 3)
    let made = try strata("snapshot", "create", control, "live")
    for tracer in tracers { tracer.stop() }
    #expect(made.code == 0, "\(made)")
    // It reads on, and changes nothing any more.
    #expect(try client.read(2 << 20, 300_000).data.bytes == pattern(300_000))
    #expect(try client.write(0, pattern(512)) != 0)
    try client.disconnect()
    daemon.stop()
    #expect(try bench.hasOnlyLeaks())
    try expect(disk, "live", [UInt8](repeating: 7, count: 1 << 20))
  }

  private func expect(_ disk: String, _ snapshot: String, _ bytes: [UInt8]) throws {
    let raw = disk + ".raw"
    try run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l", snapshot, disk, raw)
    let content = [UInt8](try Data(contentsOf: URL(fileURLWithPath: raw)))
    #expect(Array(content[..<bytes.count]) == bytes, "\(snapshot)")
  }

  private func strata(_ words: String...) throws -> (code: Int32, text: String) {
    let program = URL(fileURLWithPath: try FaultBench.daemonPath()).deletingLastPathComponent()
      .appendingPathComponent("strata").path
    return try tool([program] + words)
  }

  private func tool(_ words: [String]) throws -> (code: Int32, text: String) {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: try requireTool(words[0]))
    process.arguments = Array(words.dropFirst())
    let pipe = Pipe()
    process.standardOutput = pipe
    process.standardError = pipe
    try process.run()
    let text = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    return (process.terminationStatus, text)
  }
}

/// strace on a daemon that runs, whose calls fail from now on.
private final class Tracer {
  private let process = Process()
  private let pipe = Pipe()

  init(
    of processID: pid_t, _ call: String, _ error: String, when: String, followsThreads: Bool = true
  ) throws {
    process.executableURL = URL(fileURLWithPath: try requireTool("strace"))
    process.arguments =
      (followsThreads ? ["-f"] : []) + [
        "-o", "/dev/null", "-p", "\(processID)", "-e", "trace=\(call)", "-e",
        "inject=\(call):error=\(error):when=\(when)",
      ]
    process.standardError = pipe
    try process.run()
    var text = ""
    while !text.contains("attached") {
      let bytes = pipe.fileHandleForReading.availableData
      guard !bytes.isEmpty else { throw WireError.violation("strace: \(text)") }
      text += String(decoding: bytes, as: UTF8.self)
    }
  }

  /// Lets go; the daemon runs on.
  func stop() {
    // It may have inherited a mask that keeps SIGTERM away; the kernel lets the daemon go.
    kill(process.processIdentifier, SIGKILL)
    process.waitUntilExit()
  }
}

extension Daemon {
  /// The threads of the export, the reception and the control socket, once all of them wait for
  /// events: those of the pool wait to be called.
  fileprivate func waitingThreads() throws -> [pid_t] {
    let folder = "/proc/\(processID)/task"
    for _ in 0..<2_000 {
      let threads = try FileManager.default.contentsOfDirectory(atPath: folder).filter {
        try String(contentsOfFile: "\(folder)/\($0)/wchan", encoding: .utf8).contains("epoll")
      }
      if threads.count == 3 { return threads.compactMap { pid_t($0) } }
      usleep(1_000)
    }
    return []
  }
}
