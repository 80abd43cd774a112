// SPDX-License-Identifier: Apache-2.0
//
// Reference counts of 1 to 64 bits, packed in a refcount block.
// Spec: qcow2.rst, "Host cluster management". No I/O.

import BlockTypes

/// Reads and writes the packed reference counts of a refcount block, or of a slice of one.
///
/// Widths below a byte are packed from the least significant bit on; wider ones are big-endian.
@frozen public enum Refcount {
  /// Returns the count at `index` of counts that are `1 << order` bits wide.
  @inlinable public static func load(_ bytes: RawSpan, at index: Int, order: Int) -> UInt64 {
    if order < 3 {
      let perByteBits = 3 - order
      let byte = bytes.loadByte(at: index >> perByteBits)
      let shift = (index & ((1 << perByteBits) - 1)) << order
      return UInt64(byte >> UInt8(shift)) & ((1 << (1 << UInt64(order))) - 1)
    }
    let byteCount = 1 << (order - 3)
    var value: UInt64 = 0
    for byte in 0..<byteCount {
      value = value << 8 | UInt64(bytes.loadByte(at: index * byteCount + byte))
    }
    return value
  }

  /// Stores `value` at `index`; it must fit in `1 << order` bits.
  @inlinable public static func store(
    _ value: UInt64, to bytes: inout MutableRawSpan, at index: Int, order: Int
  ) {
    precondition(
      order == 6 || value < 1 << (1 << UInt64(order)), "a reference count exceeds its width")
    if order < 3 {
      let perByteBits = 3 - order
      let shift = UInt8((index & ((1 << perByteBits) - 1)) << order)
      let mask = UInt8(truncatingIfNeeded: (1 << (1 << order)) - 1) << shift
      let at = index >> perByteBits
      let old = bytes.bytes.loadByte(at: at)
      bytes.storeBigEndian(old & ~mask | UInt8(truncatingIfNeeded: value) << shift, at: at)
      return
    }
    let byteCount = 1 << (order - 3)
    for byte in 0..<byteCount {
      let shift = UInt64(8 * (byteCount - 1 - byte))
      bytes.storeBigEndian(
        UInt8(truncatingIfNeeded: value >> shift), at: index * byteCount + byte)
    }
  }
}
