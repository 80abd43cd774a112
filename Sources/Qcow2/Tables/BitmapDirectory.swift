// SPDX-License-Identifier: Apache-2.0
//
// The directory of persistent bitmaps: its entries, read and written.
// Spec: qcow2.rst, "Bitmap directory"; limits beyond the text are those of QEMU. This file performs
// no I/O.

import BlockTypes

/// One entry of the bitmap directory. What it holds beyond the fields below is kept byte by byte.
public struct BitmapEntry: Hashable, Sendable {
  /// The entry as it is stored, with its extra data, its name and its padding.
  public private(set) var bytes: [UInt8]

  public static let inUseFlag: UInt32 = 1 << 0
  public static let autoFlag: UInt32 = 1 << 1
  /// Who does not know the extra data may use the bitmap all the same.
  public static let extraDataCompatibleFlag: UInt32 = 1 << 2
  /// The one type of bitmap that there is.
  static let dirtyTrackingType: UInt8 = 1
  static let tableEntryCountMax = 1 << 27
  static let fieldsByteCount = 24
  /// Bytes of data of a bitmap.
  public static let dataByteCountMax: UInt64 = 512 << 20
  public static let nameByteCountMax = 1023
  public static let granularityBitsRange = 9...31

  /// A new entry. The name must have 1...1023 bytes.
  public init(
    name: String, granularityBits: Int, tableOffset: HostOffset, tableEntryCount: Int,
    flags: UInt32
  ) {
    let text = Array(name.utf8)
    precondition((1...Self.nameByteCountMax).contains(text.count), "a bitmap's name is too long")
    bytes = []
    bytes.appendBigEndian(tableOffset.byteOffset)
    bytes.appendBigEndian(UInt32(tableEntryCount))
    bytes.appendBigEndian(flags)
    bytes.append(Self.dirtyTrackingType)
    bytes.append(UInt8(granularityBits))
    bytes.appendBigEndian(UInt16(text.count))
    bytes.appendBigEndian(UInt32(0))
    bytes += text
    bytes += [UInt8](repeating: 0, count: (8 - bytes.count % 8) % 8)
  }

  private init(bytes: ArraySlice<UInt8>) { self.bytes = Array(bytes) }

  public var tableOffset: HostOffset {
    get { HostOffset(byteOffset: bytes.bigEndianInteger(UInt64.self, at: 0)) }
    set { bytes.putBigEndian(newValue.byteOffset, at: 0) }
  }
  public var tableEntryCount: Int {
    get { Int(bytes.bigEndianInteger(UInt32.self, at: 8)) }
    set { bytes.putBigEndian(UInt32(newValue), at: 8) }
  }
  public var flags: UInt32 {
    get { bytes.bigEndianInteger(UInt32.self, at: 12) }
    set { bytes.putBigEndian(newValue, at: 12) }
  }
  public var type: UInt8 { bytes[16] }
  public var granularityBits: Int { Int(bytes[17]) }
  /// Bytes of the disk for each bit; 0 where the image claims more than fits.
  public var granularityByteCount: UInt64 {
    granularityBits < 64 ? 1 << UInt64(granularityBits) : 0
  }
  public var isInUse: Bool { flags & Self.inUseFlag != 0 }
  public var isAuto: Bool { flags & Self.autoFlag != 0 }

  private var nameByteCount: Int { Int(bytes.bigEndianInteger(UInt16.self, at: 18)) }
  private var extraByteCount: Int { Int(bytes.bigEndianInteger(UInt32.self, at: 20)) }
  private var nameBytes: ArraySlice<UInt8> {
    let start = Self.fieldsByteCount + extraByteCount
    return bytes[start..<start + nameByteCount]
  }
  public var name: String { String(decoding: nameBytes, as: UTF8.self) }

  /// Sets or takes away one flag.
  public mutating func set(_ flag: UInt32, _ isSet: Bool) {
    if isSet { flags |= flag } else { flags &= ~flag }
  }

  /// Decodes a whole directory.
  public static func list(
    decoding directory: [UInt8], count: Int
  ) throws(ImageError) -> [BitmapEntry] {
    var entries: [BitmapEntry] = []
    var offset = 0
    for _ in 0..<count {
      guard directory.count - offset >= fieldsByteCount else {
        throw ImageError(.corrupt, "the bitmap directory ends inside an entry")
      }
      let nameByteCount = Int(directory.bigEndianInteger(UInt16.self, at: offset + 18))
      let extraByteCount = Int(directory.bigEndianInteger(UInt32.self, at: offset + 20))
      let end = offset + (fieldsByteCount + extraByteCount + nameByteCount + 7) / 8 * 8
      guard end <= directory.count else {
        throw ImageError(.corrupt, "the bitmap directory ends inside an entry")
      }
      let tableEntryCount = Int(directory.bigEndianInteger(UInt32.self, at: offset + 8))
      guard tableEntryCount <= tableEntryCountMax else {
        throw ImageError(.corrupt, "the table of a bitmap is too large")
      }
      entries.append(BitmapEntry(bytes: directory[offset..<end]))
      offset = end
    }
    return entries
  }

  /// Why the bitmap cannot be used, nil when it can. Such a bitmap stays as it is.
  public func unusableReason(in geometry: ClusterGeometry, diskByteCount: UInt64) -> String? {
    let known = Self.inUseFlag | Self.autoFlag | Self.extraDataCompatibleFlag
    if flags & ~known != 0 { return "it has unknown flags" }
    if extraByteCount > 0, flags & Self.extraDataCompatibleFlag == 0 {
      return "it has extra data of another program"
    }
    if type != Self.dirtyTrackingType { return "its type \(type) is unknown" }
    if !Self.granularityBitsRange.contains(granularityBits) {
      return "its granularity is 2^\(granularityBits) bytes, not 512 bytes ... 2 GiB"
    }
    if !(1...Self.nameByteCountMax).contains(nameByteCount)
      || String(validating: nameBytes, as: UTF8.self) == nil
    {
      return "its name is not 1...1023 bytes of UTF-8"
    }
    let offset = tableOffset.byteOffset
    if tableEntryCount == 0 || offset == 0 || offset >= 1 << 56
      || !offset.isAligned(to: geometry.clusterByteCount)
    {
      return "its table is not at clusters of the file"
    }
    if UInt64(tableEntryCount) > Self.dataByteCountMax >> UInt64(geometry.clusterBits) {
      return "it has more than 512 MiB of data"
    }
    let needed = geometry.bitmapTableEntryCount(diskByteCount, granularityBits: granularityBits)
    if tableEntryCount < needed || tableEntryCount > needed && !isInUse {
      return "its table has \(tableEntryCount) entries, and the disk needs \(needed)"
    }
    return nil
  }
}

extension ClusterGeometry {
  /// Entries of the table of a bitmap: clusters of its data, which is in words of 64 bits.
  public func bitmapTableEntryCount(_ diskByteCount: UInt64, granularityBits: Int) -> Int {
    guard diskByteCount > 0 else { return 0 }
    let bitCount = (diskByteCount - 1) >> UInt64(granularityBits) + 1
    return Int(clusterCount(for: ((bitCount - 1) / 64 + 1) * 8))
  }
}

/// An entry of a bitmap's table. Spec: qcow2.rst, "Bitmap table".
public enum BitmapTableEntry: Hashable, Sendable {
  case zeroes
  case ones
  /// A cluster of data.
  case data(HostOffset)
  case invalid

  public init(rawValue: UInt64, geometry: ClusterGeometry) {
    switch rawValue {
    case 0: self = .zeroes
    case 1: self = .ones
    default:
      let host = rawValue & 0x00ff_ffff_ffff_fe00
      self =
        rawValue == host && host.isAligned(to: geometry.clusterByteCount)
        ? .data(HostOffset(byteOffset: host)) : .invalid
    }
  }
}
