// SPDX-License-Identifier: Apache-2.0
//
// Big-endian fields, made and taken apart. This file performs no I/O.

/// The big-endian bytes of integers, one after the other.
func wire<each T: FixedWidthInteger>(_ values: repeat each T) -> [UInt8] {
  var bytes: [UInt8] = []
  for value in repeat each values {
    for shift in stride(from: value.bitWidth - 8, through: 0, by: -8) {
      bytes.append(UInt8(truncatingIfNeeded: value >> shift))
    }
  }
  return bytes
}

/// `text` with its length of 32 bits in front.
func counted(_ text: String) -> [UInt8] { counted(Array(text.utf8)) }

func counted(_ bytes: [UInt8]) -> [UInt8] { wire(UInt32(bytes.count)) + bytes }

func zeroes(_ count: Int) -> [UInt8] { [UInt8](repeating: 0, count: count) }

/// Takes fields from the front of received bytes; a message that is too short breaks a rule.
struct FieldReader {
  /// What the message is, for the report.
  let what: String
  private let bytes: [UInt8]
  private var position = 0

  init(_ bytes: [UInt8], of what: String) {
    self.bytes = bytes
    self.what = what
  }

  var remainingCount: Int { bytes.count - position }

  mutating func integer<T: FixedWidthInteger & UnsignedInteger>(
    _ type: T.Type = T.self
  ) throws(LintStop) -> T {
    var value: T = 0
    for byte in try take(T.bitWidth / 8) { value = value << 8 | T(byte) }
    return value
  }

  mutating func take(_ count: Int) throws(LintStop) -> ArraySlice<UInt8> {
    try demand(
      count <= remainingCount, "\(what) that holds its fields", got: "\(bytes.count) bytes")
    defer { position += count }
    return bytes[position..<position + count]
  }

  mutating func rest() -> ArraySlice<UInt8> {
    defer { position = bytes.count }
    return bytes[position...]
  }
}

/// Received text for a report: at most 60 characters, none of which moves a cursor.
func shown(_ bytes: some Collection<UInt8>) -> String {
  let text = String(decoding: bytes.prefix(60), as: UTF8.self)
  return String(
    text.unicodeScalars.map { $0.value < 0x20 || $0.value == 0x7f ? "?" : Character($0) })
}

/// The first bytes of a message for a report.
func hexadecimal(_ bytes: some Collection<UInt8>) -> String {
  let text = bytes.prefix(16).map { byte in
    let digits = String(byte, radix: 16)
    return digits.count == 1 ? "0" + digits : digits
  }
  return text.joined(separator: " ") + (bytes.count > 16 ? " …" : "")
}
