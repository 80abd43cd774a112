// SPDX-License-Identifier: Apache-2.0
//
// What the loop does when nothing can go on: look at the one client that keeps it busy, spin, or
// sleep. No I/O but the waiting itself.

import LinuxIO

/// The client to look at before the event loop is asked, while it is the only one and keeps more
/// than one request in flight: its next bytes are mostly there already.
struct LoneClient {
  /// Looks in a row after which the event loop is asked all the same, so that whoever else wants
  /// something (a new client, a signal, the timer) waits for a few batches at most.
  static let looksMax = 16

  /// The place of the client; -1 for none.
  private(set) var place = -1
  private var lookCount = 0

  /// Whether to look at the client before the next wait.
  mutating func shouldLook() -> Bool {
    guard place >= 0 else { return false }
    lookCount += 1
    if lookCount <= LoneClient.looksMax { return true }
    lookCount = 0
    return false
  }

  mutating func watch(_ place: Int) {
    self.place = place
    lookCount = 0
  }

  mutating func forget() { place = -1 }
}

extension ExportLoop {
  /// Waits for events and returns their number; does not wait while requests can go on.
  mutating func waitForEvents() -> Int {
    if !image.ready.isEmpty || !image.deferred.isEmpty {
      return events.wait(timeoutMilliseconds: 0)
    }
    if lookAtLoneClient() { return 0 }
    if connections.count > 0, spin.shouldSpin() {
      if let count = spinForEvents() { return count }
    }
    guard image.disks.mustWait else { return events.wait(timeoutMilliseconds: -1) }
    guard image.disks.wait(orReadable: events.descriptor) else { return 0 }
    return events.wait(timeoutMilliseconds: 0)
  }

  /// Receives from the one client that keeps the loop busy; returns whether it had sent anything.
  private mutating func lookAtLoneClient() -> Bool {
    guard lone.shouldLook() else { return false }
    let place = lone.place
    if connections.count == 1, connections.isOccupied(place), connections[place].isWatched,
      receive(place)
    {
      return true
    }
    lone.forget()
    return false
  }

  /// Looks for events and completions again and again; nil when the window ended without any.
  private mutating func spinForEvents() -> Int? {
    let start = MonotonicClock.nanoseconds
    var last = start
    while true {
      let count = events.wait(timeoutMilliseconds: 0)
      let now = MonotonicClock.nanoseconds
      if count > 0 || image.disks.hasCompletion {
        spin.learn(found: true, gapNanoseconds: now - last)
        return count
      }
      if now - start >= spin.windowNanoseconds {
        spin.learn(found: false, gapNanoseconds: now - last)
        return nil
      }
      last = now
    }
  }
}
