// SPDX-License-Identifier: Apache-2.0
//
// Patterns with * for any bytes and ? for one byte, as fnmatch(3) without brackets and escapes.
// This file performs no I/O.

/// Matching of short texts.
public enum Glob {
  /// Whether all of `text` matches. Time grows with the product of the lengths at most.
  public static func matches(_ text: String, pattern: String) -> Bool {
    let text = Array(text.utf8)
    let pattern = Array(pattern.utf8)
    var position = 0
    var place = 0
    // Where the last star is, and how far the text is that it stands for.
    var star: Int?
    var starEnd = 0
    while position < text.count {
      if place < pattern.count, pattern[place] == UInt8(ascii: "*") {
        star = place
        starEnd = position
        place += 1
      } else if place < pattern.count,
        pattern[place] == UInt8(ascii: "?") || pattern[place] == text[position]
      {
        place += 1
        position += 1
      } else if let star {
        // The star takes one byte more, and the rest is tried again.
        starEnd += 1
        position = starEnd
        place = star + 1
      } else {
        return false
      }
    }
    return pattern[place...].allSatisfy { $0 == UInt8(ascii: "*") }
  }
}
