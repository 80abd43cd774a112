// SPDX-License-Identifier: Apache-2.0
//
// The answer to `status` for people. This file performs no I/O.

import ImageTools

/// Renders what a daemon says about its export. What it does not say counts as 0, so that an older
/// daemon can be asked, too.
public enum StatusText {
  public static func text(of status: JSONValue) -> String {
    let sections = [summary(status), commands(status), calls(status)]
    return sections.map { $0.joined(separator: "\n") }.joined(separator: "\n\n") + "\n"
  }

  private static func summary(_ status: JSONValue) -> [String] {
    let cache = status["table-cache"]
    let name = printable(status["export"]?.text)
    let access = status["read-only"]?.bool == true ? ", read-only" : ""
    return TextColumns.lines(
      [.left, .left],
      [
        ["export", "\(name), \(bytes(status, "disk-bytes"))\(access)"],
        ["uptime", duration(number(status, "uptime-seconds"))],
        [
          "clients",
          "\(number(status["connections"], "now")) now, \(number(status["connections"], "total"))"
            + " in all, \(number(status["connections"], "max")) at most",
        ],
        [
          "in flight",
          "\(count(status["requests"], "in-flight", "request")),"
            + " \(count(status["disk"], "in-flight", "disk operation"))",
        ],
        [
          "table cache",
          "\(number(cache, "pages")) of \(number(cache, "pages-max")) pages,"
            + " \(bytes(cache, "bytes")) of \(bytes(cache, "bytes-max")),"
            + " \(number(cache, "dirty-pages")) dirty",
        ],
        ["flushes", "\(number(status, "flushes"))"],
        [
          "allocations",
          "\(count(status["allocations"], "clusters", "cluster")) in"
            + " \(count(status["allocations"], "runs", "run"))",
        ],
        [
          "compression",
          "\(count(status["compression"], "clusters", "cluster")),"
            + " \(bytes(status["compression"], "bytes"))"
            + " in \(bytes(status["compression"], "packed-bytes"))",
        ],
        [
          "polling",
          "\(count(status["spin"], "hits", "hit")),"
            + " \(number(status["spin"], "misses")) in vain",
        ],
      ])
  }

  private static func commands(_ status: JSONValue) -> [String] {
    // Within the first second, what was done counts as done in one.
    let seconds = max(number(status, "uptime-seconds"), 1)
    var rows = [["command", "requests", "per second", "bytes", "errors"]]
    for (_, name) in ControlAnswer.commands {
      let counters = status["commands"]?[name]
      let requests = number(counters, "requests")
      guard requests > 0 else { continue }
      rows.append([
        name, "\(requests)", ratio(requests, seconds), bytes(counters, "bytes"),
        "\(number(counters, "errors"))",
      ])
    }
    let requests = status["requests"]
    let unknown = number(requests, "unknown")
    if unknown > 0 {
      rows.append(["unknown", "\(unknown)", ratio(unknown, seconds), "0 B", "\(unknown)"])
    }
    let total = number(requests, "total")
    rows.append([
      "all", "\(total)", ratio(total, seconds), bytes(requests, "bytes"),
      "\(number(requests, "errors"))",
    ])
    return TextColumns.lines([.left, .right, .right, .right, .right], rows)
  }

  private static func calls(_ status: JSONValue) -> [String] {
    let total = number(status["requests"], "total")
    let calls = status["system-calls"]
    let kinds = [
      ("io-submit", "io_submit"), ("other-disk", "other disk"), ("receive", "receive"),
      ("send", "send"), ("epoll-wait", "epoll_wait"), ("other", "other"),
    ]
    guard total > 0 else { return ["system calls per request: none yet"] }
    let parts = kinds.filter { number(calls, $0.0) > 0 }
      .map { "\($0.1) \(ratio(number(calls, $0.0), total))" }
    return [
      "system calls per request: \(ratio(number(calls, "total"), total))"
        + " (\(parts.joined(separator: ", ")))",
      "disk operations per request: \(ratio(number(status["disk"], "completions"), total))",
    ]
  }

  // MARK: Words

  static func number(_ value: JSONValue?, _ key: String) -> Int64 { value?[key]?.integer ?? 0 }

  static func bytes(_ value: JSONValue?, _ key: String) -> String {
    ByteCountText.describe(UInt64(clamping: number(value, key)))
  }

  /// "1 run", "2 runs".
  private static func count(_ value: JSONValue?, _ key: String, _ noun: String) -> String {
    let number = number(value, key)
    return "\(number) \(noun)\(number == 1 ? "" : "s")"
  }

  /// A name without characters that would move a terminal's cursor.
  static func printable(_ name: String?) -> String {
    String(
      String.UnicodeScalarView(
        (name ?? "").unicodeScalars.map { $0.properties.generalCategory == .control ? "?" : $0 }))
  }

  /// `part / whole` with one decimal, rounded half up. `whole` is not 0.
  static func ratio(_ part: Int64, _ whole: Int64) -> String {
    let (scaled, overflows) = part.multipliedReportingOverflow(by: 20)
    guard !overflows else { return "\(part / whole)" }
    let tenths = (scaled / whole + 1) / 2
    return "\(tenths / 10).\(tenths % 10)"
  }

  /// "4 d 03:02:01", "00:00:07".
  static func duration(_ seconds: Int64) -> String {
    let parts = [seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60]
    let clock = parts.map { $0 < 10 ? "0\($0)" : "\($0)" }.joined(separator: ":")
    return seconds < 86_400 ? clock : "\(seconds / 86_400) d \(clock)"
  }
}
