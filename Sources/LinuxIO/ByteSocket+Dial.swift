// SPDX-License-Identifier: Apache-2.0
//
// Connecting to TCP addresses, and ending one direction of a connection.
// Source: connect(2), poll(2), shutdown(2), tcp(7).

import CLinux
import Glibc

extension ByteSocket {
  /// Connects to a TCP address within `milliseconds`; ETIMEDOUT when that is too short.
  public static func connect(
    to address: SocketAddress, milliseconds: Int32
  ) throws(SystemError) -> ByteSocket {
    let descriptor = try SystemError.check(
      clinux_socket(address.family, Int32(SOCK_STREAM.rawValue)), "socket")
    let result = address.connect(descriptor)
    guard result == 0 || result == EINPROGRESS else {
      close(descriptor)
      throw SystemError(errno: result, call: "connect")
    }
    // Requests are small and wait for replies; Nagle's delay would only add to that.
    _ = clinux_set_socket_option(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, 1)
    let socket = ByteSocket(adopting: descriptor)
    guard result == EINPROGRESS else { return socket }
    guard socket.wait(for: .output, milliseconds: milliseconds) else {
      throw SystemError(errno: ETIMEDOUT, call: "connect")
    }
    let failure = socket.pendingError
    guard failure == 0 else { throw SystemError(errno: failure, call: "connect") }
    return socket
  }

  /// Sends no more; what comes can still be received.
  public func shutDownSending() { _ = shutdown(descriptor, Int32(SHUT_WR)) }

  /// Ends both directions at once, as the death of a client does.
  public func shutDown() { _ = shutdown(descriptor, Int32(SHUT_RDWR)) }

  /// The error that the kernel noted for this socket, and forgets now; 0 when there is none.
  private var pendingError: Int32 {
    var value: Int32 = 0
    var byteCount = socklen_t(MemoryLayout<Int32>.size)
    // SAFETY: both values outlive the call and have the sizes that are passed.
    let result = unsafe getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &value, &byteCount)
    return result == 0 ? value : errno
  }
}
