// SPDX-License-Identifier: Apache-2.0
//
// A part of this program that goes on in a process of its own. Source: fork(2), socketpair(2),
// close_range(2), waitpid(2).

import CLinux
import Glibc

/// A child and the socket to it. It is told to end by the end of the socket, and waited for.
public struct ChildProcess: ~Copyable {
  public let socket: ByteSocket
  private let number: Int32

  /// Splits the process, which must have one thread. The child has the standard streams and its
  /// end of the socket and nothing else, ignores the signals that stop its parent, and ends when
  /// `body` returns.
  public init(_ body: (borrowing ByteSocket) -> Void) throws(SystemError) {
    var ends: [Int32] = [0, 0]
    // SAFETY: the array has room for both descriptors.
    _ = try SystemError.check(unsafe clinux_socket_pair(&ends), "socketpair")
    let child: Int32
    do throws(SystemError) {
      child = try SystemError.check(clinux_fork(), "fork")
    } catch {
      close(ends[0])
      close(ends[1])
      throw error
    }
    if child == 0 { ChildProcess.live(ends[1], body) }
    close(ends[1])
    socket = ByteSocket(adopting: ends[0])
    number = child
  }

  private static let firstDescriptor: Int32 = 3

  private static func live(_ end: Int32, _ body: (borrowing ByteSocket) -> Void) -> Never {
    for name in [SIGTERM, SIGINT, SIGHUP] { signal(name, SIG_IGN) }
    if end != firstDescriptor { dup2(end, firstDescriptor) }
    guard clinux_close_from(firstDescriptor + 1) == 0 else { _exit(1) }
    body(ByteSocket(adopting: firstDescriptor))
    _exit(0)
  }

  deinit {
    shutdown(socket.descriptor, Int32(SHUT_RDWR))
    var status: Int32 = 0
    // SAFETY: `status` outlives the call.
    while unsafe waitpid(number, &status, 0) < 0, errno == EINTR {}
  }
}

extension ByteSocket {
  /// Receives exactly `count` bytes; nil when the other end is gone, or silent for
  /// `milliseconds` (-1: for ever).
  public func receiveAll(_ count: Int, milliseconds: Int32) -> [UInt8]? {
    var bytes: [UInt8] = []
    while bytes.count < count {
      switch receive(byteCountMax: min(count - bytes.count, 1 << 20)) {
      case .bytes(let more): bytes += more
      case .closed: return nil
      case .wouldBlock: guard wait(for: .input, milliseconds: milliseconds) else { return nil }
      }
    }
    return bytes
  }

  /// Sends all of `bytes`; false when the other end is gone, or takes nothing for `milliseconds`.
  public func sendAll(_ bytes: [UInt8], milliseconds: Int32) -> Bool {
    var sent = 0
    while sent < bytes.count {
      switch send(bytes[sent...]) {
      case .bytes(let count): sent += count
      case .closed: return false
      case .wouldBlock: guard wait(for: .output, milliseconds: milliseconds) else { return false }
      }
    }
    return true
  }
}
