// SPDX-License-Identifier: Apache-2.0
//
// The checker's walk over L1 and L2 tables. An L2 table that several L1 entries share is read once
// and counted as often as it is used.
// Spec: qcow2.rst, "Cluster mapping".

import BlockTypes

/// An L2 table and who uses it.
struct L2TableUse {
  var offset: UInt64
  /// L1 entries that name it, of all L1 tables and of the active one.
  var times: UInt32
  var activeTimes: UInt32
  /// The first of these entries.
  var l1Index: Int

  /// Where an entry of the table is, for messages.
  func place(_ index: Int, _ rules: EntryRules) -> String {
    let guest =
      UInt64(l1Index) * rules.geometry.l2CoverageByteCount
      + UInt64(index) << UInt64(rules.geometry.clusterBits)
    return "L2 entry \(index) of the table at host offset \(offset) (guest offset \(guest))"
  }
}

extension Checker {
  /// Counts the clusters of an L1 table, before anybody looks what it says.
  mutating func claimTable(
    _ offset: HostOffset, _ entryCount: Int, of name: String
  ) throws(Failure) {
    try reference(offset.byteOffset, UInt64(entryCount) * 8, as: .table, by: name)
  }

  mutating func countL1Table(
    at offset: HostOffset, entryCount: Int, snapshot: String?, _ tables: inout [L2TableUse]
  ) throws(Failure) {
    var first = 0
    while first < entryCount {
      let count = min(Self.chunkByteCount / 8, entryCount - first)
      let words = try words(at: offset.byteOffset + UInt64(first) * 8, count: count)
      try account(words.count)
      for (index, word) in words.enumerated() where word != 0 {
        try countL1Entry(
          word, index: first + index, at: offset.byteOffset + UInt64(first + index) * 8,
          snapshot: snapshot, &tables)
        if tables.count >= Self.l2TablesMax { try countL2Tables(&tables) }
      }
      first += count
    }
  }

  /// Words of tables that were read: more of them than the file has bytes for means that tables lie
  /// on each other, and to follow them all would take for ever.
  mutating func account(_ count: Int) throws(Failure) {
    tableWordCount += UInt64(count)
    guard tableWordCount <= tableWordsMax else {
      throw fault(
        ImageError(.corrupt, "the image's L1 and bitmap tables lie on each other many times over"))
    }
  }

  private mutating func countL1Entry(
    _ word: UInt64, index: Int, at place: UInt64, snapshot: String?, _ tables: inout [L2TableUse]
  ) throws(Failure) {
    let name = snapshot.map { "L1 entry \(index) of snapshot '\($0)'" } ?? "L1 entry \(index)"
    var word = word
    if let flaw = try flaw(ofL1: word) {
      if mend != nil {
        try change(
          "\(name) (0x\(String(word, radix: 16)) at host offset \(place)), which \(flaw.problem): "
            + flaw.result, at: place, to: [flaw.mended.word])
        word = flaw.mended.word
      } else {
        corrupt(
          "\(name) (0x\(String(word, radix: 16)) at host offset \(place)) \(flaw.problem)",
          flaw.rule, inTable: true)
      }
    }
    let table = word & RawL2Entry.offsetMask
    guard table != 0, table.isAligned(to: header.geometry.clusterByteCount),
      !rules.isPastEnd(table, header.geometry.clusterByteCount)
    else { return }
    try reference(
      table, header.geometry.clusterByteCount, as: .l2Table, by: "the L2 table of \(name)")
    let activeTimes: UInt32 = snapshot == nil ? 1 : 0
    if let last = tables.last, last.offset == table {
      tables[tables.count - 1].times &+= 1  // there are fewer than 2^32 L1 entries in a batch
      tables[tables.count - 1].activeTimes &+= activeTimes
    } else {
      tables.append(
        L2TableUse(offset: table, times: 1, activeTimes: activeTimes, l1Index: index))
    }
  }

  /// What is wrong with an L1 entry, by itself or because of what its table is.
  private func flaw(ofL1 word: UInt64) throws(Failure) -> EntryFlaw? {
    if let flaw = rules.flaw(ofL1: word) { return flaw }
    guard mend != nil else { return nil }
    let table = word & RawL2Entry.offsetMask
    let bits = UInt64(header.geometry.clusterBits)
    let isTable = counts.owner(of: table >> bits) == .table
    guard isTable || contestedTables.contains(table) else { return nil }
    // Somebody else has the cluster too: it is a table only if it looks like one.
    if !isTable {
      var isSound = true
      for entry in try entries(at: table) where rules.flaw(of: entry) != nil { isSound = false }
      if isSound { return nil }
    }
    return EntryFlaw(
      problem: "names an L2 table in a cluster that is something else", rule: EntryFlaw.l1Rule,
      mended: RawL2Entry(word: 0), result: EntryRules.emptied)
  }

  /// The entries of an L2 table; none where it reads as zeroes.
  func entries(at table: UInt64) throws(Failure) -> [RawL2Entry] {
    var words = try words(at: table, count: rules.geometry.tableWordCount)
    if words.isEmpty { return [] }
    guard rules.hasSubclusters else { return words.map { RawL2Entry(word: $0) } }
    words += [UInt64](repeating: 0, count: words.count % 2)
    return stride(from: 0, to: words.count, by: 2).map {
      RawL2Entry(word: words[$0], bitmap: words[$0 + 1])
    }
  }

  /// Counts what the tables name, each table once, and forgets them.
  mutating func countL2Tables(_ tables: inout [L2TableUse]) throws(Failure) {
    tables.sort { ($0.offset, $0.l1Index) < ($1.offset, $1.l1Index) }
    var position = 0
    while position < tables.count {
      var use = tables[position]
      position += 1
      while position < tables.count, tables[position].offset == use.offset {
        use.times &+= tables[position].times
        use.activeTimes &+= tables[position].activeTimes
        position += 1
      }
      try countL2Table(use)
      if position % 1024 == 0 { tell(position, of: tables.count) }
    }
    tables.removeAll(keepingCapacity: true)
  }

  private func tell(_ position: Int, of count: Int) {
    let part = Double(position) / Double(max(count, 1))
    let start = Double(counts.window.lowerBound)
    let reached = start + Double(counts.window.count) * part
    progress(Int(reached / Double(clusterCount) * 1_000_000))
  }

  private mutating func countL2Table(_ use: L2TableUse) throws(Failure) {
    let geometry = header.geometry
    var nextContiguous: UInt64?
    // Neighbours in the guest that are neighbours in the file are counted at once.
    var run = ByteRange(start: 0, end: 0)
    for (index, word) in try entries(at: use.offset).enumerated() where !word.isEmpty {
      let entry = try judged(word, index: index, use)
      if entry.isCompressed {
        if rules.flaw(of: entry) == nil || entry.isCopied { try countCompressed(entry, index, use) }
        continue
      }
      let host = entry.hostOffset
      // The cluster at 0 of a data file is one like the others.
      guard host != 0 || rules.hasDataFile && entry.isCopied else { continue }
      if isFirstPass {
        report.allocatedClusterCount += UInt64(use.activeTimes)
        if let nextContiguous, nextContiguous != host {
          report.fragmentedClusterCount += UInt64(use.activeTimes)
        }
      }
      nextContiguous = host + geometry.clusterByteCount
      guard !rules.hasDataFile, host.isAligned(to: geometry.clusterByteCount),
        !rules.isPastEnd(host, geometry.clusterByteCount)
      else { continue }
      if run.end != host {
        try countData(run, use)
        run = ByteRange(start: host, end: host)
      }
      run = ByteRange(start: run.start, end: host + geometry.clusterByteCount)
    }
    try countData(run, use)
  }

  private mutating func countData(_ run: ByteRange, _ use: L2TableUse) throws(Failure) {
    guard !run.isEmpty else { return }
    try reference(
      run.start, run.byteCount, times: use.times, as: .data,
      by: "a data cluster of the L2 table at host offset \(use.offset)")
  }

  private mutating func countCompressed(
    _ entry: RawL2Entry, _ index: Int, _ use: L2TableUse
  ) throws(Failure) {
    if isFirstPass {
      report.allocatedClusterCount += UInt64(use.activeTimes)
      report.compressedClusterCount += UInt64(use.activeTimes)
      report.fragmentedClusterCount += UInt64(use.activeTimes)
    }
    let range = L2Entry(rawValue: entry.word).compressedRange(in: header.geometry)
    let rules = rules
    try reference(
      range.start, range.byteCount, times: use.times, as: .data,
      by: "a compressed cluster (\(use.place(index, rules)))")
  }

  /// The entry, after telling or mending what is wrong with it.
  private mutating func judged(
    _ entry: RawL2Entry, index: Int, _ use: L2TableUse
  ) throws(Failure) -> RawL2Entry {
    var entry = entry
    // Each repair takes away one contradiction, and there are few.
    for _ in 0..<8 {
      guard let flaw = rules.flaw(of: entry) ?? misplacement(of: entry) else { break }
      let value = "0x\(String(entry.word, radix: 16))"
      guard mend != nil else {
        corrupt("\(use.place(index, rules)): \(value) \(flaw.problem)", flaw.rule, inTable: true)
        break
      }
      try change(
        "\(use.place(index, rules)): \(value) \(flaw.problem): \(flaw.result)",
        at: use.offset + UInt64(index * rules.wordsPerEntry * 8),
        to: rules.hasSubclusters
          ? [flaw.mended.word, flaw.mended.bitmap] : [flaw.mended.word])
      entry = flaw.mended
    }
    return entry
  }

  /// An entry that leads to a table, which only a repair looks for: a check finds the overlap.
  private func misplacement(of entry: RawL2Entry) -> EntryFlaw? {
    guard mend != nil, !rules.hasDataFile else { return nil }
    let bits = UInt64(header.geometry.clusterBits)
    var range = ByteRange(
      start: entry.hostOffset, end: entry.hostOffset + header.geometry.clusterByteCount)
    if entry.isCompressed {
      range = L2Entry(rawValue: entry.word).compressedRange(in: header.geometry)
    } else if entry.hostOffset == 0 {
      return nil
    }
    let clusters = (range.start >> bits)..<(((range.end - 1) >> bits) + 1)
    guard let held = counts.firstHeld(in: clusters) else { return nil }
    return EntryFlaw(
      problem: "names \(ownerName(of: held)) as the guest's data", rule: EntryFlaw.standardRule,
      mended: rules.zero, result: EntryFlaw.losesCluster)
  }
}
