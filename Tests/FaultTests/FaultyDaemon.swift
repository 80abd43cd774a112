// SPDX-License-Identifier: Apache-2.0
//
// The daemon on a disk that fails: images, ways to start it, and looking at what is left.
// This file creates files and processes.

import Foundation
import TestSupport

/// The tests of faults need these; what is missing is said, and the test skipped.
enum Need {
  static let root = geteuid() == 0
  static let strace = exists("strace")
  static let prlimit = exists("prlimit")

  private static func exists(_ tool: String) -> Bool {
    do {
      _ = try requireTool(tool)
      return true
    } catch { return false }
  }
}

/// A folder with images, and the daemon that serves one of them.
final class FaultBench {
  static let clusterByteCount = 65_536

  let folder: TemporaryFolder
  private(set) var daemon: Daemon?

  init() throws { folder = try TemporaryFolder() }

  var socketPath: String { folder.path("s") }

  /// The daemon beside the test bundle, or where `STRATAD` says.
  static func daemonPath() throws -> String {
    if let path = ProcessInfo.processInfo.environment["STRATAD"] { return path }
    let path = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
      .deletingLastPathComponent().appendingPathComponent("stratad").path
    guard access(path, X_OK) == 0 else {
      throw WireError.violation("no stratad beside the tests: build it, or set STRATAD")
    }
    return path
  }

  /// An overlay of `byteCount` bytes over a base of `baseByteCount` bytes of `pattern`.
  func makeOverlay(byteCount: Int = 64 << 20, baseByteCount: Int = 1 << 20) throws {
    try Data(pattern(baseByteCount)).write(to: URL(fileURLWithPath: folder.path("base")))
    try run(
      "qemu-img", "create", "-q", "-f", "qcow2", "-b", folder.path("base"), "-F", "raw",
      folder.path("disk"), "\(byteCount)")
  }

  /// Starts the daemon on `disk`, by way of `prefix` if there is one: a tool that runs its command.
  @discardableResult func serve(
    _ arguments: [String] = [], image: String? = nil, format: String = "qcow2",
    prefix: [String] = []
  ) throws -> Daemon {
    let words =
      prefix + [
        try Self.daemonPath(), image ?? folder.path("disk"), "--format", format, "--socket",
        socketPath,
      ] + arguments
    let started = try Daemon(
      requireTool(words[0]), Array(words.dropFirst()), socketPath: socketPath)
    daemon = started
    return started
  }

  func client(deadlineSeconds: Double = 10) throws -> WireClient {
    try WireClient.entered(path: socketPath, deadlineSeconds: deadlineSeconds)
  }

  /// The words that make the `when`-th call of `call` fail, in the daemon that follows them.
  ///
  /// With -D strace is the grandchild, so that the daemon itself is what the test ends.
  func failing(_ call: String, _ error: String, when: String) throws -> [String] {
    [
      try requireTool("strace"), "-D", "-f", "-qq", "-o", folder.path("trace"), "-e",
      "trace=\(call)", "-e", "inject=\(call):error=\(error):when=\(when)",
    ]
  }

  /// The exit code of `qemu-img check`: 0 clean, 2 errors, 3 leaks.
  func check(_ image: String? = nil) throws -> Int32 {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: try requireTool("qemu-img"))
    process.arguments = ["check", "-f", "qcow2", image ?? folder.path("disk")]
    process.standardOutput = FileHandle.nullDevice
    process.standardError = FileHandle.nullDevice
    try process.run()
    process.waitUntilExit()
    return process.terminationStatus
  }

  func hasOnlyLeaks() throws -> Bool { [0, 3].contains(try check()) }

  /// A field of /proc/PID/status in KiB.
  func memoryKibibytes(_ field: String) throws -> Int {
    guard let daemon else { return 0 }
    let text = try String(contentsOfFile: "/proc/\(daemon.processID)/status", encoding: .utf8)
    for line in text.split(separator: "\n") where line.hasPrefix("\(field):") {
      return Int(line.split(separator: " ")[1]) ?? 0
    }
    throw WireError.violation("no field \(field)")
  }
}

/// Bytes without a zero among them, different for each `seed`.
func pattern(_ count: Int, seed: Int = 0) -> [UInt8] {
  (0..<count).map { UInt8(1 + ($0 * 31 + $0 / 512 + seed * 101) % 255) }
}
