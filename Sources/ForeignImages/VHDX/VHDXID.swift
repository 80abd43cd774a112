// SPDX-License-Identifier: Apache-2.0
//
// The 16-byte names of regions and of metadata. Spec: MS-DTYP 2.3.4, "GUID and UUID".
// This file performs no I/O.

import BlockTypes

/// A GUID as it lies in the file.
struct VHDXID: Hashable, Sendable {
  let bytes: [UInt8]

  init(_ bytes: [UInt8], at offset: Int) { self.bytes = Array(bytes[offset..<(offset + 16)]) }

  /// The ID that is written with these 32 digits: its first three numbers are little-endian.
  init(_ digits: String) {
    let characters = Array(digits)
    precondition(characters.count == 32, "a GUID has 32 digits")
    let read = (0..<16).map { UInt8(String(characters[(2 * $0)..<(2 * $0 + 2)]), radix: 16) ?? 0 }
    bytes = [3, 2, 1, 0, 5, 4, 7, 6].map { read[$0] } + read[8...]
  }
}
