// SPDX-License-Identifier: Apache-2.0
//
// Back-pressure is not reading: a client whose next request finds no buffer of its share keeps its
// bytes in the socket, and nobody else waits. This file performs no I/O.

import BlockTypes
import LinuxIO
import NBDProtocol

extension ExportLoop {
  mutating func stall(_ index: Int) {
    guard !connections[index].isStalled else { return }
    connections[index].isStalled = true
    stalledCount += 1
  }

  /// Lets clients go on that waited for a slot or a buffer. Returns whether one did.
  mutating func resumeStalled() -> Bool {
    guard stalledCount > 0 else { return false }
    var resumed = false
    for index in 0..<connections.capacity {
      guard connections.isOccupied(index), connections[index].isStalled else { continue }
      let before = connections[index].received
      connections[index].isStalled = false
      stalledCount -= 1
      parse(index)
      guard connections.isOccupied(index) else {
        resumed = true
        continue
      }
      if !connections[index].isStalled, !connections[index].isWatched || hasUndecrypted(index) {
        if receive(index) { resumed = true }
      }
      resumed = resumed || !connections.isOccupied(index) || connections[index].received != before
    }
    return resumed
  }

  /// Watches for what the connection can use now.
  mutating func updateInterest(_ index: Int) {
    guard connections[index].isWatched else { return }
    var wanted: EventLoop.Interest = []
    switch connections[index].phase {
    case .transmission:
      if !connections[index].isStalled { wanted.insert(.readable) }
    case .finishing: break
    }
    if connections[index].isBlockedOnSend { wanted.insert(.writable) }
    guard wanted != connections[index].interest else { return }
    connections[index].interest = wanted
    counters.otherCallCount += 1
    events.change(
      connections[index].socket.descriptor, wanted, token: Source.connection.token(index))
  }
}
