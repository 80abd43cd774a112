// SPDX-License-Identifier: Apache-2.0
//
// `strata lint` as a program, before the daemon: verdict, JSON, exit statuses, restored bytes.
// This file starts servers and tools.

import Foundation
import TestSupport
import Testing

/// A disk of 80 MiB with data at both ends, served by stratad.
private final class LintedDisk {
  static let byteCount = 80 << 20

  let folder: TemporaryFolder
  let daemon: Daemon

  enum Kind: String, CaseIterable, Sendable { case raw, overlay, readOnly, largeBlocks, bitmaps }

  init(_ kind: Kind) throws {
    folder = try TemporaryFolder()
    let base = folder.path("base.raw")
    guard FileManager.default.createFile(atPath: base, contents: Data(LintedDisk.pattern)) else {
      throw WireError.system("create", errno: errno)
    }
    let handle = try FileHandle(forUpdating: URL(fileURLWithPath: base))
    try handle.truncate(atOffset: UInt64(LintedDisk.byteCount))
    try handle.seek(toOffset: UInt64(LintedDisk.byteCount / 2))
    try handle.write(contentsOf: LintedDisk.pattern)
    try handle.close()
    var image = base
    var arguments = ["--format", "raw"]
    switch kind {
    case .raw: break
    case .readOnly: arguments += ["--read-only"]
    case .bitmaps:
      arguments += ["--bitmap", "a", "--bitmap", "fine:512", "--bitmap", "coarse:1M"]
    case .largeBlocks: arguments += ["--block-size", "4096"]
    case .overlay:
      image = folder.path("overlay.qcow2")
      arguments = ["--format", "qcow2"]
      try runTool(
        try strataPath(), ["create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", image])
    }
    let socket = folder.path("nbd.sock")
    daemon = try Daemon(
      daemonPath(), [image, "--socket", socket, "--export-name", "disk"] + arguments,
      socketPath: socket)
  }

  static let pattern = [UInt8]((0..<300_000).map { UInt8(truncatingIfNeeded: $0 / 7 + 1) })

  var uri: String { "nbd+unix:///disk?socket=\(daemon.socketPath)" }

  /// Both ends of the disk and its middle, as a client reads them.
  func contents() throws -> [UInt8] {
    let client = try WireClient.entered(path: daemon.socketPath)
    return try stride(from: 0, to: LintedDisk.byteCount, by: 8 << 20).flatMap { offset in
      try client.read(UInt64(offset), 8 << 20).data.bytes
    }
  }
}

private func strataPath() throws -> String {
  let path = URL(fileURLWithPath: try daemonPath()).deletingLastPathComponent()
    .appendingPathComponent("strata").path
  guard access(path, X_OK) == 0 else { throw WireError.violation("no strata beside stratad") }
  return path
}

/// Runs `strata lint` with these words.
private func lint(_ words: String...) throws -> (code: Int32, output: String, error: String) {
  let process = Process()
  process.executableURL = URL(fileURLWithPath: try strataPath())
  process.arguments = ["lint"] + words
  let folder = try TemporaryFolder()
  let paths = [folder.path("out"), folder.path("err")]
  for path in paths { _ = FileManager.default.createFile(atPath: path, contents: nil) }
  process.standardInput = FileHandle.nullDevice
  process.standardOutput = try FileHandle(forWritingTo: URL(fileURLWithPath: paths[0]))
  process.standardError = try FileHandle(forWritingTo: URL(fileURLWithPath: paths[1]))
  try process.run()
  process.waitUntilExit()
  let texts = try paths.map { try String(contentsOfFile: $0, encoding: .utf8) }
  return (process.terminationStatus, texts[0], texts[1])
}

@Suite struct `strata lint before stratad` {
  @Test(arguments: LintedDisk.Kind.allCases)
  private func `finds no broken rule, and leaves the bytes as they were`(
    _ kind: LintedDisk.Kind
  ) throws {
    let disk = try LintedDisk(kind)
    let before = try disk.contents()
    let result = try lint(disk.uri, "--write", "--strict", "--timeout", "20")
    #expect(result.code == 0, "\(result.output)\(result.error)")
    #expect(result.output.contains(" 0 failed (0 MUST, 0 SHOULD, 0 quality)"), "\(result.output)")
    let after = try disk.contents()
    #expect(before == after)
    #expect(disk.daemon.stop() == 0)
  }

  @Test func `tells its findings in JSON`() throws {
    let disk = try LintedDisk(.raw)
    let result = try lint(disk.uri, "--json", "--only", "greet.", "--only", "write.")
    #expect(result.code == 0)
    let document = try #require(
      JSONSerialization.jsonObject(with: Data(result.output.utf8)) as? [String: Any])
    #expect(document["uri"] as? String == disk.uri)
    let export = try #require(document["export"] as? [String: Any])
    #expect(export["size"] as? Int == LintedDisk.byteCount)
    #expect(export["read-only"] as? Bool == false)
    let counts = try #require(document["counts"] as? [String: Int])
    #expect(counts["pass"] == 4)
    #expect(counts["fail"] == 0)
    let checks = try #require(document["checks"] as? [[String: Any]])
    #expect(checks.count == 4 + (counts["destructive-skipped"] ?? 0) + (counts["skipped"] ?? 0))
    for check in checks {
      for key in ["id", "level", "rule", "citation", "result"] {
        #expect(check[key] is String, "\(key) of \(check)")
      }
      #expect(check["writes"] is Bool)
    }
  }

  @Test func `writes nothing without --write`() throws {
    let disk = try LintedDisk(.raw)
    let before = try disk.contents()
    let result = try lint(disk.uri, "--only", "wz.", "--only", "write.", "--only", "trim.")
    #expect(result.output.contains("they write to the disk, which needs --write"))
    #expect(result.output.contains("0 passed"))
    let after = try disk.contents()
    #expect(before == after)
  }

  @Test func `ends with 0, 1 or 2`() throws {
    let disk = try LintedDisk(.raw)
    #expect(try lint(disk.uri, "--only", "greet.").code == 0)
    // An export that is not there: INFO gets an error.
    let missing = try lint(
      "nbd+unix:///other?socket=\(disk.daemon.socketPath)", "--only", "info.basic")
    #expect(missing.code == 1, "\(missing.output)")
    #expect(missing.output.contains("FAIL MUST info.basic"))
    #expect(missing.output.contains("expected: ACK"))
    for words in [
      [], ["--no-such-option"], ["nbd+unix:///?socket=/nowhere/at/all"], ["http://x/"],
      ["nbds+unix:///?socket=/x"], ["nbd+vsock://4294967295:3/"],
      [disk.uri, "--only", "nothing"], [disk.uri, "--level", "X"], [disk.uri, "--timeout", "0"],
    ] {
      let code: Int32
      switch words.count {
      case 0: code = try lint().code
      case 1: code = try lint(words[0]).code
      default: code = try lint(words[0], words[1], words[2]).code
      }
      #expect(code == 2, "\(words)")
    }
  }

  @Test func `lists its checks`() throws {
    let result = try lint("--list", "--level", "M")
    #expect(result.code == 0)
    #expect(result.output.contains("M greet.magic: "))
    #expect(!result.output.contains("S list.data"))
  }
}
