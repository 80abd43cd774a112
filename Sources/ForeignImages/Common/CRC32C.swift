// SPDX-License-Identifier: Apache-2.0
//
// The checksum of VHDX: CRC-32C (Castagnoli). Source: RFC 3385; MS-VHDX 2.2.2.
// This file performs no I/O.

enum CRC32C {
  private static let table: [UInt32] = (0..<256).map { index in
    (0..<8).reduce(UInt32(index)) { value, _ in
      value & 1 == 1 ? value >> 1 ^ 0x82f6_3b78 : value >> 1
    }
  }

  /// The checksum of `bytes`, in which the four bytes at `zeroed` count as zeroes.
  static func checksum(_ bytes: [UInt8], zeroed: Int) -> UInt32 {
    var value: UInt32 = .max
    for (index, byte) in bytes.enumerated() {
      let counted = (zeroed..<(zeroed + 4)).contains(index) ? 0 : byte
      value = value >> 8 ^ table[Int(UInt8(truncatingIfNeeded: value) ^ counted)]
    }
    return ~value
  }
}
