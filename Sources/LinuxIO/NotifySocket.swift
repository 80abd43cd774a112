// SPDX-License-Identifier: Apache-2.0
//
// What a service says about itself to its manager. Source: sd_notify(3), "Notes" (the protocol
// is text datagrams to the UNIX socket that NOTIFY_SOCKET names).

import CLinux
import Glibc

/// A datagram socket that is connected to the service manager; closed when the value goes away.
///
/// Connected before privileges are dropped, so that its path need not be reached afterwards.
public struct NotifySocket: ~Copyable {
  private let descriptor: Int32

  /// `address` is a path, or `@` and an abstract name.
  public init(address: String) throws(SystemError) {
    var bytes = Array(address.utf8)
    if bytes.first == UInt8(ascii: "@") { bytes[0] = 0 }
    let descriptor = try SystemError.check(
      clinux_socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue)), "socket")
    // SAFETY: the bytes outlive the call, which copies them.
    let result = unsafe clinux_connect_unix(descriptor, bytes, bytes.count)
    guard result == 0 else {
      close(descriptor)
      throw SystemError(errno: -result, call: "connect")
    }
    self.descriptor = descriptor
  }

  deinit { close(descriptor) }

  /// Sends `NAME=value` lines; a manager that is gone is no reason to fail.
  public func send(_ text: String) {
    let bytes = Array(text.utf8)
    // SAFETY: the bytes outlive the call.
    _ = unsafe Glibc.send(descriptor, bytes, bytes.count, Int32(MSG_NOSIGNAL))
  }
}
