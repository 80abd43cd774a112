// SPDX-License-Identifier: Apache-2.0
//
// Letting time pass, for tools that have nothing else to wait for. Source: usleep(3).

import Glibc

extension MonotonicClock {
  /// Returns after about this time, or earlier when a signal comes.
  public static func sleep(milliseconds: UInt32) { usleep(milliseconds * 1000) }
}

extension SystemError {
  /// Whether the call may succeed later without anybody's doing.
  public var isTryAgain: Bool { errno == EAGAIN || errno == EINTR }
}
