// SPDX-License-Identifier: Apache-2.0
//
// The checker's comparison of what is referenced with what is counted, and of the COPIED flags.
// Spec: qcow2.rst, "Host cluster management".

import BlockTypes

extension Checker {
  private var countsRule: String { "Host cluster management" }

  /// Counts the refcount table and its blocks.
  mutating func countRefcountStructure() throws(Failure) {
    let geometry = header.geometry
    let table = header.refcountTableOffset.byteOffset
    let tableByteCount = UInt64(header.refcountTableClusterCount) << UInt64(geometry.clusterBits)
    guard tableByteCount > 0, table != 0, table.isAligned(to: geometry.clusterByteCount),
      !rules.isPastEnd(table, tableByteCount)
    else {
      report.refcountStructureIsBroken = true
      corrupt("the refcount table is missing or lies behind the file", countsRule)
      return
    }
    let before = conflicts.count
    try reference(table, tableByteCount, as: .table, by: "the refcount table")
    if conflicts.count > before { report.refcountStructureIsBroken = true }
    var first = 0
    let entryCount = Int(tableByteCount / 8)
    while first < entryCount {
      let count = min(Self.chunkByteCount / 8, entryCount - first)
      let words = try words(at: table + UInt64(first) * 8, count: count)
      for (index, word) in words.enumerated() where word != 0 {
        try countRefcountBlock(word, index: first + index)
      }
      first += count
    }
  }

  private mutating func countRefcountBlock(_ word: UInt64, index: Int) throws(Failure) {
    let geometry = header.geometry
    let name = "refcount block \(index) at host offset \(word)"
    guard word.isAligned(to: geometry.clusterByteCount),
      word >> UInt64(geometry.clusterBits) < geometry.clusterCount(for: fileByteCount)
    else {
      guard isFirstPass else { return }
      report.refcountStructureIsBroken = true
      corrupt("\(name) is not aligned to a cluster or lies outside the file", countsRule)
      return
    }
    try reference(word, geometry.clusterByteCount, as: .refcountBlock, by: name)
    let cluster = word >> UInt64(geometry.clusterBits)
    if counts.window.contains(cluster), counts[cluster] != 1 {
      report.refcountStructureIsBroken = true
      corrupt("\(name) has \(counts[cluster]) references instead of one", countsRule)
    }
  }

  private var refcountTableEntryCount: UInt64 {
    UInt64(header.refcountTableClusterCount) << UInt64(header.geometry.clusterBits - 3)
  }

  /// The bytes of refcount block `index`; none where it reads as zeroes, nil where no block is.
  private func refcountBlock(at index: UInt64) throws(Failure) -> [UInt8]? {
    let geometry = header.geometry
    guard index < refcountTableEntryCount else { return nil }
    let entry = try words(at: header.refcountTableOffset.byteOffset + index * 8, count: 1)
    guard let word = entry.first, word != 0, word.isAligned(to: geometry.clusterByteCount),
      word < fileByteCount
    else { return nil }
    var bytes = try read(word, Int(geometry.clusterByteCount))
    if bytes.isEmpty { return [] }
    bytes += [UInt8](repeating: 0, count: Int(geometry.clusterByteCount) - bytes.count)
    return bytes
  }

  /// Compares the counts of all clusters of the window, a refcount block at a time.
  mutating func compareRefcounts(_ highest: inout UInt64) throws(Failure) {
    let perBlock = header.geometry.refcountBlockEntryCount
    var first = counts.window.lowerBound
    while first < counts.window.upperBound {
      let end = min(first + perBlock, counts.window.upperBound)
      let block = try refcountBlock(at: first / perBlock)
      let isReferenced = !counts.isEmpty(in: first..<end)
      if block == nil && isReferenced { report.needsMoreRefcountBlocks = true }
      if block?.isEmpty == false || isReferenced {
        compare(block ?? [], first..<end, &highest)
      }
      first = end
      if first / perBlock >= refcountTableEntryCount {
        // No block counts these; only references matter.
        first = max(end, counts.nextCandidate(from: first) / perBlock * perBlock)
      }
    }
  }

  private mutating func compare(
    _ block: [UInt8], _ clusters: Range<UInt64>, _ highest: inout UInt64
  ) {
    let geometry = header.geometry
    for cluster in clusters {
      let index = Int(cluster - clusters.lowerBound)
      let onDisk =
        block.isEmpty
        ? 0 : Refcount.load(block, at: index, order: geometry.refcountOrder)
      let expected = counts[cluster]
      if onDisk == 0 && expected == 0 { continue }
      // Counts of what lies behind the file are nobody's.
      if expected == 0, cluster >= clusterCount - 1 { break }
      highest = cluster
      if onDisk == 1 { counts.markStoredOnce(cluster) }
      if onDisk == expected {
        // Everybody is counted, and still they overwrite each other.
        if let conflict = conflicts[cluster] {
          corrupt(
            "\(conflict) (host offset \(cluster << UInt64(geometry.clusterBits)))", countsRule)
          report.tableCorruptionCount += 1
        }
        continue
      }
      let text =
        "cluster \(cluster) (host offset \(cluster << UInt64(geometry.clusterBits))) "
        + "refcount=\(onDisk) reference=\(expected)"
      if onDisk < expected {
        corrupt(text, countsRule)
      } else {
        leak(text)
      }
      if expected > geometry.refcountMax {
        corrupt(
          "cluster \(cluster) has more references than its count can hold "
            + "(\(geometry.refcountMax)); widen the counts (qemu-img amend -o refcount_bits=64)",
          countsRule)
        report.tableCorruptionCount += 1
      }
      if let conflict = conflicts[cluster] {
        remark("  \(conflict)")
        report.tableCorruptionCount += 1
      }
    }
  }

  /// Compares the COPIED flags of the active L1 table and of its L2 tables with the counts on disk,
  /// as far as these are of clusters of the window.
  mutating func checkCopiedFlags() throws(Failure) {
    let geometry = header.geometry
    // Tables that several entries share are looked at once, or as often as they do not fit here.
    var tables: [UInt64] = []
    var first = 0
    while first < header.l1EntryCount {
      let count = min(Self.chunkByteCount / 8, header.l1EntryCount - first)
      let words = try words(
        at: header.l1TableOffset.byteOffset + UInt64(first) * 8, count: count)
      for (index, word) in words.enumerated() where word != 0 {
        let table = word & RawL2Entry.offsetMask
        guard table != 0, table.isAligned(to: geometry.clusterByteCount), table < fileByteCount
        else { continue }
        let cluster = table >> UInt64(geometry.clusterBits)
        if isFlagWrong(word, cluster, isTable: true) {
          corrupt(
            "OFLAG_COPIED L2 cluster: l1_index=\(first + index) l1_entry=0x"
              + "\(String(word, radix: 16)) refcount\(isCopied(word) ? "!" : "=")=1",
            EntryFlaw.l1Rule)
        }
        tables.append(table)
        if tables.count >= Self.l2TablesMax { try checkCopiedFlags(ofTablesAt: &tables) }
      }
      first += count
    }
    try checkCopiedFlags(ofTablesAt: &tables)
  }

  private func isCopied(_ word: UInt64) -> Bool { word & L2Entry.copiedFlag != 0 }

  private func isFlagWrong(_ word: UInt64, _ cluster: UInt64, isTable: Bool = false) -> Bool {
    if rules.hasDataFile, !isTable { return isFirstPass && !isCopied(word) }
    // Behind the file nothing has a count.
    guard counts.window.contains(cluster) || cluster >= clusterCount && isFirstPass else {
      return false
    }
    return isCopied(word) != counts.isStoredOnce(cluster)
  }

  private mutating func checkCopiedFlags(ofTablesAt tables: inout [UInt64]) throws(Failure) {
    tables.sort()
    var last: UInt64?
    for table in tables where table != last {
      last = table
      for (index, entry) in try entries(at: table).enumerated() where !entry.isEmpty {
        let host = entry.hostOffset
        if entry.isCompressed || host == 0 && !(rules.hasDataFile && entry.isCopied) { continue }
        guard host.isAligned(to: header.geometry.clusterByteCount) else { continue }
        if isFlagWrong(entry.word, host >> UInt64(header.geometry.clusterBits)) {
          corrupt(
            "OFLAG_COPIED data cluster: l2_table=\(table) l2_index=\(index) l2_entry=0x"
              + "\(String(entry.word, radix: 16)) refcount\(entry.isCopied ? "!" : "=")=1",
            EntryFlaw.standardRule)
        }
      }
    }
    tables.removeAll(keepingCapacity: true)
  }
}
