// SPDX-License-Identifier: Apache-2.0
//
// A folder for one test, with the tools of QEMU and our own command run in it. Runs processes and
// writes files below the system's temporary folder.

import Foundation

/// What a command wrote and how it ended.
struct CommandResult: Equatable {
  let exitCode: Int32
  let output: String
  let errors: String
}

/// A folder that is removed at the end.
final class Workbench {
  let folder: String

  init() throws {
    let parent = ProcessInfo.processInfo.environment["STRATA_TEST_FOLDER"] ?? "/tmp"
    folder = "\(parent)/strata-images-\(UUID().uuidString)"
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
  }

  deinit {
    do { try FileManager.default.removeItem(atPath: folder) } catch {}
  }

  func path(_ name: String) -> String { "\(folder)/\(name)" }

  /// Runs a tool of the machine in the folder; words are separated by blanks.
  @discardableResult func run(_ line: String) throws -> CommandResult {
    try run(line.split(separator: " ").map(String.init))
  }

  /// Runs a tool that must succeed.
  func prepare(_ lines: String...) throws {
    for line in lines {
      let result = try run(line)
      guard result.exitCode == 0 else { throw WorkbenchError("\(line): \(result.errors)") }
    }
  }

  /// Runs our own command.
  @discardableResult func strata(_ line: String) throws -> CommandResult {
    try run([try Self.strataPath] + line.split(separator: " ").map(String.init))
  }

  func run(_ words: [String]) throws -> CommandResult {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = words
    process.currentDirectoryURL = URL(fileURLWithPath: folder)
    let names = ["out", "err"].map { path("\($0)-\(UUID().uuidString)") }
    for name in names { try Data().write(to: URL(fileURLWithPath: name)) }
    let files = try names.map { try FileHandle(forWritingTo: URL(fileURLWithPath: $0)) }
    process.standardOutput = files[0]
    process.standardError = files[1]
    process.standardInput = FileHandle.nullDevice
    try process.run()
    process.waitUntilExit()
    let texts = try names.map { try String(contentsOfFile: $0, encoding: .utf8) }
    for name in names { try FileManager.default.removeItem(atPath: name) }
    return CommandResult(exitCode: process.terminationStatus, output: texts[0], errors: texts[1])
  }

  /// Starts a tool that keeps running until `stop()` of the result.
  func start(_ line: String) throws -> Process {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = line.split(separator: " ").map(String.init)
    process.currentDirectoryURL = URL(fileURLWithPath: folder)
    process.standardInput = FileHandle.nullDevice
    try process.run()
    return process
  }

  /// The program beside the test bundle, or where `STRATA` says.
  static var strataPath: String {
    get throws {
      if let path = ProcessInfo.processInfo.environment["STRATA"] { return path }
      let path = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
        .deletingLastPathComponent().appendingPathComponent("strata").path
      guard FileManager.default.isExecutableFile(atPath: path) else {
        throw WorkbenchError("no \(path): build it, or set STRATA")
      }
      return path
    }
  }

  func bytes(of name: String) throws -> [UInt8] {
    [UInt8](try Data(contentsOf: URL(fileURLWithPath: path(name))))
  }

  func write(_ bytes: [UInt8], to name: String) throws {
    try Data(bytes).write(to: URL(fileURLWithPath: path(name)))
  }

  func exists(_ name: String) -> Bool { FileManager.default.fileExists(atPath: path(name)) }

  /// Overwrites bytes of a file with a big-endian number.
  func poke(
    _ name: String, _ value: some FixedWidthInteger & UnsignedInteger, at offset: Int
  ) throws {
    var bytes = try bytes(of: name)
    for index in 0..<(value.bitWidth / 8) {
      bytes[offset + index] = UInt8(truncatingIfNeeded: value >> (value.bitWidth - 8 - 8 * index))
    }
    try write(bytes, to: name)
  }

  /// The big-endian 64-bit number at `offset`.
  func word(_ name: String, at offset: Int) throws -> Int {
    try bytes(of: name)[offset..<(offset + 8)].reduce(0) { $0 << 8 | Int($1) }
  }
}

struct WorkbenchError: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}
