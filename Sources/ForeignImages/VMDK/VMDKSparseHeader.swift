// SPDX-License-Identifier: Apache-2.0
//
// The header of a hosted sparse extent, and of a stream-optimized one.
// Spec: VMware Virtual Disk Format 5.0, "Hosted Sparse Extents", "Stream-Optimized Compressed".
// This file performs no I/O.

import BlockTypes

/// What a sparse extent says about itself.
struct VMDKSparseHeader: Hashable, Sendable {
  static let byteCount = 512
  private static let gdAtEnd = UInt64.max
  private static let grainByteCountMax: UInt64 = 64 << 20

  let capacityByteCount: UInt64
  let grainByteCount: UInt64
  let descriptorRange: ByteRange?
  let tableEntryCount: UInt64
  let directoryOffset: UInt64
  /// Whether entry 1 of a grain table means zeroes.
  let hasZeroedGrains: Bool
  let isCompressed: Bool
  let hasMarkers: Bool
  /// Whether the grain directory is told by the footer only.
  let isDirectoryAtEnd: Bool

  init(decoding bytes: [UInt8]) throws(ImageError) {
    func word(_ offset: Int) -> UInt64 { UInt64(bytes.littleEndian(UInt32.self, at: offset)) }
    func long(_ offset: Int) -> UInt64 { bytes.littleEndian(UInt64.self, at: offset) }
    if bytes.starts(with: "COWD".utf8) {
      throw ImageError(.unsupported, "VMDK extents of ESX (COWD) are not supported")
    }
    guard bytes.starts(with: "KDMV".utf8) else {
      throw ImageError(.corrupt, "this is no sparse VMDK: its magic is not there")
    }
    guard (1...3).contains(word(4)) else {
      throw ImageError(.unsupported, "VMDK version \(word(4)) is not supported", at: .at(4))
    }
    let flags = word(8)
    hasZeroedGrains = flags & 1 << 2 != 0
    isCompressed = flags & 1 << 16 != 0
    hasMarkers = flags & 1 << 17 != 0
    if flags & 1 != 0 {
      // These four are damaged by programs that take the file for a text.
      guard bytes[73...76].elementsEqual([0x0a, 0x20, 0x0d, 0x0a]) else {
        throw ImageError(
          .corrupt, "the file's line ends were changed by a transfer as text", at: .at(73))
      }
    }
    let algorithm = bytes.littleEndian(UInt16.self, at: 77)
    guard algorithm == (isCompressed ? 1 : 0) else {
      throw ImageError(
        .unsupported, "the compression algorithm \(algorithm) is not supported", at: .at(77))
    }
    capacityByteCount = try Self.bytes(long(12), "the capacity", 12)
    grainByteCount = try Self.bytes(long(20), "the grain size", 20)
    guard grainByteCount.isPowerOfTwo, (512...Self.grainByteCountMax).contains(grainByteCount)
    else {
      throw ImageError(
        .corrupt, "a grain of \(long(20)) sectors is no power of two of at most 64M", at: .at(20))
    }
    tableEntryCount = word(44)
    guard (1...512).contains(tableEntryCount) else {
      throw ImageError(
        .corrupt, "grain tables of \(tableEntryCount) entries are outside 1 to 512", at: .at(44))
    }
    isDirectoryAtEnd = long(56) == Self.gdAtEnd
    directoryOffset = isDirectoryAtEnd ? 0 : try Self.bytes(long(56), "the grain directory", 56)
    let start = try Self.bytes(long(28), "the descriptor", 28)
    let byteCount = try Self.bytes(long(36), "the descriptor's size", 36)
    guard start > 0, byteCount > 0 else {
      descriptorRange = nil
      return
    }
    guard byteCount <= UInt64(VMDKDescriptor.byteCountMax) else {
      throw ImageError(.corrupt, "the descriptor has \(byteCount) bytes", at: .at(36))
    }
    // Both are below 2^63.
    descriptorRange = ByteRange(start: start, end: start + byteCount)
  }

  private static func bytes(
    _ sectorCount: UInt64, _ name: String, _ offset: UInt64
  ) throws(ImageError) -> UInt64 {
    guard sectorCount <= UInt64(Int64.max) / 512 else {
      throw ImageError(
        .corrupt, "\(name) of \(sectorCount) sectors does not fit in 63 bits", at: .at(offset))
    }
    return sectorCount * 512
  }
}

extension HostOffset {
  fileprivate static func at(_ byteOffset: UInt64) -> HostOffset {
    HostOffset(byteOffset: byteOffset)
  }
}
