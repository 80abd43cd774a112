// SPDX-License-Identifier: Apache-2.0
//
// The path of a UNIX socket, and what is to be done about a file that is there already.
// Source: unix(7), umask(2), flock(2).

import CLinux
import Glibc

/// Where a UNIX socket is, or will be.
public struct UnixSocketPath: Hashable, Sendable {
  public let text: String

  /// `sun_path` has 108 bytes, the last of which is zero (unix(7), "Pathname sockets").
  public static let byteCountMax = 107

  public init(_ text: String) throws(SocketError) {
    let byteCount = text.utf8.count
    guard byteCount > 0 else { throw .pathEmpty }
    guard byteCount <= UnixSocketPath.byteCountMax else {
      throw .pathTooLong(byteCount: byteCount)
    }
    self.text = text
  }

  /// Binds `socket` here, so that the file has exactly `mode` from its first moment.
  func bind(_ socket: Int32, mode: UInt32) throws(SocketError) {
    let bytes = Array(text.utf8)
    let formerMask = umask(~mode & 0o777)
    defer { umask(formerMask) }
    // SAFETY: the bytes outlive the call, which copies them.
    let result = unsafe clinux_bind_unix(socket, bytes, bytes.count)
    guard result == 0 else { throw .system(SystemError(errno: -result, call: "bind")) }
  }

  /// Removes the socket of a server that is gone; throws when it must stay.
  ///
  /// Nothing but a socket is ever removed, and only when a connection to it is refused and its
  /// owner is in `ownerIDs`.
  func removeStale(ownerIDs: [UInt32]) throws(SocketError) {
    guard let file = FileIdentity(ofPath: text) else { return }
    guard file.isSocket else { throw .notASocket }
    let bytes = Array(text.utf8)
    let probe = clinux_socket(AF_UNIX, Int32(SOCK_STREAM.rawValue))
    guard probe >= 0 else { throw .system(SystemError(errno: -probe, call: "socket")) }
    defer { close(probe) }
    // SAFETY: the bytes outlive the call, which copies them.
    switch unsafe clinux_connect_unix(probe, bytes, bytes.count) {
    case -ECONNREFUSED: break
    case -ENOENT: return
    // A full backlog and a datagram socket are signs of life, too.
    case 0, -EAGAIN, -EINPROGRESS, -EPROTOTYPE: throw .taken
    case let result: throw .system(SystemError(errno: -result, call: "connect"))
    }
    guard ownerIDs.contains(file.ownerID) else { throw .foreign(ownerID: file.ownerID) }
    // SAFETY: the path outlives the call.
    guard unsafe unlink(text) == 0 || errno == ENOENT else {
      throw .system(SystemError(errno: errno, call: "unlink"))
    }
  }

  /// Calls `body` while no other server that asks is looking for stale sockets in this folder.
  ///
  /// The lock is advisory and on the folder itself, so no file is left behind. Whoever may read
  /// the folder could hold it: after two seconds, or without permission, `body` runs all the same.
  func withFolderLocked(_ body: () throws(SocketError) -> Void) throws(SocketError) {
    // SAFETY: the path outlives the call.
    let folder = unsafe clinux_open(folderText, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0)
    defer { if folder >= 0 { close(folder) } }
    if folder >= 0 {
      for _ in 0..<200 where flock(folder, LOCK_EX | LOCK_NB) != 0 { usleep(10_000) }
    }
    try body()
  }

  private var folderText: String {
    guard let slash = text.lastIndex(of: "/") else { return "." }
    return slash == text.startIndex ? "/" : String(text[..<slash])
  }
}
