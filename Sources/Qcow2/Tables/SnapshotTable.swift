// SPDX-License-Identifier: Apache-2.0
//
// The internal snapshots of a qcow2 image. Spec: qcow2.rst, "Snapshots". No I/O.

import BlockTypes

/// One internal snapshot.
public struct SnapshotEntry: Hashable, Sendable {
  public let l1TableOffset: HostOffset
  public let l1EntryCount: Int
  public let idBytes: [UInt8]
  public let nameBytes: [UInt8]
  public let dateSeconds: UInt32
  public let dateNanoseconds: UInt32
  public let machineClockNanoseconds: UInt64
  /// The old field of the machine state's size, which counts where the extra data is too short.
  let shortMachineStateByteCount: UInt32
  /// The extra data as it is in the file, known fields and unknown ones.
  public let extraBytes: [UInt8]

  public var id: String { String(decoding: idBytes, as: UTF8.self) }
  public var name: String { String(decoding: nameBytes, as: UTF8.self) }

  public var machineStateByteCount: UInt64 {
    extraBytes.count >= 8
      ? extraBytes.bigEndianInteger(UInt64.self, at: 0) : UInt64(shortMachineStateByteCount)
  }

  /// Bytes of the disk at the time; nil in old images.
  public var diskByteCount: UInt64? {
    extraBytes.count >= 16 ? extraBytes.bigEndianInteger(UInt64.self, at: 8) : nil
  }

  /// Instructions executed, where the machine was recorded; nil otherwise.
  public var instructionCount: UInt64? {
    guard extraBytes.count >= 24 else { return nil }
    let count = extraBytes.bigEndianInteger(UInt64.self, at: 16)
    return count == .max ? nil : count
  }

  /// A new snapshot of a disk without a machine's state.
  ///
  /// - Parameter date: since 1970.
  public init(
    id: String, name: String, l1TableOffset: HostOffset, l1EntryCount: Int, diskByteCount: UInt64,
    date: (seconds: UInt32, nanoseconds: UInt32)
  ) {
    self.l1TableOffset = l1TableOffset
    self.l1EntryCount = l1EntryCount
    self.idBytes = Array(id.utf8)
    self.nameBytes = Array(name.utf8)
    self.dateSeconds = date.seconds
    self.dateNanoseconds = date.nanoseconds
    self.machineClockNanoseconds = 0
    self.shortMachineStateByteCount = 0
    var extra: [UInt8] = []
    extra.appendBigEndian(UInt64(0))
    extra.appendBigEndian(diskByteCount)
    extra.appendBigEndian(UInt64.max)  // no instruction count
    self.extraBytes = extra
  }
}

/// The snapshot table.
public struct SnapshotTable: Hashable, Sendable {
  public let entries: [SnapshotEntry]
  /// Bytes that the table takes in the file.
  public let byteCount: UInt64

  /// A table of these snapshots.
  public init(entries: [SnapshotEntry]) {
    self.entries = entries
    self.byteCount = entries.reduce(0) { $0 + UInt64($1.encodedByteCount) }
  }

  /// Largest table, and largest extra data of an entry.
  public static let byteCountMax: UInt64 = 64 << 20
  static let extraByteCountMax = 1024
  /// Bytes of an entry before its extra data.
  static let fixedByteCount = 40

  /// Reads the table with `read(offset, byteCount)`, which may return fewer bytes at the file's
  /// end. Throws `.corrupt` or `.truncated` through `fault`.
  public init<Failure: Error>(
    of header: Header, fault: (ImageError) -> Failure,
    read: (UInt64, Int) throws(Failure) -> [UInt8]
  ) throws(Failure) {
    var entries: [SnapshotEntry] = []
    let start = header.snapshotTableOffset.byteOffset
    var offset = start
    for _ in 0..<header.snapshotCount {
      let fixed = try read(offset, Self.fixedByteCount)
      guard fixed.count == Self.fixedByteCount else {
        throw fault(
          ImageError(.truncated, "the file ends inside the snapshot table", at: .field(offset)))
      }
      let idByteCount = Int(fixed.bigEndianInteger(UInt16.self, at: 12))
      let nameByteCount = Int(fixed.bigEndianInteger(UInt16.self, at: 14))
      let extraByteCount = Int(fixed.bigEndianInteger(UInt32.self, at: 36))
      guard extraByteCount <= Self.extraByteCountMax else {
        throw fault(
          ImageError(.unsupported, "a snapshot has too much extra data", at: .field(offset)))
      }
      let restByteCount = extraByteCount + idByteCount + nameByteCount
      let rest = try read(offset + UInt64(Self.fixedByteCount), restByteCount)
      guard rest.count == restByteCount else {
        throw fault(
          ImageError(.truncated, "the file ends inside the snapshot table", at: .field(offset)))
      }
      entries.append(SnapshotEntry(fixed: fixed, rest: rest, extraByteCount: extraByteCount))
      offset += UInt64(Self.fixedByteCount + restByteCount).alignedUp(to: 8)
      guard offset - start <= Self.byteCountMax else {
        throw fault(
          ImageError(.unsupported, "the snapshot table is larger than 64 MiB", at: .field(start)))
      }
    }
    self.entries = entries
    self.byteCount = offset - start
  }
}

extension SnapshotTable {
  /// The table as it lies in the file.
  public func encode() -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(Int(byteCount))
    for entry in entries { entry.append(to: &bytes) }
    precondition(bytes.count == Int(byteCount), "a snapshot table has another size than planned")
    return bytes
  }

  /// The place in `entries` of the snapshot with this id, or else of the first with this name.
  public func index(of idOrName: String) -> Int? {
    let wanted = Array(idOrName.utf8)
    return entries.firstIndex { $0.idBytes == wanted }
      ?? entries.firstIndex { $0.nameBytes == wanted }
  }

  /// The id of a new snapshot: one more than the largest number among the ids.
  public var nextID: String {
    let numbers = entries.map { entry in
      let digits = entry.idBytes.prefix { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }
      return UInt64(String(decoding: digits, as: UTF8.self)) ?? 0
    }
    let (next, overflows) = (numbers.max() ?? 0).addingReportingOverflow(1)
    return overflows ? "\(UInt64.max)" : "\(next)"
  }
}

extension SnapshotEntry {
  /// Bytes that the entry takes in the table, a multiple of 8.
  var encodedByteCount: Int {
    let byteCount =
      SnapshotTable.fixedByteCount + extraBytes.count + idBytes.count + nameBytes.count
    return (byteCount + 7) / 8 * 8
  }

  fileprivate func append(to bytes: inout [UInt8]) {
    let end = bytes.count + encodedByteCount
    bytes.appendBigEndian(l1TableOffset.byteOffset)
    bytes.appendBigEndian(UInt32(l1EntryCount))
    bytes.appendBigEndian(UInt16(idBytes.count))
    bytes.appendBigEndian(UInt16(nameBytes.count))
    bytes.appendBigEndian(dateSeconds)
    bytes.appendBigEndian(dateNanoseconds)
    bytes.appendBigEndian(machineClockNanoseconds)
    bytes.appendBigEndian(shortMachineStateByteCount)
    bytes.appendBigEndian(UInt32(extraBytes.count))
    bytes += extraBytes + idBytes + nameBytes
    bytes += [UInt8](repeating: 0, count: end - bytes.count)
  }

  /// Decodes an entry from its first 40 bytes and what follows: extra data, id, name.
  fileprivate init(fixed: [UInt8], rest: [UInt8], extraByteCount: Int) {
    let idByteCount = Int(fixed.bigEndianInteger(UInt16.self, at: 12))
    self.l1TableOffset = HostOffset(byteOffset: fixed.bigEndianInteger(UInt64.self, at: 0))
    self.l1EntryCount = Int(fixed.bigEndianInteger(UInt32.self, at: 8))
    self.dateSeconds = fixed.bigEndianInteger(UInt32.self, at: 16)
    self.dateNanoseconds = fixed.bigEndianInteger(UInt32.self, at: 20)
    self.machineClockNanoseconds = fixed.bigEndianInteger(UInt64.self, at: 24)
    self.shortMachineStateByteCount = fixed.bigEndianInteger(UInt32.self, at: 32)
    self.extraBytes = Array(rest[..<extraByteCount])
    let names = rest[extraByteCount...]
    self.idBytes = Array(names.prefix(idByteCount))
    self.nameBytes = Array(names.dropFirst(idByteCount))
  }
}
