// SPDX-License-Identifier: Apache-2.0
//
// A counter that wakes a waiter. Source: eventfd(2), timerfd_create(2), signalfd(2).

import CLinux
import Glibc

/// An eventfd.
public struct EventCounter: ~Copyable, Sendable {
  public enum Mode: Sendable {
    /// Reads do not wait and take the whole count.
    case polled
    /// Reads wait and take one.
    case semaphore
  }

  public let descriptor: Int32

  public init(_ mode: Mode) throws(SystemError) {
    descriptor = try SystemError.check(
      clinux_eventfd(mode == .semaphore ? 1 : 0, mode == .polled ? 1 : 0), "eventfd")
  }

  deinit { close(descriptor) }

  public func signal() {
    var one: UInt64 = 1
    // SAFETY: eight bytes of a local variable, as eventfd(2) asks for; here and in `take`.
    let written = unsafe write(descriptor, &one, 8)
    precondition(written == 8, "an event counter overflowed")
  }

  /// Takes the count: all of it when polled, one (waiting for it) as a semaphore.
  public func take() {
    var count: UInt64 = 0
    while unsafe read(descriptor, &count, 8) < 0, errno == EINTR {}
  }
}

/// A timer that fires again and again.
public struct IntervalTimer: ~Copyable {
  public let descriptor: Int32

  public init(milliseconds: Int64) throws(SystemError) {
    descriptor = try SystemError.check(clinux_timerfd(), "timerfd_create")
    restart(milliseconds: milliseconds)
  }

  /// Begins anew, from now on with this interval.
  public func restart(milliseconds: Int64) {
    let result = clinux_timerfd_arm(descriptor, milliseconds)
    precondition(result == 0, "a timer refuses its interval")
  }

  deinit { close(descriptor) }

  /// Forgets the expirations so far.
  public func take() {
    var count: UInt64 = 0
    _ = unsafe read(descriptor, &count, 8)
  }
}
