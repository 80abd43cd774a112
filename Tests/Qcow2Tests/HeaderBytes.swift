// SPDX-License-Identifier: Apache-2.0
//
// Headers for tests: golden bytes that qemu-img 7.2 wrote, and ways to damage them.

import Qcow2

/// A header cluster that tests poke bytes into.
struct HeaderBytes {
  var bytes: [UInt8]
  var fileByteCount: UInt64

  /// `qemu-img create -f qcow2 IMAGE 1G`: version 3, 64 KiB clusters.
  static var version3: HeaderBytes {
    var bytes = [UInt8](repeating: 0, count: 65_536)
    let words: [UInt32] = [
      0x5146_49fb, 3, 0, 0, 0, 16, 0, 0x4000_0000, 0, 2, 0, 0x3_0000, 0, 0x1_0000, 1, 0, 0, 0,
      0, 0, 0, 0, 0, 0, 4, 112, 0, 0, 0x6803_f857, 384,
    ]
    for (index, word) in words.enumerated() { bytes.put(word, at: index * 4) }
    let names: [(UInt8, UInt8, String)] = [
      (0, 0, "dirty bit"), (0, 1, "corrupt bit"), (0, 2, "external data file"),
      (0, 3, "compression type"), (0, 4, "extended L2 entries"), (1, 0, "lazy refcounts"),
      (2, 0, "bitmaps"), (2, 1, "raw external data"),
    ]
    for (index, name) in names.enumerated() {
      let row = [name.0, name.1] + Array(name.2.utf8)
      bytes.replaceSubrange((120 + index * 48)..<(120 + index * 48 + row.count), with: row)
    }
    return HeaderBytes(bytes: bytes, fileByteCount: 0x30010)
  }

  /// `qemu-img create -f qcow2 -o compat=0.10 IMAGE 1G`.
  static var version2: HeaderBytes {
    var header = version3
    header.bytes.replaceSubrange(72..., with: [UInt8](repeating: 0, count: 65_536 - 72))
    header.bytes.put(UInt32(2), at: 4)
    return header
  }

  /// `qemu-img create -f qcow2 -b t2.qcow2 -F qcow2 IMAGE`: the names begin 16 bytes later.
  static var overlay: HeaderBytes {
    var header = version3
    let names = Array(header.bytes[112..<504])
    header.bytes.put(UInt32(0x210), at: 12)
    header.bytes.put(UInt32(8), at: 16)
    header.bytes.put(UInt32(0xe279_2aca), at: 112)
    header.bytes.put(UInt32(5), at: 116)
    header.bytes.replaceSubrange(120..<128, with: Array("qcow2\0\0\0".utf8))
    header.bytes.replaceSubrange(128..<520, with: names)
    header.bytes.replaceSubrange(0x210..<0x218, with: Array("t2.qcow2".utf8))
    return header
  }

  /// Version 3 with LUKS: its header is behind the L1 table.
  static var encrypted: HeaderBytes {
    version3.with(UInt32(2), at: 32).with(UInt32(0x0537_be77), at: 504).with(UInt32(16), at: 508)
      .with(UInt64(0x4_0000), at: 512).with(UInt64(2_068_480), at: 520)
  }

  /// A copy with a big-endian number poked in.
  func with(_ value: some FixedWidthInteger & UnsignedInteger, at offset: Int) -> HeaderBytes {
    var copy = self
    copy.bytes.put(value, at: offset)
    return copy
  }

  func decode() throws -> Header { try Header(decoding: bytes, fileByteCount: fileByteCount) }
}

extension [UInt8] {
  mutating func put(_ value: some FixedWidthInteger & UnsignedInteger, at offset: Int) {
    for index in 0..<(value.bitWidth / 8) {
      self[offset + index] = UInt8(truncatingIfNeeded: value >> (value.bitWidth - 8 - 8 * index))
    }
  }
}
