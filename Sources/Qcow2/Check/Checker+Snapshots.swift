// SPDX-License-Identifier: Apache-2.0
//
// The checker's look at the snapshot table and at persistent bitmaps.
// Spec: qcow2.rst, "Snapshots", "Bitmaps".

import BlockTypes

extension Checker {
  /// Counts the snapshot table and returns the snapshots whose L1 tables can be followed.
  mutating func countSnapshotTable() throws(Failure) -> [(index: Int, record: SnapshotRecord)] {
    if header.snapshotCount == 0 { return [] }
    let table = try SnapshotRecords(of: header, fileByteCount: fileByteCount, read: read)
    let before = conflicts.count
    try reference(
      header.snapshotTableOffset.byteOffset, table.byteCount, as: .table, by: "the snapshot table")
    if conflicts.count > before { report.snapshotTableIsContested = true }
    if let flaw = table.flaw {
      corrupt(flaw, "Snapshots", inTable: true)
      report.readableSnapshotCount = table.records.count
    }
    var usable: [(index: Int, record: SnapshotRecord)] = []
    for (index, record) in table.records.enumerated() {
      if record.extraByteCount > SnapshotRecord.extraByteCountMax {
        corrupt(
          "snapshot '\(record.id)' has \(record.extraByteCount) bytes of extra data, more than "
            + "\(SnapshotRecord.extraByteCountMax)", "Snapshots", inTable: true)
        report.snapshotTableIsContested = true
      }
      if header.version >= 3, record.extraByteCount < SnapshotRecord.extraByteCountMin {
        corrupt(
          "snapshot '\(record.id)' has \(record.extraByteCount) bytes of extra data, fewer than "
            + "\(SnapshotRecord.extraByteCountMin)", "Snapshots", inTable: true)
        report.snapshotTableIsContested = true
      }
      if let flaw = flaw(ofTableOf: record) {
        corrupt("snapshot '\(record.id)': \(flaw)", "Snapshots", inTable: true)
        report.snapshotFlaws[index] = flaw
      } else {
        usable.append((index, record))
      }
    }
    return usable
  }

  private func flaw(ofTableOf record: SnapshotRecord) -> String? {
    let offset = record.l1TableOffset.byteOffset
    let byteCount = UInt64(record.l1EntryCount) * 8
    guard offset.isAligned(to: header.geometry.clusterByteCount) else {
      return "its L1 table at host offset \(offset) does not start at a cluster"
    }
    guard byteCount <= UInt64(Header.l1TableByteCountMax) else {
      return "its L1 table has \(byteCount) bytes, more than \(Header.l1TableByteCountMax)"
    }
    guard byteCount == 0 || offset > 0, !rules.isPastEnd(offset, byteCount) else {
      return "its L1 table at host offset \(offset) lies on the header or behind the file"
    }
    return nil
  }

  /// A cluster that is both an L1 table and a guest's data is a table only if it looks like one.
  mutating func judgeContestedSnapshots(
    _ snapshots: [(index: Int, record: SnapshotRecord)]
  ) throws(Failure) {
    let bits = UInt64(header.geometry.clusterBits)
    for (index, record) in snapshots where report.snapshotFlaws[index] == nil {
      let start = record.l1TableOffset.byteOffset
      let clusters =
        (start >> bits)..<((start + UInt64(record.l1EntryCount) * 8) >> bits) + 1
      guard clusters.contains(where: { conflicts[$0] != nil }) else { continue }
      let words = try words(at: start, count: record.l1EntryCount)
      if words.contains(where: { rules.flaw(ofL1: $0) != nil }) {
        report.snapshotFlaws[index] = "its L1 table is something else"
      }
    }
  }

  // MARK: Bitmaps

  mutating func countBitmaps() throws(Failure) {
    // Without its autoclear bit the extension means nothing, and its clusters are leaks.
    guard header.hasPersistentBitmaps else { return }
    let location: BitmapsExtension
    do throws(ImageError) {
      guard let bitmaps = try header.bitmaps() else { return }
      location = bitmaps
    } catch {
      return bitmapFlaw(error.reason)
    }
    guard
      try reference(
        location.directoryOffset.byteOffset, location.directoryByteCount, as: .table,
        by: "the bitmap directory")
    else {
      report.bitmapFlaw = "the directory passes the end of the file"
      return
    }
    var directory = try read(location.directoryOffset.byteOffset, Int(location.directoryByteCount))
    directory += [UInt8](
      repeating: 0, count: Int(location.directoryByteCount) - directory.count)
    let entries: [BitmapEntry]
    do throws(ImageError) {
      entries = try BitmapEntry.list(decoding: directory, count: location.bitmapCount)
    } catch {
      return bitmapFlaw(error.reason)
    }
    for entry in entries { try countBitmapTable(entry) }
  }

  private mutating func bitmapFlaw(_ text: String) {
    corrupt(text, "Bitmaps", inTable: true)
    report.bitmapFlaw = text
  }

  private mutating func countBitmapTable(_ bitmap: BitmapEntry) throws(Failure) {
    let start = bitmap.tableOffset.byteOffset
    guard start.isAligned(to: header.geometry.clusterByteCount) else {
      return bitmapFlaw("the table of bitmap '\(bitmap.name)' does not start at a cluster")
    }
    guard
      try reference(
        start, UInt64(bitmap.tableEntryCount) * 8, as: .table,
        by: "the table of bitmap '\(bitmap.name)'")
    else {
      report.bitmapFlaw = "a table passes the end of the file"
      return
    }
    var first = 0
    while first < bitmap.tableEntryCount {
      let count = min(Self.chunkByteCount / 8, bitmap.tableEntryCount - first)
      let words = try words(at: start + UInt64(first) * 8, count: count)
      try account(words.count)
      for (index, word) in words.enumerated() where word != 0 {
        try countBitmapEntry(word, index: first + index, bitmap)
      }
      first += count
    }
  }

  private mutating func countBitmapEntry(
    _ word: UInt64, index: Int, _ bitmap: BitmapEntry
  ) throws(Failure) {
    // Bits 9 to 55 are the host offset; bit 0 means all ones where there is none.
    let host = word & RawL2Entry.offsetMask
    if word == 1 { return }
    guard word == host, host.isAligned(to: header.geometry.clusterByteCount) else {
      return bitmapFlaw(
        "entry \(index) of the table of bitmap '\(bitmap.name)' is 0x\(String(word, radix: 16)), "
          + "which has reserved bits or is not aligned")
    }
    let isCounted = try reference(
      host, header.geometry.clusterByteCount, as: .table, by: "data of bitmap '\(bitmap.name)'")
    if !isCounted { report.bitmapFlaw = "data lies behind the end of the file" }
  }
}
