// SPDX-License-Identifier: Apache-2.0
//
// A file with patterns for the names of clients, which may change while the server runs.

import LinuxIO

/// The patterns of one file, read again when they are a second old. One thread uses it.
final class NameList {
  private static let nanosecondsMax: UInt64 = 1_000_000_000

  private let path: String
  private let read: (String) throws(ControlError) -> [UInt8]
  private var known: [String]
  private var readAt: UInt64

  /// Reads the file for the first time, by `read`.
  init(
    _ path: String, read: @escaping (String) throws(ControlError) -> [UInt8]
  ) throws(ControlError) {
    self.path = path
    self.read = read
    known = NameList.parse(try read(path))
    readAt = MonotonicClock.nanoseconds
  }

  /// The patterns as the file has them, or had them when it could be read last: a file that is
  /// being replaced lets nobody else in and nobody out.
  var patterns: [String] {
    let now = MonotonicClock.nanoseconds
    if now - readAt >= NameList.nanosecondsMax {
      readAt = now
      do throws(ControlError) { known = NameList.parse(try read(path)) } catch {}
    }
    return known
  }

  /// One pattern a line; empty lines and those that start with # say nothing.
  static func parse(_ bytes: [UInt8]) -> [String] {
    bytes.split(separator: UInt8(ascii: "\n")).compactMap { line in
      let text = String(decoding: line, as: UTF8.self)
      let trimmed = text.drop(while: \.isWhitespace)
      let end = trimmed.lastIndex { !$0.isWhitespace }
      guard let end, !trimmed.hasPrefix("#") else { return nil }
      return String(trimmed[...end])
    }
  }
}
