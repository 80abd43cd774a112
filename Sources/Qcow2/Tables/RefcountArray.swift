// SPDX-License-Identifier: Apache-2.0
//
// Packed reference counts in arrays of bytes, for the checker and the creator.
// Spec: qcow2.rst, "Host cluster management". This file performs no I/O.

extension Refcount {
  /// Returns the count at `index` of counts that are `1 << order` bits wide.
  package static func load(_ bytes: [UInt8], at index: Int, order: Int) -> UInt64 {
    switch order {
    case 0...2:
      let perByteBits = 3 - order
      let shift = (index & ((1 << perByteBits) - 1)) << order
      return UInt64(bytes[index >> perByteBits] >> UInt8(shift)) & ((1 << (1 << UInt64(order))) - 1)
    case 3: return UInt64(bytes[index])
    case 4: return UInt64(bytes.bigEndianInteger(UInt16.self, at: 2 * index))
    case 5: return UInt64(bytes.bigEndianInteger(UInt32.self, at: 4 * index))
    default: return bytes.bigEndianInteger(UInt64.self, at: 8 * index)
    }
  }

  /// Stores `value` at `index`; it must fit in `1 << order` bits.
  package static func store(_ value: UInt64, to bytes: inout [UInt8], at index: Int, order: Int) {
    precondition(
      order == 6 || value < 1 << (1 << UInt64(order)), "a reference count exceeds its width")
    switch order {
    case 0...2:
      let perByteBits = 3 - order
      let shift = UInt8((index & ((1 << perByteBits) - 1)) << order)
      let mask = UInt8(truncatingIfNeeded: (1 << (1 << order)) - 1) << shift
      let at = index >> perByteBits
      bytes[at] = bytes[at] & ~mask | UInt8(truncatingIfNeeded: value) << shift
    case 3: bytes[index] = UInt8(value)
    case 4: bytes.putBigEndian(UInt16(value), at: 2 * index)
    case 5: bytes.putBigEndian(UInt32(value), at: 4 * index)
    default: bytes.putBigEndian(value, at: 8 * index)
    }
  }
}
