// SPDX-License-Identifier: Apache-2.0
//
// What qemu-img says about an image file, and images made by QEMU's tools.

import Foundation
import TestSupport

/// The verdict of `qemu-img check`.
struct CheckedImage: Equatable {
  /// 0: clean, 2: errors, 3: leaks only.
  let exitCode: Int32
  let text: String

  init(_ path: String) throws {
    let result = try runQuietly("qemu-img", ["check", "-f", "qcow2", path])
    exitCode = result.exitCode
    text = result.text
  }

  var isClean: Bool { exitCode == 0 }
  /// A power cut may leave clusters that nobody uses, and nothing worse.
  var hasOnlyLeaks: Bool { exitCode == 0 || exitCode == 3 }
}

/// Runs a tool to its end.
func runQuietly(
  _ tool: String, _ arguments: [String]
) throws -> (exitCode: Int32, text: String) {
  let process = Process()
  process.executableURL = URL(fileURLWithPath: try requireTool(tool))
  process.arguments = arguments
  let pipe = Pipe()
  process.standardOutput = pipe
  process.standardError = pipe
  process.standardInput = FileHandle.nullDevice
  try process.run()
  let output = pipe.fileHandleForReading.readDataToEndOfFile()
  process.waitUntilExit()
  return (process.terminationStatus, String(decoding: output, as: UTF8.self))
}

extension TemporaryFolder {
  /// Runs a tool of QEMU, whose words are separated by blanks and whose files are in this folder
  /// where a word starts with `@`.
  func qemu(_ line: String) throws {
    let words = line.split(separator: " ").map { word in
      word.hasPrefix("@") ? path(String(word.dropFirst())) : String(word)
    }
    let result = try runQuietly(words[0], Array(words.dropFirst()))
    guard result.exitCode == 0 else { throw BenchError("\(line): \(result.text)") }
  }

  /// Runs commands of qemu-io on a qcow2 image.
  func qemuIO(_ name: String, _ commands: String...) throws { try qemuIO(name, commands) }

  func qemuIO(_ name: String, _ commands: [String]) throws {
    let arguments = commands.flatMap { ["-c", $0] }
    let result = try runQuietly("qemu-io", ["-f", "qcow2"] + arguments + [path(name)])
    guard result.exitCode == 0, !result.text.contains("failed") else {
      throw BenchError("qemu-io \(commands.prefix(9)): \(result.text)")
    }
  }

  /// A raw file of `byteCount` bytes of `pattern`.
  func makeRaw(_ name: String, byteCount: Int, seed: Int = 0) throws {
    try Data(pattern(byteCount, seed: seed)).write(to: URL(fileURLWithPath: path(name)))
  }

  /// An overlay without data of its own over a raw base full of `pattern`.
  func makeOverlay(
    baseByteCount: Int = 1 << 20, byteCount: Int? = nil, options: String = "cluster_size=65536"
  ) throws {
    try makeRaw("base", byteCount: baseByteCount)
    let size = byteCount ?? baseByteCount
    try qemu("qemu-img create -q -f qcow2 -o \(options) -b @base -F raw @disk \(size)")
  }
}

/// Bytes without a zero among them, different for each `seed`.
func pattern(_ count: Int, seed: Int = 0) -> [UInt8] {
  (0..<count).map { UInt8(1 + ($0 * 31 + $0 / 512 + seed * 101) % 255) }
}

func zeroes(_ count: Int) -> [UInt8] { [UInt8](repeating: 0, count: count) }

/// Replaces the bytes of `data` from `offset` on.
func overlay(_ data: [UInt8], at offset: Int, with other: [UInt8]) -> [UInt8] {
  Array(data[..<offset]) + other + Array(data[(offset + other.count)...])
}
