// SPDX-License-Identifier: Apache-2.0
//
// The internal snapshots of a qcow2 image. Spec: qcow2.rst, "Snapshots". No I/O.

import BlockTypes

/// One internal snapshot.
public struct SnapshotEntry: Hashable, Sendable {
  public let l1TableOffset: HostOffset
  public let l1EntryCount: Int
  public let id: String
  public let name: String
  public let dateSeconds: UInt32
  public let dateNanoseconds: UInt32
  public let machineClockNanoseconds: UInt64
  public let machineStateByteCount: UInt64
  /// Instructions executed, where the machine was recorded; nil otherwise.
  public let instructionCount: UInt64?
  /// Bytes of the disk at the time; nil in old images.
  public let diskByteCount: UInt64?
}

/// The snapshot table.
public struct SnapshotTable: Hashable, Sendable {
  public let entries: [SnapshotEntry]
  /// Bytes that the table takes in the file.
  public let byteCount: UInt64

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

extension SnapshotEntry {
  /// Decodes an entry from its first 40 bytes and what follows: extra data, id, name.
  fileprivate init(fixed: [UInt8], rest: [UInt8], extraByteCount: Int) {
    let idByteCount = Int(fixed.bigEndianInteger(UInt16.self, at: 12))
    self.l1TableOffset = HostOffset(byteOffset: fixed.bigEndianInteger(UInt64.self, at: 0))
    self.l1EntryCount = Int(fixed.bigEndianInteger(UInt32.self, at: 8))
    self.dateSeconds = fixed.bigEndianInteger(UInt32.self, at: 16)
    self.dateNanoseconds = fixed.bigEndianInteger(UInt32.self, at: 20)
    self.machineClockNanoseconds = fixed.bigEndianInteger(UInt64.self, at: 24)
    self.machineStateByteCount =
      extraByteCount >= 8
      ? rest.bigEndianInteger(UInt64.self, at: 0)
      : UInt64(fixed.bigEndianInteger(UInt32.self, at: 32))
    self.diskByteCount = extraByteCount >= 16 ? rest.bigEndianInteger(UInt64.self, at: 8) : nil
    let count = extraByteCount >= 24 ? rest.bigEndianInteger(UInt64.self, at: 16) : .max
    self.instructionCount = count == .max ? nil : count
    let names = rest[extraByteCount...]
    self.id = String(decoding: names.prefix(idByteCount), as: UTF8.self)
    self.name = String(decoding: names.dropFirst(idByteCount), as: UTF8.self)
  }
}
