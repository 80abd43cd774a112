// SPDX-License-Identifier: Apache-2.0
//
// The footer of a VHD file, which dynamic disks begin with, too.
// Spec: Virtual Hard Disk Image Format Specification 1.0, "Hard Disk Footer Format". No I/O.

import BlockTypes

/// The 512 bytes that end a VHD.
struct VHDFooter: Hashable, Sendable {
  enum DiskType: UInt32 {
    case fixed = 2
    case dynamic = 3
    case differencing = 4
  }

  static let byteCount = 512
  /// Largest disk that cylinders, heads and sectors can tell: 65,535 * 16 * 255 sectors.
  private static let geometrySectorCountMax: UInt64 = 65_535 * 16 * 255

  let type: DiskType
  let diskByteCount: UInt64
  let dynamicHeaderOffset: UInt64

  /// Decodes a footer; throws where it is none or is damaged.
  init(decoding bytes: [UInt8]) throws(ImageError) {
    guard bytes.starts(with: "conectix".utf8) else {
      throw ImageError(.corrupt, "there is no VHD footer: its cookie is not there")
    }
    try Self.requireChecksum(bytes, at: 64, of: "the VHD footer")
    guard bytes.bigEndian(UInt32.self, at: 12) >> 16 == 1 else {
      throw ImageError(.unsupported, "the VHD has a version other than 1")
    }
    let number = bytes.bigEndian(UInt32.self, at: 60)
    guard let type = DiskType(rawValue: number) else {
      throw ImageError(.unsupported, "the VHD's disk type \(number) is not supported")
    }
    self.type = type
    dynamicHeaderOffset = bytes.bigEndian(UInt64.self, at: 16)
    let currentByteCount = bytes.bigEndian(UInt64.self, at: 48)
    let sectorCount =
      UInt64(bytes.bigEndian(UInt16.self, at: 56)) * UInt64(bytes[58]) * UInt64(bytes[59])
    // Virtual PC shows its guests the geometry, and QEMU writes such images for it; for all others
    // the size counts.
    let creator = bytes[28..<32]
    let countsGeometry = ["vpc ", "vs  ", "qemu"].contains { creator.elementsEqual($0.utf8) }
    if countsGeometry && sectorCount != Self.geometrySectorCountMax {
      diskByteCount = sectorCount * 512
    } else {
      guard currentByteCount <= UInt64(Int64.max) - 511 else {
        throw ImageError(.corrupt, "the VHD's disk has a size that does not fit in 63 bits")
      }
      diskByteCount = currentByteCount.alignedDown(to: 512)
    }
  }

  /// Checks the ones' complement of the sum of all bytes but those of the sum itself.
  static func requireChecksum(
    _ bytes: [UInt8], at offset: Int, of what: String
  ) throws(ImageError) {
    let stored = bytes.bigEndian(UInt32.self, at: offset)
    // A header has at most 1024 bytes, so the sum cannot overflow.
    var sum: UInt32 = 0
    for (index, byte) in bytes.enumerated() where !(offset..<(offset + 4)).contains(index) {
      sum += UInt32(byte)
    }
    guard stored == ~sum else {
      throw ImageError(.corrupt, "\(what) has a wrong checksum")
    }
  }
}
