// SPDX-License-Identifier: Apache-2.0
//
// Child processes of tests: servers that end with their test, and tools that are run to their end.
// This file starts and ends processes, by id only.

import Foundation

/// A server under test. It is ended, with a deadline, when the last reference goes.
public final class Daemon: @unchecked Sendable {  // all state is fixed in init, but `status`
  public let processID: pid_t
  public let socketPath: String
  private let errorPath: String
  private var status: Int32?

  /// What a caller can wait for.
  public enum Readiness: Sendable {
    /// `--ready-fd 3` is added to the arguments; a line on it means ready.
    case readyDescriptor
    /// The socket accepts a connection: for peers that do not tell.
    case socketAnswers
    /// A file is there, such as the one with the process's number.
    case fileAppears(String)
  }

  /// Starts `executable` and returns when it is ready, or throws with what it wrote to stderr.
  public init(
    _ executable: String, _ arguments: [String], socketPath: String,
    readiness: Readiness = .readyDescriptor, deadlineSeconds: Double = 20
  ) throws {
    self.socketPath = socketPath
    errorPath = socketPath + ".stderr"
    var ends: [Int32] = [-1, -1]
    // A socket pair can be born with close-on-exec; a pipe cannot, and would leak into siblings.
    guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0
    else { throw WireError.system("socketpair", errno: errno) }
    defer { close(ends[0]) }
    var all = arguments
    if case .readyDescriptor = readiness { all += ["--ready-fd", "3"] }
    do {
      processID = try spawn(executable, all, outputPath: errorPath, readyDescriptor: ends[1])
      close(ends[1])
    } catch {
      close(ends[1])
      throw error
    }
    let deadline = Deadline(seconds: deadlineSeconds)
    switch readiness {
    case .readyDescriptor: try waitForLine(ends[0], deadline)
    case .socketAnswers: try waitForSocket(deadline)
    case .fileAppears(let path): try waitForFile(path, deadline)
    }
  }

  deinit { stop() }

  /// What the server wrote to stderr so far.
  public var errorText: String {
    FileManager.default.contents(atPath: errorPath).map { String(decoding: $0, as: UTF8.self) }
      ?? ""
  }

  public var isAlive: Bool {
    guard status == nil else { return false }
    var raw: Int32 = 0
    guard waitpid(processID, &raw, WNOHANG) == processID else { return true }
    status = raw
    return false
  }

  /// Sends SIGTERM, waits, and falls back to SIGKILL. Returns the exit code, or nil after a signal.
  @discardableResult public func stop(deadlineSeconds: Double = 10) -> Int32? {
    if isAlive { kill(processID, SIGTERM) }
    let deadline = Deadline(seconds: deadlineSeconds)
    while isAlive && deadline.secondsLeft > 0 { usleep(2_000) }
    if isAlive {
      kill(processID, SIGKILL)
      var raw: Int32 = 0
      waitpid(processID, &raw, 0)
      status = raw
    }
    guard let status, status & 0x7f == 0 else { return nil }
    return (status >> 8) & 0xff
  }

  private func waitForLine(_ descriptor: Int32, _ deadline: Deadline) throws {
    var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    let result = poll(&entry, 1, Int32(max(0, deadline.secondsLeft) * 1000))
    var byte: UInt8 = 0
    guard result > 0, read(descriptor, &byte, 1) == 1 else {
      let what = result > 0 ? "ended" : "was not ready in time"
      stop(deadlineSeconds: 1)
      throw WireError.ended("the server \(what): \(errorText)")
    }
  }

  private func waitForFile(_ path: String, _ deadline: Deadline) throws {
    while deadline.secondsLeft > 0 && isAlive {
      if access(path, F_OK) == 0 { return }
      usleep(5_000)
    }
    stop(deadlineSeconds: 1)
    throw WireError.ended("the server did not come up: \(errorText)")
  }

  private func waitForSocket(_ deadline: Deadline) throws {
    while deadline.secondsLeft > 0 && isAlive {
      do {
        _ = try WireSocket(connectingTo: socketPath)
        return
      } catch { usleep(5_000) }
    }
    stop(deadlineSeconds: 1)
    throw WireError.ended("the server did not come up: \(errorText)")
  }
}

/// Runs a tool to its end and returns what it wrote to both outputs; throws unless it exits with 0.
@discardableResult
public func run(_ tool: String, _ arguments: String...) throws -> String {
  try runTool(tool, arguments)
}

/// The same, for arguments that are an array already.
@discardableResult
public func runTool(_ tool: String, _ arguments: [String]) throws -> String {
  let path = try requireTool(tool)
  let folder = try TemporaryFolder()
  let output = folder.path("output")
  let processID = try spawn(path, arguments, outputPath: output, readyDescriptor: nil)
  var status: Int32 = 0
  while waitpid(processID, &status, 0) < 0 && errno == EINTR {}
  let contents = FileManager.default.contents(atPath: output) ?? Data()
  let text = String(decoding: contents, as: UTF8.self)
  guard status == 0 else {
    throw WireError.violation("\(tool) \(arguments) ended with \(status >> 8): \(text)")
  }
  return text
}

/// The path of a tool that the machine has, or an error that names it.
public func requireTool(_ tool: String) throws -> String {
  if tool.contains("/") { return tool }
  let folders = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
  for folder in folders.split(separator: ":").map(String.init) + ["/usr/sbin", "/sbin"] {
    let path = "\(folder)/\(tool)"
    if access(path, X_OK) == 0 { return path }
  }
  throw WireError.violation("the tool \(tool) is not installed")
}

/// Starts a program with stdin from /dev/null, both outputs in a file, and fd 3 for readiness.
private func spawn(
  _ path: String, _ arguments: [String], outputPath: String, readyDescriptor: Int32?
) throws -> pid_t {
  var actions = posix_spawn_file_actions_t()
  posix_spawn_file_actions_init(&actions)
  defer { posix_spawn_file_actions_destroy(&actions) }
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
  posix_spawn_file_actions_addopen(&actions, 1, outputPath, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
  posix_spawn_file_actions_adddup2(&actions, 1, 2)
  if let readyDescriptor {
    if readyDescriptor == 3 {
      // Duplicating a descriptor onto itself would keep close-on-exec set; go by way of another.
      posix_spawn_file_actions_adddup2(&actions, 3, 4)
      posix_spawn_file_actions_adddup2(&actions, 4, 3)
      posix_spawn_file_actions_addclose(&actions, 4)
    } else {
      posix_spawn_file_actions_adddup2(&actions, readyDescriptor, 3)
    }
  }
  // The threads that run tests block signals; a child starts with none blocked.
  var attributes = posix_spawnattr_t()
  posix_spawnattr_init(&attributes)
  defer { posix_spawnattr_destroy(&attributes) }
  var none = sigset_t()
  sigemptyset(&none)
  posix_spawnattr_setsigmask(&attributes, &none)
  posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
  var words: [UnsafeMutablePointer<CChar>?] = ([path] + arguments).map { strdup($0) }
  words.append(nil)
  defer { for word in words { free(word) } }
  var processID: pid_t = 0
  let result = posix_spawn(&processID, path, &actions, &attributes, words, environ)
  guard result == 0 else { throw WireError.system("posix_spawn \(path)", errno: result) }
  return processID
}
