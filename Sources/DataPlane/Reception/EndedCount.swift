// SPDX-License-Identifier: Apache-2.0
//
// How many loops have ended, for the thread that waits for all of them. Source: eventfd(2).

import LinuxIO
import Synchronization

/// Counts the loops that have ended. Any thread adds; one waits.
public final class EndedCount: Sendable {
  private let number = Mutex(0)
  private let arrival: EventCounter

  public init() throws(SystemError) { arrival = try EventCounter(.polled) }

  var eventDescriptor: Int32 { arrival.descriptor }
  var count: Int { number.withLock { $0 } }

  func takeEvent() { arrival.take() }

  func add() {
    number.withLock { $0 += 1 }
    arrival.signal()
  }
}
