// SPDX-License-Identifier: Apache-2.0
//
// Reads the fields of an option's data, one after the other. This file performs no I/O.

/// A cursor over the bytes of one option. A field that passes the end reads as nil.
struct PayloadReader {
  private let bytes: [UInt8]
  private var position = 0

  init(_ bytes: [UInt8]) { self.bytes = bytes }

  var isAtEnd: Bool { position == bytes.count }

  /// Reads a big-endian integer.
  mutating func readInteger<T: FixedWidthInteger & UnsignedInteger>(_ type: T.Type) -> T? {
    guard let field = readBytes(count: T.bitWidth / 8) else { return nil }
    return field.reduce(0) { $0 << 8 | T($1) }
  }

  /// Reads a length of 32 bits and as many bytes behind it.
  mutating func readCountedBytes() -> ArraySlice<UInt8>? {
    guard let count = readInteger(UInt32.self) else { return nil }
    return readBytes(count: Int(count))
  }

  private mutating func readBytes(count: Int) -> ArraySlice<UInt8>? {
    guard count <= bytes.count - position else { return nil }
    defer { position += count }
    return bytes[position..<position + count]
  }
}
