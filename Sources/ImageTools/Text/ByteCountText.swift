// SPDX-License-Identifier: Apache-2.0
//
// Sizes as people write and read them: "10G", "1.5 GiB". This file performs no I/O.

/// Byte counts as text.
public enum ByteCountText {
  private static let suffixes: [Character: UInt64] = [
    "b": 0, "B": 0, "k": 10, "K": 10, "m": 20, "M": 20, "g": 30, "G": 30, "t": 40, "T": 40,
    "p": 50, "P": 50, "e": 60, "E": 60,
  ]

  /// The bytes that `text` means, nil when it means none or more than fit in 63 bits.
  ///
  /// A number of decimal digits, optionally a fraction, optionally one suffix of bkMGTPE in powers
  /// of 1024 (`1.5G`). A fraction needs a suffix above bytes and is rounded down to whole bytes.
  public static func parse(_ text: String) -> UInt64? {
    var digits = text[...]
    var shift: UInt64 = 0
    if let last = digits.last, let known = suffixes[last] {
      shift = known
      digits.removeLast()
    }
    let parts = digits.split(separator: ".", maxSplits: 1, omittingEmptySubsequences: false)
    guard let wholeText = parts.first, isDigits(wholeText), let whole = UInt64(wholeText) else {
      return nil
    }
    let (scaled, overflows) = whole.multipliedReportingOverflow(by: 1 << shift)
    guard !overflows else { return nil }
    var total = scaled
    if parts.count == 2 {
      guard shift > 0, isDigits(parts[1]), parts[1].count <= 9, let part = UInt64(parts[1]) else {
        return nil
      }
      let denominator = (0..<parts[1].count).reduce(UInt64(1)) { product, _ in product * 10 }
      // The product needs up to 90 bits: nine decimal digits times 2^60.
      let product = part.multipliedFullWidth(by: 1 << shift)
      let fraction = denominator.dividingFullWidth(product).quotient
      let (sum, sumOverflows) = total.addingReportingOverflow(fraction)
      guard !sumOverflows else { return nil }
      total = sum
    }
    return total <= UInt64(Int64.max) ? total : nil
  }

  private static func isDigits(_ text: Substring) -> Bool {
    !text.isEmpty && text.utf8.allSatisfy { (0x30...0x39).contains($0) }
  }

  /// "1.5 GiB": three significant digits in the largest unit that gives at least 1, as qemu-img
  /// writes it.
  public static func describe(_ byteCount: UInt64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    // The unit changes a little before the full power, at 1000 of the smaller one.
    var unit = 0
    while unit < 6, byteCount >> UInt64(10 * unit) >= 1000 { unit += 1 }
    return "\(significant(byteCount, shift: UInt64(10 * unit))) \(units[unit])"
  }

  /// `byteCount / 2^shift` with three significant digits and no trailing zeroes.
  private static func significant(_ byteCount: UInt64, shift: UInt64) -> String {
    let whole = byteCount >> shift
    let decimals = whole >= 100 ? 0 : whole >= 10 ? 1 : whole >= 1 ? 2 : 3
    let scale = (0..<decimals).reduce(UInt64(1)) { product, _ in product * 10 }
    // At most 100 * 2^60 * 10, which needs 71 bits.
    let product = byteCount.multipliedFullWidth(by: scale)
    let divisor: UInt64 = 1 << shift
    let (quotient, remainder) = divisor.dividingFullWidth(product)
    // Round half to even, as printf does with an exact binary value.
    let twice = remainder.multipliedReportingOverflow(by: 2)
    let roundsUp =
      twice.partialValue > divisor
      || (twice.partialValue == divisor && quotient % 2 == 1)
    let value = quotient + (roundsUp ? 1 : 0)
    if decimals == 0 { return "\(value)" }
    var text = "\(value % scale)"
    text = String(repeating: "0", count: decimals - text.count) + text
    while text.last == "0" { text.removeLast() }
    return text.isEmpty ? "\(value / scale)" : "\(value / scale).\(text)"
  }
}
