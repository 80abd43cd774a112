// SPDX-License-Identifier: Apache-2.0
//
// Two sockets that are connected to each other, and waiting for several at once.
// Source: socketpair(2), poll(2).

import CLinux
import Glibc

extension ByteSocket {
  /// Makes two ends; what is sent at one is received at the other. The caller adopts both.
  public static func pair() throws(SystemError) -> (near: Int32, far: Int32) {
    var ends: [Int32] = [0, 0]
    // SAFETY: the array has room for both descriptors.
    _ = try SystemError.check(unsafe clinux_socket_pair(&ends), "socketpair")
    return (ends[0], ends[1])
  }

  /// What a socket is waited for; one with neither is left alone.
  public struct Interest: Sendable {
    public let descriptor: Int32
    public let input: Bool
    public let output: Bool

    public init(_ descriptor: Int32, input: Bool, output: Bool) {
      self.descriptor = descriptor
      self.input = input
      self.output = output
    }

    fileprivate var entry: pollfd {
      let events = (input ? Int16(POLLIN) : 0) | (output ? Int16(POLLOUT) : 0)
      return pollfd(fd: events == 0 ? -1 : descriptor, events: events, revents: 0)
    }
  }

  /// Waits until one of the sockets can be used as it is wanted to be, or has failed.
  ///
  /// - Returns: whether the last one is among those.
  @discardableResult
  public static func wait(_ interests: [Interest], milliseconds: Int32) -> Bool {
    var entries = interests.map(\.entry)
    // SAFETY: the entries outlive the call. An interruption counts as an end of the wait.
    let count = unsafe poll(&entries, nfds_t(entries.count), milliseconds)
    return count > 0 && entries.last?.revents != 0
  }
}
