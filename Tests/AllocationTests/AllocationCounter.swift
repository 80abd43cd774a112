// SPDX-License-Identifier: Apache-2.0
//
// A daemon whose allocations are counted, by a library that is preloaded into it.
// This file builds the library, maps memory and starts processes.

import Foundation
import TestSupport

/// The daemon of a release build, and its count of allocations.
final class CountedDaemon {
  private let folder: TemporaryFolder
  private let daemon: Daemon
  private let report: UnsafeMutablePointer<UInt64>
  private static let reportByteCount = 8 * (3 + 64 * 24)

  /// A release build: in a debug build every generic call allocates.
  static let daemonPath: String? = {
    let environment = ProcessInfo.processInfo.environment
    let bundle = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
    let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
    let places: [String?] = [
      environment["STRATAD"],
      bundle.deletingLastPathComponent().deletingLastPathComponent()
        .appendingPathComponent("release/stratad").path,
      root.appendingPathComponent(".build/release/stratad").path,
    ]
    return places.compactMap(\.self).first { access($0, X_OK) == 0 }
  }()

  /// Serves an overlay of 16 MiB, written in full, over a base.
  init(_ arguments: [String] = []) throws {
    guard let path = Self.daemonPath else { throw WireError.violation("no release build") }
    folder = try TemporaryFolder()
    try Self.makeImage(folder)
    let library = folder.path("malloccount.so")
    let source = URL(filePath: #filePath).deletingLastPathComponent()
      .appendingPathComponent("malloccount.c").path
    try run("clang", "-O1", "-shared", "-fPIC", "-fno-builtin", "-o", library, source)
    let reportPath = folder.path("report")
    _ = FileManager.default.createFile(
      atPath: reportPath, contents: Data(count: Self.reportByteCount))
    report = try Self.map(reportPath)
    daemon = try Daemon(
      requireTool("env"),
      [
        "LD_PRELOAD=\(library)", "MALLOC_REPORT=\(reportPath)", path, folder.path("disk"),
        "--format", "qcow2", "--socket", folder.path("s"),
      ] + arguments, socketPath: folder.path("s"))
  }

  deinit {
    daemon.stop()
    munmap(report, Self.reportByteCount)
  }

  private static func makeImage(_ folder: TemporaryFolder) throws {
    try run("qemu-img", "create", "-q", "-f", "raw", folder.path("base"), "16M")
    try run(
      "qemu-img", "create", "-q", "-f", "qcow2", "-b", folder.path("base"), "-F", "raw",
      folder.path("disk"))
    try run("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 16M", folder.path("disk"))
  }

  private static func map(_ path: String) throws -> UnsafeMutablePointer<UInt64> {
    let descriptor = open(path, O_RDWR | O_CLOEXEC)
    defer { close(descriptor) }
    let address = mmap(
      nil, reportByteCount, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
    guard let address, address != MAP_FAILED else {
      throw WireError.system("mmap", errno: errno)
    }
    return address.bindMemory(to: UInt64.self, capacity: reportByteCount / 8)
  }

  /// Allocations since the start of the process.
  var count: Int { Int(report[0]) }

  func client(structured: Bool, extended: Bool) throws -> LoadClient {
    try LoadClient(path: daemon.socketPath, structured: structured, extended: extended)
  }

  // MARK: Where

  /// Asks for the call stacks of the next 64 allocations.
  func startTracing() {
    report[2] = 0
    report[1] = 64
  }

  /// The call stacks that came, with names where addr2line knows them, the most frequent first.
  func traces() throws -> String {
    let map = try String(contentsOfFile: "/proc/\(daemon.processID)/maps", encoding: .utf8)
    let line = map.split(separator: "\n").first { $0.hasSuffix("/stratad") }
    let base = line.flatMap { UInt64($0.prefix { $0 != "-" }, radix: 16) } ?? 0
    var counts: [[UInt64]: Int] = [:]
    for number in 0..<min(Int(report[2]), 64) {
      let frames = (0..<24).map { report[3 + number * 24 + $0] }.filter { $0 != 0 }
      counts[Array(frames.dropFirst(2).prefix(12)), default: 0] += 1
    }
    return try counts.sorted { $0.value > $1.value }.prefix(3).map { frames, count in
      let addresses = frames.filter { $0 >= base && $0 < base + (1 << 28) }
        .map { "0x" + String($0 - base, radix: 16) }
      return "\(count) times:\n" + (try Self.names(addresses))
    }.joined(separator: "\n")
  }

  private static func names(_ addresses: [String]) throws -> String {
    guard let path = daemonPath, !addresses.isEmpty else { return "  (outside the program)" }
    let process = Process()
    process.executableURL = URL(fileURLWithPath: try requireTool("addr2line"))
    process.arguments = ["-f", "-s", "-e", path] + addresses
    let pipe = Pipe()
    process.standardOutput = pipe
    try process.run()
    let text = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    return text
  }
}
