// SPDX-License-Identifier: Apache-2.0
//
// When to look again and again for the next event instead of sleeping. Waking a sleeping thread
// costs more than a small request does, so looking pays while the next request comes soon, and
// only wastes CPU while it does not. This file performs no I/O.

/// Decides, before each wait, whether to spin first. A miss makes it skip twice as many waits as
/// the miss before, so a busy machine or a slow client soon costs next to nothing.
struct SpinPolicy {
  /// log2 of the most waits that are skipped after misses in a row.
  static let missesMax = 10
  /// A look takes less than a microsecond. One that takes this long was not looking: the core was
  /// given to somebody else, perhaps the very client that the spin waits for.
  static let gapNanosecondsMax: UInt64 = 10_000

  /// How long one spin may last; 0 never spins.
  let windowNanoseconds: UInt64
  private var missCount = 0
  private var skipCount = 0
  /// Spins that found an event, and those that did not, since the start.
  private(set) var hitTotal: UInt64 = 0
  private(set) var missTotal: UInt64 = 0

  init(windowNanoseconds: UInt64) { self.windowNanoseconds = windowNanoseconds }

  /// Whether the next wait should begin with a spin.
  mutating func shouldSpin() -> Bool {
    guard windowNanoseconds > 0 else { return false }
    guard skipCount == 0 else {
      skipCount -= 1
      return false
    }
    return true
  }

  /// Learns whether a spin found an event, and how long its last look took.
  mutating func learn(found: Bool, gapNanoseconds: UInt64) {
    if found, gapNanoseconds < SpinPolicy.gapNanosecondsMax {
      missCount = 0
      hitTotal += 1
    } else {
      missTotal += 1
      missCount = min(missCount + 1, SpinPolicy.missesMax)
      skipCount = 1 << missCount - 1
    }
  }
}
