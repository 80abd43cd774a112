// SPDX-License-Identifier: Apache-2.0
//
// The checker's walk over L1 and L2 tables, snapshots and bitmaps. An L2 table that several L1
// entries share is read once and counted as often as it is used.
// Spec: qcow2.rst, "Cluster mapping", "Snapshots", "Bitmaps".

import BlockTypes

extension Checker {
  mutating func countL1Table(
    at offset: HostOffset, entryCount: Int, isActive: Bool, _ tables: inout [UInt64: L2TableUse],
    _ entryBudget: inout Int
  ) throws(Failure) {
    try reference(offset.byteOffset, UInt64(entryCount) * 8, by: "an L1 table")
    entryBudget -= entryCount
    guard entryBudget >= 0 else {
      throw fault(ImageError(.unsupported, "the image has too many L1 entries to be checked"))
    }
    var first = 0
    while first < entryCount {
      let count = min(Self.chunkByteCount / 8, entryCount - first)
      let words = try words(at: offset.byteOffset + UInt64(first) * 8, count: count)
      for (index, word) in words.enumerated() where word != 0 {
        try countL1Entry(word, index: first + index, isActive: isActive, &tables)
      }
      first += count
    }
  }

  private mutating func countL1Entry(
    _ word: UInt64, index: Int, isActive: Bool, _ tables: inout [UInt64: L2TableUse]
  ) throws(Failure) {
    let entry = L1Entry(rawValue: word)
    guard entry.isValid(in: header.geometry) else {
      corrupt("L1 entry \(index) is 0x\(String(word, radix: 16))", inTable: true)
      return
    }
    if entry.isEmpty { return }
    let table = entry.tableOffset.byteOffset
    try reference(table, header.geometry.clusterByteCount, by: "the L2 table of L1 entry \(index)")
    // What lies past the end of the file was reported above and reads as an empty table.
    guard table < fileByteCount else { return }
    tables[table, default: L2TableUse()].times &+= 1  // at most tableEntryCountMax
    if isActive { tables[table, default: L2TableUse()].activeTimes &+= 1 }
    guard tables.count <= l2TableCountMax else {
      throw fault(ImageError(.unsupported, "the image has too many L2 tables to be checked"))
    }
  }

  mutating func countL2Table(at offset: UInt64, use: L2TableUse) throws(Failure) {
    let geometry = header.geometry
    var nextContiguous: UInt64?
    let table = L2TableWords(try words(at: offset, count: geometry.tableWordCount), header)
    for index in 0..<table.entryCount where !table.isEmpty(index) {
      let entry = table.descriptor(index)
      switch table.kind(index) {
      case .unallocated, .zeroPlain: break
      case .normal, .zeroAllocated:
        let host = entry.hostOffset.byteOffset
        report.allocatedClusterCount += UInt64(use.activeTimes)
        if let nextContiguous, nextContiguous != host {
          report.fragmentedClusterCount += UInt64(use.activeTimes)
        }
        nextContiguous = host + geometry.clusterByteCount
        try reference(host, geometry.clusterByteCount, times: use.times, by: "a data cluster")
      case .compressed:
        if entry.isCopied {
          corrupt(
            "a compressed cluster in the L2 table at \(offset) has the COPIED flag", inTable: true)
        }
        let range = entry.compressedRange(in: geometry)
        report.allocatedClusterCount += UInt64(use.activeTimes)
        report.compressedClusterCount += UInt64(use.activeTimes)
        report.fragmentedClusterCount += UInt64(use.activeTimes)
        try reference(
          range.start, range.byteCount, times: use.times, by: "a compressed cluster")
      case .invalid:
        corrupt(
          "an entry of the L2 table at \(offset) is \(table.text(of: index))", inTable: true)
      }
    }
  }

  mutating func countSnapshots(
    _ tables: inout [UInt64: L2TableUse], _ entryBudget: inout Int
  ) throws(Failure) {
    if header.snapshotCount == 0 { return }
    let table = try SnapshotTable(of: header, fault: fault, read: read)
    try reference(
      header.snapshotTableOffset.byteOffset, table.byteCount, by: "the snapshot table")
    for snapshot in table.entries {
      let isAligned = snapshot.l1TableOffset.byteOffset.isAligned(
        to: header.geometry.clusterByteCount)
      guard isAligned, snapshot.l1EntryCount <= Header.l1TableByteCountMax / 8 else {
        corrupt("the L1 table of snapshot \(snapshot.id) is unaligned or too large", inTable: true)
        continue
      }
      try countL1Table(
        at: snapshot.l1TableOffset, entryCount: snapshot.l1EntryCount, isActive: false, &tables,
        &entryBudget)
    }
  }

  mutating func countBitmaps(_ entryBudget: inout Int) throws(Failure) {
    // Without its autoclear bit the extension means nothing, and its clusters are leaks.
    guard header.hasPersistentBitmaps else { return }
    let entries: [BitmapEntry]
    let location: BitmapsExtension
    do throws(ImageError) {
      guard let bitmaps = try header.bitmaps() else { return }
      location = bitmaps
    } catch {
      throw fault(error)
    }
    let directory = try read(
      location.directoryOffset.byteOffset, Int(location.directoryByteCount))
    try reference(
      location.directoryOffset.byteOffset, location.directoryByteCount, by: "the bitmap directory")
    do throws(ImageError) {
      entries = try BitmapEntry.list(decoding: directory, count: location.bitmapCount)
    } catch {
      corrupt(error.reason, inTable: true)
      return
    }
    for entry in entries {
      entryBudget -= entry.tableEntryCount
      guard entryBudget >= 0 else {
        throw fault(ImageError(.unsupported, "the bitmaps are too large to be checked"))
      }
      try countBitmapTable(entry)
    }
  }

  private mutating func countBitmapTable(_ bitmap: BitmapEntry) throws(Failure) {
    let start = bitmap.tableOffset.byteOffset
    try reference(start, UInt64(bitmap.tableEntryCount) * 8, by: "the table of a bitmap")
    var first = 0
    while first < bitmap.tableEntryCount {
      let count = min(Self.chunkByteCount / 8, bitmap.tableEntryCount - first)
      let (offset, overflows) = start.addingReportingOverflow(UInt64(first) * 8)
      if overflows { return }
      for word in try words(at: offset, count: count) {
        // Bits 9 to 55 are the host offset; bit 0 means all ones where there is none.
        let host = word & 0x00ff_ffff_ffff_fe00
        if host == 0 { continue }
        guard host.isAligned(to: header.geometry.clusterByteCount), word == host else {
          corrupt("an entry of a bitmap table is 0x\(String(word, radix: 16))", inTable: true)
          continue
        }
        try reference(host, header.geometry.clusterByteCount, by: "a bitmap's cluster")
      }
      first += count
    }
  }
}
