// SPDX-License-Identifier: Apache-2.0
//
// Integers in headers, in either byte order. This file performs no I/O.

import BlockTypes

extension [UInt8] {
  /// The little-endian integer at `offset`. Traps outside the array: callers check bounds first.
  func littleEndian<Integer: FixedWidthInteger & UnsignedInteger & BitwiseCopyable>(
    _ type: Integer.Type, at offset: Int
  ) -> Integer {
    loadBigEndian(type, at: offset).byteSwapped
  }

  func bigEndian<Integer: FixedWidthInteger & UnsignedInteger & BitwiseCopyable>(
    _ type: Integer.Type, at offset: Int
  ) -> Integer {
    loadBigEndian(type, at: offset)
  }

  /// The bytes as text, up to the first NUL.
  func text(at offset: Int, byteCount: Int) -> String {
    String(decoding: self[offset..<(offset + byteCount)].prefix { $0 != 0 }, as: UTF8.self)
  }
}
