// SPDX-License-Identifier: Apache-2.0
//
// An entry of the snapshot table as its bytes, for the checker: it must get past damage, and a
// repaired table keeps what the others say to the byte. Spec: qcow2.rst, "Snapshots". No I/O.

import BlockTypes

/// One entry of a snapshot table.
public struct SnapshotRecord: Hashable, Sendable {
  /// Without the padding behind it.
  public var bytes: [UInt8]

  public static let fixedByteCount = 40
  /// Extra data that a reader has to keep (QEMU refuses more), and that version 3 demands.
  public static let extraByteCountMax = 1024
  public static let extraByteCountMin = 16

  public init(bytes: [UInt8]) { self.bytes = bytes }

  public var l1TableOffset: HostOffset {
    HostOffset(byteOffset: bytes.bigEndianInteger(UInt64.self, at: 0))
  }
  public var l1EntryCount: Int { Int(bytes.bigEndianInteger(UInt32.self, at: 8)) }
  var extraByteCount: Int { Int(bytes.bigEndianInteger(UInt32.self, at: 36)) }

  public var id: String {
    let start = Self.fixedByteCount + extraByteCount
    let count = Int(bytes.bigEndianInteger(UInt16.self, at: 12))
    return String(decoding: bytes[start..<(start + count)], as: UTF8.self)
  }

  /// Bytes of the entry that begins with these 40.
  static func byteCount(fixed: [UInt8]) -> Int {
    fixedByteCount + Int(fixed.bigEndianInteger(UInt32.self, at: 36))
      + Int(fixed.bigEndianInteger(UInt16.self, at: 12))
      + Int(fixed.bigEndianInteger(UInt16.self, at: 14))
  }

  /// The entry with the extra data that version 3 demands: the size of the machine's state as it is
  /// recorded elsewhere, and the disk's size of today where the snapshot does not tell its own.
  public func withWholeExtraData(diskByteCount: UInt64) -> SnapshotRecord {
    guard extraByteCount < Self.extraByteCountMin else { return self }
    let rest = bytes[(Self.fixedByteCount + extraByteCount)...]
    var extra: [UInt8] = []
    if extraByteCount >= 8 {
      extra += bytes[Self.fixedByteCount..<(Self.fixedByteCount + 8)]
    } else {
      extra.appendBigEndian(UInt64(bytes.bigEndianInteger(UInt32.self, at: 32)))
    }
    extra.appendBigEndian(diskByteCount)
    var whole = Array(bytes[..<Self.fixedByteCount])
    whole.putBigEndian(UInt32(Self.extraByteCountMin), at: 36)
    return SnapshotRecord(bytes: whole + extra + rest)
  }

  /// The entry with no more extra data than a reader has to keep.
  public var withBoundedExtraData: SnapshotRecord {
    guard extraByteCount > Self.extraByteCountMax else { return self }
    let extra = Self.fixedByteCount..<(Self.fixedByteCount + Self.extraByteCountMax)
    var bytes = Array(bytes[..<Self.fixedByteCount])
    bytes.putBigEndian(UInt32(Self.extraByteCountMax), at: 36)
    bytes += self.bytes[extra] + self.bytes[(Self.fixedByteCount + extraByteCount)...]
    return SnapshotRecord(bytes: bytes)
  }

  /// A table of these entries, each padded to a multiple of 8 bytes.
  public static func table(of records: [SnapshotRecord]) -> [UInt8] {
    var bytes: [UInt8] = []
    for record in records {
      bytes += record.bytes
      bytes += [UInt8](repeating: 0, count: (8 - bytes.count % 8) % 8)
    }
    return bytes
  }
}

/// As much of a snapshot table as can be read.
public struct SnapshotRecords: Sendable {
  public private(set) var records: [SnapshotRecord] = []
  /// Bytes of the table, as far as it can be read.
  public private(set) var byteCount: UInt64 = 0
  /// Why the entries behind the last one cannot be read; nil when there are none.
  public private(set) var flaw: String?

  /// Reads the table with `read(offset, byteCount)`, which returns fewer bytes where the rest of
  /// the file is zeroes or missing.
  public init<Failure: Error>(
    of header: Header, fileByteCount: UInt64, read: (UInt64, Int) throws(Failure) -> [UInt8]
  ) throws(Failure) {
    var offset = header.snapshotTableOffset.byteOffset
    let start = offset
    for index in 0..<header.snapshotCount {
      var fixed = try read(offset, SnapshotRecord.fixedByteCount)
      fixed += [UInt8](repeating: 0, count: SnapshotRecord.fixedByteCount - fixed.count)
      let byteCount = SnapshotRecord.byteCount(fixed: fixed)
      let end = offset + UInt64(byteCount)
      guard end <= fileByteCount, end - start <= SnapshotTable.byteCountMax else {
        flaw =
          "snapshot \(index) at host offset \(offset) has \(byteCount) bytes, which pass the end "
          + "of the file or the table's largest size"
        return
      }
      var bytes = try read(offset, byteCount)
      bytes += [UInt8](repeating: 0, count: byteCount - bytes.count)
      records.append(SnapshotRecord(bytes: bytes))
      offset = end.alignedUp(to: 8)
      self.byteCount = offset - start
    }
  }
}
