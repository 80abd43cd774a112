// SPDX-License-Identifier: Apache-2.0
//
// How often a loop asks the kernel, and for what. This file performs no I/O.

/// System calls that the thread of the loop made.
public struct SystemCallCounts: Hashable, Sendable {
  public internal(set) var submit: UInt64 = 0
  /// io_getevents(2), and the plain calls of the sync engine and of table growth.
  public internal(set) var otherDisk: UInt64 = 0
  public internal(set) var receive: UInt64 = 0
  public internal(set) var send: UInt64 = 0
  public internal(set) var wait: UInt64 = 0
  /// epoll_ctl(2), accept(2), memory, timers, the blocking pool.
  public internal(set) var other: UInt64 = 0

  public var total: UInt64 { submit + otherDisk + receive + send + wait + other }
}
