// SPDX-License-Identifier: Apache-2.0
//
// What a loop did since it began. This file performs no I/O.

import NBDProtocol

/// Plain counters of one loop; its thread increments them, and nobody else looks.
struct LoopCounters {
  /// By the command's number on the wire, of which `resize` is the last.
  var commands: [9 of CommandCounters] = .init(repeating: CommandCounters())
  var unknownRequestCount: UInt64 = 0
  var connectionTotal: UInt64 = 0
  var receiveCallCount: UInt64 = 0
  var sendCallCount: UInt64 = 0
  /// epoll_ctl(2), accept(2), close(2), reads of timers and mail.
  var otherCallCount: UInt64 = 0

  /// Counts a request that is being answered; `byteCount` is what it spanned of the disk.
  @inline(__always)
  mutating func countAnswer(_ command: Command, byteCount: UInt64, isError: Bool) {
    let number = Int(command.rawValue)
    commands[number].requestCount += 1
    if isError {
      commands[number].errorCount += 1
    } else {
      // Wraps after 2^64 bytes, which no disk moves in the life of a process.
      commands[number].byteCount &+= byteCount
    }
  }
}
