// SPDX-License-Identifier: Apache-2.0
//
// Datagrams to and from the kernel. What they mean is somebody else's affair.
// Source: netlink(7), recv(2), poll(2).

import CLinux
import Glibc

/// A socket of generic netlink, connected to the kernel; closed when the value goes away.
public struct NetlinkSocket: ~Copyable {
  /// A longer answer is refused, not cut.
  public static let datagramByteCountMax = 64 << 10

  private let descriptor: Int32

  public init() throws(SystemError) {
    descriptor = try SystemError.check(clinux_generic_netlink(), "socket of generic netlink")
  }

  deinit { close(descriptor) }

  /// Sends one datagram. The kernel acts on it before this returns.
  public func send(_ datagram: [UInt8]) throws(SystemError) {
    while true {
      // SAFETY: the array outlives the call, which reads no more than its count.
      let count = unsafe Glibc.send(descriptor, datagram, datagram.count, Int32(MSG_NOSIGNAL))
      if count == datagram.count { return }
      guard count < 0 else { throw SystemError(errno: EMSGSIZE, call: "send to the kernel") }
      guard errno == EINTR else { throw SystemError(errno: errno, call: "send to the kernel") }
    }
  }

  /// Receives one datagram; ETIMEDOUT when none comes within `milliseconds`.
  public func receive(milliseconds: Int32) throws(SystemError) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: Self.datagramByteCountMax)
    let deadline = MonotonicClock.nanoseconds + UInt64(milliseconds) * 1_000_000
    while true {
      // SAFETY: the kernel writes at most as many bytes as the array has.
      let count = unsafe clinux_receive_datagram(descriptor, &bytes, bytes.count)
      if count >= 0 {
        guard count <= bytes.count else {
          throw SystemError(errno: EMSGSIZE, call: "receive from the kernel")
        }
        return Array(bytes[..<Int(count)])
      }
      guard count == -Int64(EAGAIN) || count == -Int64(EINTR) else {
        throw SystemError(errno: Int32(-count), call: "receive from the kernel")
      }
      let now = MonotonicClock.nanoseconds
      guard now < deadline else {
        throw SystemError(errno: ETIMEDOUT, call: "receive from the kernel")
      }
      var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
      // SAFETY: one entry outlives the call. An interruption counts as an end of the wait.
      _ = unsafe poll(&entry, 1, Int32((deadline - now) / 1_000_000 + 1))
    }
  }
}
