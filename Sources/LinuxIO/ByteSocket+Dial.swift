// SPDX-License-Identifier: Apache-2.0
//
// Connecting to a server without waiting, receiving into memory that is kept, and ending one
// direction of a connection.
// Source: connect(2) ("EINPROGRESS"), vsock(7), tcp(7), recv(2), poll(2), shutdown(2).

import CLinux
import Glibc

extension ByteSocket {
  /// Starts connecting to a TCP address. When the socket can be written, ask `connectionError`.
  public init(connectingTo address: SocketAddress) throws(SystemError) {
    let descriptor = try SystemError.check(
      clinux_socket(address.family, Int32(SOCK_STREAM.rawValue)), "socket")
    // Without it a small request may wait 40 ms for an ACK. It is a wish, not a need.
    _ = clinux_set_socket_option(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, 1)
    let result = address.connect(descriptor)
    guard result == 0 || result == EINPROGRESS else {
      close(descriptor)
      throw SystemError(errno: result, call: "connect")
    }
    self.init(adopting: descriptor)
  }

  /// Starts connecting to a port of a virtual machine, or of its host.
  public init(connectingToVsock contextID: UInt32, port: UInt32) throws(SystemError) {
    let descriptor = try SystemError.check(
      clinux_socket(AF_VSOCK, Int32(SOCK_STREAM.rawValue)), "socket")
    let result = clinux_connect_vsock(descriptor, contextID, port)
    guard result == 0 || result == -EINPROGRESS else {
      close(descriptor)
      throw SystemError(errno: -result, call: "connect")
    }
    self.init(adopting: descriptor)
  }

  /// How the attempt to connect has ended; nil when it was successful.
  public func connectionError() -> SystemError? {
    var number: Int32 = 0
    var byteCount = socklen_t(MemoryLayout<Int32>.size)
    // SAFETY: both outlive the call, which writes at most `byteCount` bytes.
    let result = unsafe getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &number, &byteCount)
    if result != 0 { number = errno }
    return number == 0 ? nil : SystemError(errno: number, call: "connect")
  }

  /// Receives what is there, at most as many bytes as the array has, to its start.
  public func receive(into bytes: inout [UInt8]) -> StreamSocket.Transfer {
    let byteCountMax = bytes.count
    while true {
      // SAFETY: the kernel writes at most `byteCountMax` bytes into the array's own storage.
      let count = unsafe recv(descriptor, &bytes, byteCountMax, Int32(MSG_DONTWAIT))
      if count > 0 { return .bytes(count) }
      if count == 0 { return .closed }
      if errno == EAGAIN { return .wouldBlock }
      if errno != EINTR { return .closed }
    }
  }

  /// Sends no more; what comes can still be received.
  public func shutDownSending() { _ = shutdown(descriptor, Int32(SHUT_WR)) }

  /// Ends both directions at once, as the death of a client does.
  public func shutDown() { _ = shutdown(descriptor, Int32(SHUT_RDWR)) }

  /// Waits until a socket has input (or, if wanted, takes output), until `bell` rings, or until
  /// `milliseconds` pass (-1: for ever). A descriptor of -1 is not waited for.
  public static func wait(
    socket: Int32, forOutput: Bool, bell: Int32, milliseconds: Int32
  ) {
    let events = Int16(POLLIN) | (forOutput ? Int16(POLLOUT) : 0)
    var entries = [
      pollfd(fd: socket, events: events, revents: 0),
      pollfd(fd: bell, events: Int16(POLLIN), revents: 0),
    ]
    // SAFETY: two entries outlive the call. An interruption counts as an end of the wait.
    _ = unsafe poll(&entries, 2, milliseconds)
  }
}
