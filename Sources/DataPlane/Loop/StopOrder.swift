// SPDX-License-Identifier: Apache-2.0
//
// The order to stop, from the thread that got the signal to a loop. Source: eventfd(2).

import LinuxIO
import Synchronization

/// One order that can only become more urgent. Any thread gives it; one loop obeys.
public final class StopOrder: Sendable {
  public enum Urgency: Int, Sendable, Comparable {
    case none
    /// Answer what was asked, make all durable, end.
    case drain
    /// End at once.
    case abandon

    public static func < (one: Urgency, other: Urgency) -> Bool { one.rawValue < other.rawValue }
  }

  private let level = Mutex(Urgency.none)
  private let arrival: EventCounter

  public init() throws(SystemError) { arrival = try EventCounter(.polled) }

  /// Becomes readable when the order was given.
  var eventDescriptor: Int32 { arrival.descriptor }

  public func give(_ urgency: Urgency) {
    level.withLock { $0 = max($0, urgency) }
    arrival.signal()
  }

  func take() -> Urgency {
    arrival.take()
    return level.withLock { $0 }
  }
}
