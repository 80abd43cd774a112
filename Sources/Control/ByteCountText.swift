// SPDX-License-Identifier: Apache-2.0
//
// Sizes as people write them: `512`, `64k`, `32M`. This file performs no I/O.

/// Reads sizes.
public enum ByteCountText {
  /// A decimal number with an optional suffix k, M, G or T (powers of 1,024, either case).
  ///
  /// - Returns: nil for anything else, and for what does not fit in 64 bits.
  public static func parse(_ text: String) -> UInt64? {
    var digits = text[...]
    var shift: UInt64 = 0
    if let last = text.last, let power = "kmgt".firstIndex(of: Character(last.lowercased())) {
      shift = 10 * UInt64("kmgt".distance(from: "kmgt".startIndex, to: power) + 1)
      digits = digits.dropLast()
    }
    guard !digits.isEmpty,
      digits.utf8.allSatisfy({ UInt8(ascii: "0")...UInt8(ascii: "9") ~= $0 }),
      let number = UInt64(digits)
    else { return nil }
    let (product, overflows) = number.multipliedReportingOverflow(by: 1 << shift)
    return overflows ? nil : product
  }
}
