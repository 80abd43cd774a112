// SPDX-License-Identifier: Apache-2.0
//
// The file that tells which process serves. Source: link(2), open(2), fcntl(2) (open file
// description locks).

import CLinux
import Glibc

/// A locked file that holds this process's number and a line feed; closed when the value goes.
///
/// It appears whole: written and locked under another name, then linked to its own. The lock says
/// that the process lives, whatever number is in the file.
public struct PidFile: ~Copyable {
  private let descriptor: Int32
  private let path: String
  private let identity: FileIdentity

  /// Makes the file; one that a dead process left behind is replaced.
  ///
  /// - Throws: EEXIST when the process of the file that is there lives, or it is no regular file.
  public init(creating path: String) throws(SystemError) {
    let number = getpid()
    let draft = "\(path).\(number)"
    // SAFETY: the path outlives the call.
    let descriptor = try SystemError.check(
      unsafe clinux_open(draft, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o644), "create \(draft)")
    // SAFETY: the path outlives the call.
    defer { unsafe unlink(draft) }
    do throws(SystemError) {
      _ = try SystemError.check(clinux_ofd_lock(descriptor, Int16(F_WRLCK), 0, 0), "lock")
      let bytes = Array("\(number)\n".utf8)
      // SAFETY: the bytes outlive the call.
      guard unsafe write(descriptor, bytes, bytes.count) == bytes.count else {
        throw SystemError(errno: errno, call: "write")
      }
      try PidFile.link(draft, to: path)
      guard let identity = FileIdentity(of: descriptor) else {
        throw SystemError(errno: errno, call: "fstat")
      }
      self.identity = identity
    } catch {
      close(descriptor)
      throw error
    }
    self.descriptor = descriptor
    self.path = path
  }

  deinit { close(descriptor) }

  /// Takes the file away; where the folder belongs to somebody else, empties it, so that nobody
  /// ever sends a signal to a stranger.
  public func remove() {
    if !identity.remove(at: path) { _ = ftruncate(descriptor, 0) }
  }

  /// Times that somebody else may get in between before it is called a failure.
  private static let attemptMax = 16

  private static func link(_ draft: String, to path: String) throws(SystemError) {
    for _ in 0..<attemptMax {
      // SAFETY: both paths outlive the call.
      if unsafe Glibc.link(draft, path) == 0 { return }
      guard errno == EEXIST else { throw SystemError(errno: errno, call: "create") }
      try removeStale(path)
    }
    throw SystemError(errno: EEXIST, call: "create")
  }

  /// Removes the file at `path` if nobody holds its lock.
  ///
  /// Only who holds the lock of the very file at the path removes it, so two that start at once
  /// cannot remove each other's.
  private static func removeStale(_ path: String) throws(SystemError) {
    // SAFETY: the path outlives the call.
    let descriptor = unsafe clinux_open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0)
    if descriptor == -ENOENT { return }
    _ = try SystemError.check(descriptor, "open")
    defer { close(descriptor) }
    guard let file = FileIdentity(of: descriptor), file.isRegular else {
      throw SystemError(errno: EEXIST, call: "create (no regular file)")
    }
    guard clinux_ofd_lock(descriptor, Int16(F_WRLCK), 0, 0) == 0 else {
      throw SystemError(errno: EEXIST, call: "create (its process lives)")
    }
    guard file.remove(at: path) else { throw SystemError(errno: errno, call: "unlink") }
  }
}
