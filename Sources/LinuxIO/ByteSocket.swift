// SPDX-License-Identifier: Apache-2.0
//
// A connected stream socket for small messages in arrays; requests of guests go through
// `StreamSocket`. Source: unix(7), recv(2), send(2), poll(2), shutdown(2).

import CLinux
import Glibc

/// A connected socket that does not wait unless told to; closed when the value goes away.
public struct ByteSocket: ~Copyable {
  /// What a receive brought.
  public enum Received {
    /// At least one byte.
    case bytes([UInt8])
    case wouldBlock
    /// The other end sends no more.
    case closed
  }

  /// What to wait for.
  public enum Direction: Sendable { case input, output }

  public let descriptor: Int32

  public init(adopting descriptor: Int32) { self.descriptor = descriptor }

  deinit { close(descriptor) }

  /// Accepts the next connection of a listening descriptor; nil when none waits.
  public static func accept(from listener: Int32) throws(SystemError) -> ByteSocket? {
    let result = clinux_accept(listener)
    if result == -EAGAIN || result == -ECONNABORTED || result == -EINTR { return nil }
    return ByteSocket(adopting: try SystemError.check(result, "accept"))
  }

  /// Connects to a UNIX socket; EAGAIN when too many others wait for it.
  public init(connectingTo path: UnixSocketPath) throws(SystemError) {
    let descriptor = try SystemError.check(
      clinux_socket(AF_UNIX, Int32(SOCK_STREAM.rawValue)), "socket")
    let bytes = Array(path.text.utf8)
    // SAFETY: the bytes outlive the call, which copies them.
    let result = unsafe clinux_connect_unix(descriptor, bytes, bytes.count)
    guard result == 0 else {
      close(descriptor)
      throw SystemError(errno: -result, call: "connect")
    }
    self.init(adopting: descriptor)
  }

  /// Receives what is there, at most `byteCountMax` bytes.
  public func receive(byteCountMax: Int) -> Received {
    var bytes = [UInt8](repeating: 0, count: byteCountMax)
    while true {
      // SAFETY: the kernel writes at most `byteCountMax` bytes into the array's own storage.
      let count = unsafe recv(descriptor, &bytes, byteCountMax, Int32(MSG_DONTWAIT))
      if count > 0 { return .bytes(Array(bytes[..<count])) }
      if count == 0 { return .closed }
      if errno == EAGAIN { return .wouldBlock }
      if errno != EINTR { return .closed }
    }
  }

  /// Sends `bytes` or as many of them as the socket takes now.
  public func send(_ bytes: ArraySlice<UInt8>) -> StreamSocket.Transfer {
    guard !bytes.isEmpty else { return .bytes(0) }
    while true {
      // SAFETY: the slice's storage is held during the call.
      let count = unsafe bytes.withUnsafeBytes { buffer in
        unsafe Glibc.send(
          descriptor, buffer.baseAddress, buffer.count,
          Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL))
      }
      if count >= 0 { return .bytes(count) }
      if errno == EAGAIN { return .wouldBlock }
      if errno != EINTR { return .closed }
    }
  }

  /// Waits until the socket can be used, or has failed; false when `milliseconds` pass before.
  public func wait(for direction: Direction, milliseconds: Int32) -> Bool {
    var entry = pollfd(
      fd: descriptor, events: Int16(direction == .input ? POLLIN : POLLOUT), revents: 0)
    // SAFETY: one entry outlives the call. An interruption counts as an end of the wait.
    return unsafe poll(&entry, 1, milliseconds) != 0
  }
}
