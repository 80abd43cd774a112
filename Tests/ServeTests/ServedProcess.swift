// SPDX-License-Identifier: Apache-2.0
//
// A program of the product as a black box: started, watched through files and /proc, ended by id.

import Foundation
import TestSupport

/// A running program, with what it wrote. Ended when the last reference goes.
final class ServedProcess {
  let processID: pid_t
  private let outputs: TemporaryFolder
  private var status: Int32?

  /// The product's programs are beside the test bundle, or where `STRATAD` says.
  static func path(of program: String) throws -> String {
    var folder = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
      .deletingLastPathComponent().path
    if let daemon = ProcessInfo.processInfo.environment["STRATAD"] {
      folder = URL(fileURLWithPath: daemon).deletingLastPathComponent().path
    }
    let path = "\(folder)/\(program)"
    guard access(path, X_OK) == 0 else { throw ServeError("no \(path): build it, or set STRATAD") }
    return path
  }

  /// Starts stratad with `arguments` and `--ready-fd 1`.
  convenience init(
    stratad arguments: [String], environment: [String: String] = [:], prefix: [String] = [],
    descriptor3: Int32? = nil
  ) throws {
    let words = prefix + [try Self.path(of: "stratad")] + arguments + ["--ready-fd", "1"]
    try self.init(words, environment: environment, descriptor3: descriptor3)
  }

  init(_ words: [String], environment: [String: String] = [:], descriptor3: Int32? = nil) throws {
    outputs = try TemporaryFolder()
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
    for (descriptor, name) in [(Int32(1), "out"), (2, "err")] {
      posix_spawn_file_actions_addopen(
        &actions, descriptor, outputs.path(name), O_WRONLY | O_CREAT | O_TRUNC, 0o600)
    }
    if let descriptor3 { posix_spawn_file_actions_adddup2(&actions, descriptor3, 3) }
    let variables = ProcessInfo.processInfo.environment.merging(environment) { $1 }
    var arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) }
    var settings: [UnsafeMutablePointer<CChar>?] = variables.map { strdup("\($0)=\($1)") }
    defer { for word in arguments + settings { free(word) } }
    arguments.append(nil)
    settings.append(nil)
    var processID: pid_t = 0
    let result = posix_spawnp(&processID, words[0], &actions, nil, arguments, settings)
    guard result == 0 else { throw ServeError("cannot start \(words[0]): errno \(result)") }
    self.processID = processID
  }

  deinit { if isAlive { stop(with: SIGKILL) } }

  var outputText: String { text(of: "out") }
  var errorText: String { text(of: "err") }

  private func text(of name: String) -> String {
    String(
      decoding: FileManager.default.contents(atPath: outputs.path(name)) ?? Data(), as: UTF8.self)
  }

  var isAlive: Bool {
    guard status == nil else { return false }
    var raw: Int32 = 0
    guard waitpid(processID, &raw, WNOHANG) == processID else { return true }
    status = raw
    return false
  }

  /// Returns when the word has been said; throws when the program ended before.
  @discardableResult func waitUntilReady(seconds: Double = 20) throws -> ServedProcess {
    let deadline = Date(timeIntervalSinceNow: seconds)
    while !outputText.contains("ready\n") {
      guard isAlive else { throw ServeError("not ready: \(errorText)") }
      guard Date() < deadline else { throw ServeError("not ready in time") }
      usleep(1_000)
    }
    return self
  }

  /// The exit code, or 128 + the signal; throws when the program goes on for too long.
  func waitForExit(seconds: Double = 20) throws -> Int32 {
    let deadline = Date(timeIntervalSinceNow: seconds)
    while isAlive {
      guard Date() < deadline else { throw ServeError("still running after \(seconds) s") }
      usleep(1_000)
    }
    guard let status else { throw ServeError("no status") }
    return status & 0x7f == 0 ? (status >> 8) & 0xff : 128 + (status & 0x7f)
  }

  @discardableResult func stop(with signal: Int32 = SIGTERM, seconds: Double = 10) -> Int32? {
    kill(processID, signal)
    do { return try waitForExit(seconds: seconds) } catch { return nil }
  }

  /// The lines of /proc/PID/status, by name.
  func status(of field: String) throws -> String { try Self.status(of: field, processID) }

  static func status(of field: String, _ processID: pid_t) throws -> String {
    let text = try String(contentsOfFile: "/proc/\(processID)/status", encoding: .utf8)
    for line in text.split(separator: "\n") where line.hasPrefix("\(field):") {
      return line.dropFirst(field.count + 1).trimmingCharacters(in: .whitespaces)
    }
    throw ServeError("no field \(field)")
  }
}

struct ServeError: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}

/// Runs a program to its end, with a deadline.
@discardableResult
func runTool(_ words: String...) throws -> (code: Int32, output: String, error: String) {
  try runTool(words)
}

/// The same, for words that are an array already.
@discardableResult
func runTool(_ words: [String]) throws -> (code: Int32, output: String, error: String) {
  let process = try ServedProcess(words)
  return (try process.waitForExit(seconds: 60), process.outputText, process.errorText)
}

/// Copies a program of the product. Another process does it: a program that this one has open for
/// writing while a test beside starts something cannot be run (execve(2), ETXTBSY).
func copyProgram(_ program: String, to path: String) throws {
  let result = try runTool("cp", ServedProcess.path(of: program), path)
  guard result.code == 0 else { throw ServeError(result.error) }
}

/// The trace of a program that was started by `strace -D -o` and has ended.
///
/// With -D the program is the child of the test and strace a stranger, so that ending the child
/// leaves nothing behind; strace writes its last line a little later.
func traceLines(of process: ServedProcess, in path: String) throws -> [Substring] {
  let deadline = Date(timeIntervalSinceNow: 10)
  while Date() < deadline {
    let lines = try String(contentsOfFile: path, encoding: .utf8).split(separator: "\n")
    if lines.last?.contains("+++ exited") == true { return lines }
    usleep(5_000)
  }
  throw ServeError("the trace of process \(process.processID) does not end")
}

let isRoot = geteuid() == 0
