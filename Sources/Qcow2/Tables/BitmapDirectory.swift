// SPDX-License-Identifier: Apache-2.0
//
// The directory of persistent bitmaps, as far as `info` and `check` need it.
// Spec: qcow2.rst, "Bitmaps". This file performs no I/O.

import BlockTypes

/// One persistent bitmap.
public struct BitmapEntry: Hashable, Sendable {
  public let tableOffset: HostOffset
  public let tableEntryCount: Int
  public let flags: UInt32
  public let granularityBits: Int
  public let name: String

  public static let inUseFlag: UInt32 = 1 << 0
  public static let autoFlag: UInt32 = 1 << 1
  static let tableEntryCountMax = 1 << 27

  /// Decodes a whole directory.
  public static func list(
    decoding directory: [UInt8], count: Int
  ) throws(ImageError) -> [BitmapEntry] {
    var entries: [BitmapEntry] = []
    var offset = 0
    for _ in 0..<count {
      guard directory.count - offset >= 24 else {
        throw ImageError(.corrupt, "the bitmap directory ends inside an entry")
      }
      let nameByteCount = Int(directory.bigEndianInteger(UInt16.self, at: offset + 18))
      let extraByteCount = Int(directory.bigEndianInteger(UInt32.self, at: offset + 20))
      let nameStart = offset + 24 + extraByteCount
      guard nameStart + nameByteCount <= directory.count else {
        throw ImageError(.corrupt, "the bitmap directory ends inside an entry")
      }
      let tableEntryCount = Int(directory.bigEndianInteger(UInt32.self, at: offset + 8))
      guard tableEntryCount <= tableEntryCountMax else {
        throw ImageError(.corrupt, "the table of a bitmap is too large")
      }
      entries.append(
        BitmapEntry(
          tableOffset: HostOffset(
            byteOffset: directory.bigEndianInteger(UInt64.self, at: offset)),
          tableEntryCount: tableEntryCount,
          flags: directory.bigEndianInteger(UInt32.self, at: offset + 12),
          granularityBits: Int(directory[offset + 17]),
          name: String(
            decoding: directory[nameStart..<(nameStart + nameByteCount)], as: UTF8.self)))
      offset += (24 + extraByteCount + nameByteCount + 7) / 8 * 8
    }
    return entries
  }
}
