// SPDX-License-Identifier: Apache-2.0
//
// Time that only goes forward. Source: clock_gettime(2), CLOCK_MONOTONIC.

import Glibc

/// The machine's monotonic clock.
public enum MonotonicClock {
  /// Nanoseconds since some fixed point in the past.
  public static var nanoseconds: UInt64 {
    var now = timespec()
    // SAFETY: the kernel fills a local value during the call.
    _ = unsafe clock_gettime(CLOCK_MONOTONIC, &now)
    return UInt64(now.tv_sec) * 1_000_000_000 + UInt64(now.tv_nsec)
  }
}
