// SPDX-License-Identifier: Apache-2.0
//
// Big-endian integers in arrays of bytes, for headers and tables that are read whole and off the
// hot path. Spec: qcow2.rst, "General". This file performs no I/O.

import BlockTypes

extension [UInt8] {
  /// The big-endian integer at `offset`. Traps outside the array: callers check bounds first.
  package func bigEndianInteger<Integer: FixedWidthInteger & UnsignedInteger & BitwiseCopyable>(
    _ type: Integer.Type, at offset: Int
  ) -> Integer {
    loadBigEndian(type, at: offset)
  }

  /// All whole 64-bit big-endian integers, from the start on: a table of entries.
  package func bigEndianWords() -> [UInt64] {
    var words = [UInt64](repeating: 0, count: count / 8)
    // Not generic, and one bounds check for each word: tables have millions of entries.
    for index in words.indices {
      let bytes = self[(8 * index)..<(8 * index + 8)]
      var word: UInt64 = 0
      for byte in bytes { word = word << 8 | UInt64(byte) }
      words[index] = word
    }
    return words
  }

  /// Overwrites the bytes at `offset` with `value`. Traps outside the array.
  package mutating func putBigEndian(
    _ value: some FixedWidthInteger & UnsignedInteger, at offset: Int
  ) {
    let byteCount = value.bitWidth / 8
    for index in 0..<byteCount {
      self[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * (byteCount - 1 - index)))
    }
  }

  package mutating func appendBigEndian(_ value: some FixedWidthInteger & UnsignedInteger) {
    let byteCount = value.bitWidth / 8
    for index in 0..<byteCount {
      append(UInt8(truncatingIfNeeded: value >> (8 * (byteCount - 1 - index))))
    }
  }
}
