// SPDX-License-Identifier: Apache-2.0
//
// Points in time as the people of this machine write them. Source: localtime_r(3); it may read the
// zone's file; clock_gettime(2).

import Glibc

/// Dates in the local time zone.
public enum LocalTime {
  /// "2026-11-23 08:23:47" for a number of seconds since 1970.
  public static func describe(secondsSince1970 seconds: Int64) -> String {
    var time = time_t(seconds)
    // SAFETY: the C call reads a C string and fills a local value during the call only.
    var parts = unsafe tm()
    guard unsafe localtime_r(&time, &parts) != nil else { return "?" }
    let date =
      [Int(unsafe parts.tm_year) + 1900, Int(unsafe parts.tm_mon) + 1]
      + [Int(unsafe parts.tm_mday)]
    let clock = unsafe [parts.tm_hour, parts.tm_min, parts.tm_sec].map(Int.init)
    return date.map(pad).joined(separator: "-") + " " + clock.map(pad).joined(separator: ":")
  }

  /// The time since 1970 in UTC.
  public static var sinceEpoch: (seconds: Int64, nanoseconds: Int64) {
    var now = timespec()
    // SAFETY: the kernel fills a local value during the call.
    _ = unsafe clock_gettime(CLOCK_REALTIME, &now)
    return (Int64(now.tv_sec), Int64(now.tv_nsec))
  }

  private static func pad(_ number: Int) -> String { number < 10 ? "0\(number)" : "\(number)" }
}
