// SPDX-License-Identifier: Apache-2.0
//
// Waiting for descriptors. Source: epoll(7).

import CLinux
import Glibc

/// An epoll instance and the events of its last wait.
@safe public struct EventLoop: ~Copyable {
  /// What a descriptor is watched for, and what happened to it.
  public struct Interest: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let readable = Interest(rawValue: EPOLLIN.rawValue)
    public static let writable = Interest(rawValue: EPOLLOUT.rawValue)
    public static let failed = Interest(rawValue: EPOLLERR.rawValue | EPOLLHUP.rawValue)
  }

  static let eventsMax = 128
  /// Readable while there are events.
  public let descriptor: Int32
  private var events: FixedArray<epoll_event>
  /// Calls of epoll_wait(2), those of a spin among them.
  public private(set) var waitCount: UInt64 = 0

  public init() throws(SystemError) {
    descriptor = try SystemError.check(clinux_epoll_create(), "epoll_create1")
    unsafe events = FixedArray(count: EventLoop.eventsMax) { _ in unsafe epoll_event() }
  }

  deinit { close(descriptor) }

  /// Starts watching; `token` comes back with the events.
  public func add(_ watched: Int32, _ interest: Interest, token: UInt64) throws(SystemError) {
    _ = try SystemError.check(
      clinux_epoll_control(descriptor, EPOLL_CTL_ADD, watched, interest.rawValue, token),
      "epoll_ctl")
  }

  public func change(_ watched: Int32, _ interest: Interest, token: UInt64) {
    let result = clinux_epoll_control(
      descriptor, EPOLL_CTL_MOD, watched, interest.rawValue, token)
    precondition(result == 0, "a watched descriptor cannot be changed")
  }

  public func remove(_ watched: Int32) {
    let result = clinux_epoll_control(descriptor, EPOLL_CTL_DEL, watched, 0, 0)
    precondition(result == 0, "a watched descriptor cannot be removed")
  }

  /// Waits up to `timeoutMilliseconds` (-1: for ever) and returns how many events there are.
  public mutating func wait(timeoutMilliseconds: Int32) -> Int {
    waitCount += 1
    // SAFETY: the array holds `eventsMax` elements and lives as long as this value.
    let count = unsafe clinux_epoll_wait(
      descriptor, events.base, Int32(EventLoop.eventsMax), timeoutMilliseconds)
    if count == -EINTR { return 0 }
    precondition(count >= 0, "epoll_wait refuses its own descriptor")
    return Int(count)
  }

  public func event(_ index: Int) -> (token: UInt64, what: Interest) {
    var event = unsafe events[index]
    let token = unsafe clinux_epoll_token(&event)
    return (token, Interest(rawValue: unsafe event.events))
  }
}
