// SPDX-License-Identifier: Apache-2.0
//
// What a conversion writes: places for parts of pieces, in the order of the disk, and what comes
// at the end. Decides; the threads write.

import BlockTypes
import Compression
import LinuxIO
import Qcow2

/// One part of a piece's buffer, or bytes that were made from it.
enum ConvertPart: Sendable {
  /// Bytes of the buffer that are to be kept as they are.
  case plain(Range<Int>)
  /// A cluster of the buffer, packed.
  case packed([UInt8], Range<Int>)
  /// A part that reads as zeroes although a base holds something there.
  case zero(Range<Int>)

  var range: Range<Int> {
    switch self {
    case .plain(let range), .packed(_, let range), .zero(let range): range
    }
  }
}

/// What has to be written where.
enum ConvertWrite: Sendable {
  case buffer(Range<Int>, at: UInt64)
  case bytes([UInt8], at: UInt64)
}

/// A target that is filled from its start to its end.
enum ConvertTarget {
  /// The disk's bytes at their own places.
  case raw
  case qcow2(AppendedImage)

  /// Where the parts of a piece that starts at `start` go. Pieces come in the order of the disk.
  mutating func place(
    _ parts: [ConvertPart], from start: UInt64
  ) throws(ImageError) -> [ConvertWrite] {
    switch self {
    case .raw:
      var writes: [ConvertWrite] = []
      for part in parts {
        guard case .plain(let range) = part else {
          preconditionFailure("a raw image has only plain bytes")
        }
        writes.append(.buffer(range, at: start + UInt64(range.lowerBound)))
      }
      return writes
    case .qcow2(var image):
      // Taken out while it works, so that its tables are not copied.
      self = .raw
      defer { self = .qcow2(image) }
      return try Self.place(parts, from: start, in: &image)
    }
  }

  private static func place(
    _ parts: [ConvertPart], from start: UInt64, in image: inout AppendedImage
  ) throws(ImageError) -> [ConvertWrite] {
    let bits = UInt64(image.header.geometry.clusterBits)
    var writes: [ConvertWrite] = []
    for part in parts {
      let cluster = (start + UInt64(part.range.lowerBound)) >> bits
      let count = image.header.geometry.clusterCount(for: UInt64(part.range.count))
      switch part {
      case .plain(let range):
        let place = try image.append(cluster: cluster, count: Int(count))
        writes.append(.buffer(range, at: place.byteOffset))
      case .packed(let bytes, _):
        let place = try image.append(cluster: cluster, packedByteCount: bytes.count)
        writes.append(.bytes(bytes, at: place.byteOffset))
      case .zero: try image.appendZeroes(cluster: cluster, count: count)
      }
    }
    return writes + image.takeWrites().map { .bytes($0.bytes, at: $0.offset.byteOffset) }
  }
}
