// SPDX-License-Identifier: Apache-2.0
//
// The headers and the region tables of a VHDX, each of which is there twice.
// Spec: MS-VHDX 2.2, "Header Section". This file performs no I/O.

import BlockTypes

/// The current header.
struct VHDXHeader: Hashable, Sendable {
  private static let byteCount = 4096
  private static let places: [UInt64] = [64 << 10, 128 << 10]

  let sequenceNumber: UInt64
  /// All zero when the log is empty.
  let logID: [UInt8]
  let log: ByteRange

  /// The valid header with the larger sequence number.
  static func current<Source: ForeignSource>(
    of source: Source
  ) throws(Source.Failure) -> VHDXHeader {
    var current: VHDXHeader?
    for place in places {
      let bytes = try source.require("the VHDX header", at: place, byteCount: byteCount)
      guard isValid(bytes, "head") else { continue }
      let header = try VHDXHeader(decoding: bytes, source, at: place)
      if header.sequenceNumber >= current?.sequenceNumber ?? 0 { current = header }
    }
    guard let current else {
      throw source.fault(.corrupt, "neither header of the VHDX has a right checksum", at: places[0])
    }
    return current
  }

  private init<Source: ForeignSource>(
    decoding bytes: [UInt8], _ source: Source, at place: UInt64
  ) throws(Source.Failure) {
    sequenceNumber = bytes.littleEndian(UInt64.self, at: 8)
    logID = Array(bytes[48..<64])
    let version = bytes.littleEndian(UInt16.self, at: 66)
    guard version == 1 else {
      throw source.fault(.unsupported, "VHDX version \(version) is not supported", at: place + 66)
    }
    let start = bytes.littleEndian(UInt64.self, at: 72)
    let (end, overflows) = start.addingReportingOverflow(
      UInt64(bytes.littleEndian(UInt32.self, at: 68)))
    guard !overflows else {
      throw source.fault(.corrupt, "the log passes the largest file offset", at: place + 72)
    }
    log = ByteRange(start: start, end: end)
  }

  /// Whether a structure has its signature and, behind that, its checksum.
  static func isValid(_ bytes: [UInt8], _ signature: String) -> Bool {
    bytes.starts(with: signature.utf8)
      && bytes.littleEndian(UInt32.self, at: 4) == CRC32C.checksum(bytes, zeroed: 4)
  }

  /// Refuses a file with writes that are only in its log yet.
  func requireEmptyLog<Source: ForeignSource>(
    _ source: Source
  ) throws(Source.Failure) {
    guard logID.contains(where: { $0 != 0 }) else { return }
    let sector = 4096
    var offset = log.start
    // Entries begin at multiples of 4 KiB with their signature and the log's name at byte 32.
    while offset < min(log.end, source.byteCount) {
      let bytes = try source.read(at: offset, byteCount: 1 << 20)
      for start in stride(from: 0, to: bytes.count, by: sector) where bytes.count - start >= 48 {
        guard bytes[start...].starts(with: "loge".utf8),
          bytes[(start + 32)..<(start + 48)].elementsEqual(logID)
        else { continue }
        throw source.fault(
          .refused,
          "the VHDX was not closed: its log has writes that are not in the disk yet; replay it "
            + "(attach it once on Windows, or qemu-img check -r all)", at: offset + UInt64(start))
      }
      offset += 1 << 20
    }
  }
}

/// Where the two regions are that a reader needs.
struct VHDXRegions: Hashable, Sendable {
  let table: ByteRange
  let metadata: ByteRange

  private static let byteCount = 64 << 10
  private static let places: [UInt64] = [192 << 10, 256 << 10]
  private static let entryCountMax = 2047
  private static let tableID = VHDXID("2dc27766f62342009d64115e9bfd4a08")
  private static let metadataID = VHDXID("8b7ca20647904b9ab8fe575f050f886e")

  init<Source: ForeignSource>(_ source: Source) throws(Source.Failure) {
    for place in Self.places {
      let bytes = try source.require("the region table", at: place, byteCount: Self.byteCount)
      guard VHDXHeader.isValid(bytes, "regi") else { continue }
      self = try VHDXRegions(decoding: bytes, source, at: place)
      return
    }
    throw source.fault(
      .corrupt, "neither region table of the VHDX has a right checksum", at: Self.places[0])
  }

  private init<Source: ForeignSource>(
    decoding bytes: [UInt8], _ source: Source, at place: UInt64
  ) throws(Source.Failure) {
    let count = Int(clamping: bytes.littleEndian(UInt32.self, at: 8))
    guard count <= Self.entryCountMax else {
      throw source.fault(.corrupt, "the region table has \(count) entries", at: place + 8)
    }
    var found: [VHDXID: ByteRange] = [:]
    for index in 0..<count {
      let entry = 16 + 32 * index
      let id = VHDXID(bytes, at: entry)
      let start = bytes.littleEndian(UInt64.self, at: entry + 16)
      let length = UInt64(bytes.littleEndian(UInt32.self, at: entry + 24))
      let isRequired = bytes[entry + 28] & 1 == 1
      guard id == Self.tableID || id == Self.metadataID else {
        if !isRequired { continue }
        throw source.fault(
          .unsupported, "the VHDX needs a region that is not known", at: place + UInt64(entry))
      }
      guard start >= 1 << 20, start <= source.byteCount, length <= source.byteCount - start else {
        throw source.fault(
          .truncated, "a region of the VHDX does not lie inside the file", at: place + UInt64(entry)
        )
      }
      guard found.updateValue(ByteRange(start: start, end: start + length), forKey: id) == nil
      else {
        throw source.fault(.corrupt, "a region of the VHDX is there twice", at: place)
      }
    }
    guard let table = found[Self.tableID], let metadata = found[Self.metadataID] else {
      throw source.fault(.corrupt, "the VHDX lacks its block table or its metadata", at: place)
    }
    guard !table.overlaps(metadata) else {
      throw source.fault(.corrupt, "the block table and the metadata overlap", at: place)
    }
    self.table = table
    self.metadata = metadata
  }
}
