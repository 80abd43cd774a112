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
      var result = try run(line)
      // QEMU's clock is too coarse at times for the measurement that LUKS wants.
      for _ in 0..<400 where result.errors.contains("accurate CPU usage") {
        result = try run(line)
      }
      guard result.exitCode == 0 else { throw WorkbenchError("\(line): \(result.errors)") }
    }
  }

  /// Runs our own command.
  @discardableResult func strata(_ line: String) throws -> CommandResult {
    try run([try Self.strataPath] + line.split(separator: " ").map(String.init))
  }

  func run(_ words: [String]) throws -> CommandResult {
    let names = ["out", "err"].map { path("\($0)-\(UUID().uuidString)") }
    let tool = try RunningTool(words, folder: folder, outputPath: names[0], errorPath: names[1])
    let exitCode = tool.waitForEnd()
    let texts = try names.map { try String(contentsOfFile: $0, encoding: .utf8) }
    for name in names { try FileManager.default.removeItem(atPath: name) }
    return CommandResult(exitCode: exitCode, output: texts[0], errors: texts[1])
  }

  /// Starts a server of QEMU's on the socket "s" and returns when it listens.
  func serve(_ line: String) throws -> RunningTool {
    let words = line.split(separator: " ").map(String.init) + ["-t", "-k", path("s")]
    let tool = try RunningTool(
      words, folder: folder, outputPath: "/dev/null", errorPath: "/dev/null")
    for _ in 0..<1000 where !exists("s") { usleep(10_000) }
    guard exists("s") else { throw WorkbenchError("\(line) does not listen") }
    return tool
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

/// A child process, ended with its last reference. Foundation's `Process` is not used: its watch
/// on a child's end is inherited by other children and then waits for those too.
final class RunningTool {
  let processID: pid_t
  private var status: Int32?

  init(_ words: [String], folder: String, outputPath: String, errorPath: String) throws {
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
    posix_spawn_file_actions_addopen(&actions, 1, outputPath, O_WRONLY | O_CREAT, 0o600)
    posix_spawn_file_actions_addopen(&actions, 2, errorPath, O_WRONLY | O_CREAT, 0o600)
    // The call that changes the folder of a child is not in Swift's overlay; env(1) does it.
    let words = ["/usr/bin/env", "-C", folder] + words
    var arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) }
    defer { for argument in arguments { free(argument) } }
    arguments.append(nil)
    var processID: pid_t = 0
    // Threads of Swift's pool block signals, and a child would inherit that.
    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    var signals = sigset_t()
    sigemptyset(&signals)
    posix_spawnattr_setsigmask(&attributes, &signals)
    posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
    let result = posix_spawnp(&processID, words[0], &actions, &attributes, arguments, environ)
    guard result == 0 else { throw WorkbenchError("\(words[0]) cannot be started: \(result)") }
    self.processID = processID
  }

  deinit {
    if status == nil { kill(processID, SIGTERM) }
    waitForEnd()
  }

  /// The exit code, or 128 and the signal.
  @discardableResult func waitForEnd() -> Int32 {
    if let status { return status }
    var raw: Int32 = 0
    while waitpid(processID, &raw, 0) < 0 && errno == EINTR {}
    let code = raw & 0x7f == 0 ? (raw >> 8) & 0xff : 128 + (raw & 0x7f)
    status = code
    return code
  }
}
