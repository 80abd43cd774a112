// SPDX-License-Identifier: Apache-2.0
//
// What a foreign image says about a run of its disk. This file performs no I/O.

import BlockTypes

/// A run of the disk that starts where it was asked for.
public struct ForeignExtent: Hashable, Sendable {
  /// At least 1.
  public var byteCount: UInt64
  public var content: ForeignContent

  public init(byteCount: UInt64, content: ForeignContent) {
    self.byteCount = byteCount
    self.content = content
  }
}

/// Where the bytes of a run are.
public enum ForeignContent: Hashable, Sendable {
  /// Nowhere: the image does not hold them, and they read as zeroes.
  case absent
  /// Nowhere: the image says that they are zeroes.
  case zero
  /// In file number `file` of the image, from `offset` on. `mayHaveHoles` when nobody allocated
  /// them one by one, so that it is worth to ask the file for its holes.
  case data(file: Int, offset: UInt64, mayHaveHoles: Bool)
  /// In a compressed unit.
  case packed(PackedUnit)
}

/// A piece of the disk that is compressed as a whole.
public struct PackedUnit: Hashable, Sendable {
  public enum Wrapping: Hashable, Sendable {
    /// RFC 1951.
    case deflate
    /// RFC 1950: with a header and a checksum.
    case zlib
  }

  /// The file of the image that holds it.
  public var file: Int
  /// The compressed bytes, and perhaps some after them.
  public var stored: ByteRange
  public var wrapping: Wrapping
  /// The whole unit on the disk; it may pass the disk's end.
  public var unit: ByteRange

  public init(file: Int, stored: ByteRange, wrapping: Wrapping, unit: ByteRange) {
    self.file = file
    self.stored = stored
    self.wrapping = wrapping
    self.unit = unit
  }
}
