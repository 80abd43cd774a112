// SPDX-License-Identifier: Apache-2.0
//
// The checker's comparison of what is referenced with what is counted, and of the COPIED flags.
// Spec: qcow2.rst, "Host cluster management".

import BlockTypes

extension Checker {
  /// Counts the refcount table and its blocks.
  mutating func countRefcountStructure() throws(Failure) {
    let geometry = header.geometry
    let table = header.refcountTableOffset.byteOffset
    let tableByteCount = UInt64(header.refcountTableClusterCount) << UInt64(geometry.clusterBits)
    try reference(table, tableByteCount, by: "the refcount table")
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
    let cluster = word >> UInt64(geometry.clusterBits)
    let block = refcountBlockOffset(word)
    guard let block, cluster < geometry.clusterCount(for: fileByteCount) else {
      report.refcountStructureIsBroken = true
      corrupt("refcount block \(index) is unaligned or outside the file")
      return
    }
    try reference(block, geometry.clusterByteCount, by: "refcount block \(index)")
    if counts[cluster] != 1 {
      report.refcountStructureIsBroken = true
      corrupt("refcount block \(index) refcount=\(counts[cluster])")
    }
  }

  /// The block that a refcount table entry names; nil when there is none, or no valid one.
  private func refcountBlockOffset(_ word: UInt64) -> UInt64? {
    guard word != 0, word.isAligned(to: header.geometry.clusterByteCount) else { return nil }
    return word
  }

  /// Compares the counts of all clusters of the file, a refcount block at a time.
  mutating func compareRefcounts() throws(Failure) {
    let perBlock = header.geometry.refcountBlockEntryCount
    var highest: UInt64 = 0
    var first: UInt64 = 0
    while first < counts.clusterCount {
      let end = min(first + perBlock, counts.clusterCount)
      let block = try refcountBlock(at: first / perBlock)
      if !(block.isEmpty && counts.isEmpty(in: first..<end)) {
        try compare(block, first..<end, &highest)
      }
      first = end
      if first / perBlock >= refcountTableEntryCount {
        // No block counts these; only references matter.
        first = counts.nextCandidate(from: first) / perBlock * perBlock
        if first < end { first = end }
      }
    }
    report.imageEndOffset = (highest + 1) << UInt64(header.geometry.clusterBits)
  }

  private var refcountTableEntryCount: UInt64 {
    UInt64(header.refcountTableClusterCount) << UInt64(header.geometry.clusterBits - 3)
  }

  /// The bytes of refcount block `index`; none where no block is or where it reads as zeroes.
  private func refcountBlock(at index: UInt64) throws(Failure) -> [UInt8] {
    let geometry = header.geometry
    guard index < refcountTableEntryCount else { return [] }
    let entry = try words(at: header.refcountTableOffset.byteOffset + index * 8, count: 1)
    guard let word = entry.first, let offset = refcountBlockOffset(word), offset < fileByteCount
    else { return [] }
    var bytes = try read(offset, Int(geometry.clusterByteCount))
    if bytes.isEmpty { return [] }
    bytes += [UInt8](repeating: 0, count: Int(geometry.clusterByteCount) - bytes.count)
    return bytes
  }

  private mutating func compare(
    _ block: [UInt8], _ clusters: Range<UInt64>, _ highest: inout UInt64
  ) throws(Failure) {
    for cluster in clusters {
      let index = Int(cluster - clusters.lowerBound)
      let onDisk =
        block.isEmpty
        ? 0 : Refcount.load(block, at: index, order: header.geometry.refcountOrder)
      let expected = counts[cluster]
      if onDisk > 0 || expected > 0 { highest = cluster }
      if onDisk > 0 {
        do throws(ImageError) {
          try stored.add(UInt32(min(onDisk, UInt64(UInt32.max))), to: cluster)
        } catch {
          throw fault(error)
        }
      }
      if onDisk < expected {
        corrupt("cluster \(cluster) refcount=\(onDisk) reference=\(expected)")
      } else if onDisk > expected {
        leak("cluster \(cluster) refcount=\(onDisk) reference=\(expected)")
      }
    }
  }

  /// Compares the COPIED flags of the active L1 table and of its L2 tables with the counts on disk.
  mutating func checkCopiedFlags() throws(Failure) {
    let geometry = header.geometry
    // Tables that several entries share are looked at once.
    var seen: Set<UInt64> = []
    var first = 0
    while first < header.l1EntryCount {
      let count = min(Self.chunkByteCount / 8, header.l1EntryCount - first)
      let words = try words(
        at: header.l1TableOffset.byteOffset + UInt64(first) * 8, count: count)
      for (index, word) in words.enumerated() where word != 0 {
        let entry = L1Entry(rawValue: word)
        guard entry.isValid(in: geometry), !entry.isEmpty else { continue }
        let table = entry.tableOffset.byteOffset
        guard table < fileByteCount else { continue }
        let cluster = table >> UInt64(geometry.clusterBits)
        if CopiedFlags.corrected(word, count: storedCount(of: cluster)) != word {
          corrupt("OFLAG_COPIED L2 cluster: l1_index=\(first + index)")
        }
        if seen.insert(table).inserted { try checkCopiedFlags(ofTableAt: table) }
      }
      first += count
    }
  }

  private mutating func checkCopiedFlags(ofTableAt table: UInt64) throws(Failure) {
    let geometry = header.geometry
    let entries = L2TableWords(try words(at: table, count: geometry.tableWordCount), header)
    for index in 0..<entries.entryCount {
      let word = entries.descriptor(index).rawValue
      let cluster = CopiedFlags.cluster(ofL2: word, geometry: geometry, version: header.version)
      guard let cluster else { continue }
      if CopiedFlags.corrected(word, count: storedCount(of: cluster)) != word {
        corrupt("OFLAG_COPIED data cluster: l2_table=\(table) l2_index=\(index)")
      }
    }
  }

  private func storedCount(of cluster: UInt64) -> UInt64 {
    cluster < stored.clusterCount ? stored[cluster] : 0
  }
}
