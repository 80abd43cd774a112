// SPDX-License-Identifier: Apache-2.0
//
// What can be wrong with a single L1 or L2 entry, and what reads safest in its place.
// Spec: qcow2.rst, "L1 table entry", "L2 table entry", "Standard Cluster Descriptor",
// "Compressed Clusters Descriptor", "Extended L2 Entries". This file performs no I/O.

import BlockTypes

/// An L2 entry as it lies in the file: one word, and a second one where there are subclusters.
struct RawL2Entry: Hashable {
  var word: UInt64
  /// Allocated subclusters in the low half, zero subclusters in the high half.
  var bitmap: UInt64 = 0

  static let allocatedMask: UInt64 = 0xffff_ffff
  static let offsetMask: UInt64 = 0x00ff_ffff_ffff_fe00

  var isEmpty: Bool { word == 0 && bitmap == 0 }
  var isCompressed: Bool { word & L2Entry.compressedFlag != 0 }
  var isCopied: Bool { word & L2Entry.copiedFlag != 0 }
  /// The host cluster of an entry that is not compressed; 0 when it has none.
  var hostOffset: UInt64 { word & Self.offsetMask }
}

/// One contradiction in an entry.
struct EntryFlaw {
  /// A clause that goes behind the entry's place.
  let problem: String
  /// The section of the specification.
  let rule: String
  /// What the entry becomes, and what that means for the guest's bytes.
  let mended: RawL2Entry
  let result: String

  static let l1Rule = "L1 table entry"
  static let standardRule = "Standard Cluster Descriptor"
  static let compressedRule = "Compressed Clusters Descriptor"
  static let extendedRule = "Extended L2 Entries"

  static let keepsMapping = "the mapping stays"
  static let losesCluster = "the cluster reads as zeroes"
}

/// What the entries of an image have to keep to.
struct EntryRules {
  let geometry: ClusterGeometry
  let version: Int
  let fileByteCount: UInt64
  let hasSubclusters: Bool
  /// Guest clusters lie in another file, which has no reference counts.
  let hasDataFile: Bool

  init(_ header: Header, fileByteCount: UInt64) {
    geometry = header.geometry
    version = header.version
    self.fileByteCount = fileByteCount
    hasSubclusters = header.geometry.hasSubclusters
    hasDataFile = header.incompatibleFeatures.contains(.externalDataFile)
  }

  /// Words of an L2 entry.
  var wordsPerEntry: Int { hasSubclusters ? 2 : 1 }

  /// Whether bytes pass the end of the file by more than the end of its last cluster.
  func isPastEnd(_ start: UInt64, _ byteCount: UInt64) -> Bool {
    let (end, overflows) = start.addingReportingOverflow(byteCount)
    return overflows || end > fileByteCount && end - fileByteCount >= geometry.clusterByteCount
  }

  /// What is wrong with an L1 entry; the mended entry is its first word.
  func flaw(ofL1 word: UInt64) -> EntryFlaw? {
    let offset = word & RawL2Entry.offsetMask
    let empty = RawL2Entry(word: 0)
    if offset == 0 {
      guard word != 0 else { return nil }
      return EntryFlaw(
        problem: "has flags but no L2 table", rule: EntryFlaw.l1Rule, mended: empty,
        result: "it becomes empty, as it reads")
    }
    guard offset.isAligned(to: geometry.clusterByteCount) else {
      return EntryFlaw(
        problem: "names an L2 table that does not start at a cluster", rule: EntryFlaw.l1Rule,
        mended: empty, result: Self.emptied)
    }
    guard !isPastEnd(offset, geometry.clusterByteCount) else {
      return EntryFlaw(
        problem: "names an L2 table behind the end of the file", rule: EntryFlaw.l1Rule,
        mended: empty, result: Self.emptied)
    }
    let plain = word & (RawL2Entry.offsetMask | L1Entry.copiedFlag)
    guard plain == word else {
      return EntryFlaw(
        problem: "has reserved bits set", rule: EntryFlaw.l1Rule,
        mended: RawL2Entry(word: plain), result: EntryFlaw.keepsMapping)
    }
    return nil
  }

  static let emptied = "the entry becomes empty: its range reads as the backing file or as zeroes"

  /// What is wrong with an L2 entry by itself.
  func flaw(of entry: RawL2Entry) -> EntryFlaw? {
    if entry.isEmpty { return nil }
    return entry.isCompressed ? compressedFlaw(entry) : standardFlaw(entry)
  }

  private func compressedFlaw(_ entry: RawL2Entry) -> EntryFlaw? {
    func flaw(_ problem: String, _ mended: RawL2Entry, _ result: String) -> EntryFlaw {
      EntryFlaw(
        problem: problem, rule: EntryFlaw.compressedRule, mended: mended, result: result)
    }
    if hasDataFile {
      return flaw(
        "is compressed, which clusters of a data file cannot be", zero, EntryFlaw.losesCluster)
    }
    let range = L2Entry(rawValue: entry.word).compressedRange(in: geometry)
    if isPastEnd(range.start / 512 * 512, range.end - range.start / 512 * 512) {
      return flaw(
        "names compressed bytes at \(range.start) behind the end of the file", zero,
        EntryFlaw.losesCluster)
    }
    if entry.isCopied {
      return flaw(
        "is compressed and has the COPIED flag",
        RawL2Entry(word: entry.word & ~L2Entry.copiedFlag), EntryFlaw.keepsMapping)
    }
    if entry.bitmap != 0 {
      return flaw(
        "is compressed and has subclusters", RawL2Entry(word: entry.word), EntryFlaw.keepsMapping)
    }
    return nil
  }

  private func standardFlaw(_ entry: RawL2Entry) -> EntryFlaw? {
    let host = entry.hostOffset
    let isZero = hasSubclusters ? false : entry.word & L2Entry.zeroFlag != 0
    func flaw(_ problem: String, _ mended: RawL2Entry, _ result: String) -> EntryFlaw {
      EntryFlaw(problem: problem, rule: EntryFlaw.standardRule, mended: mended, result: result)
    }
    guard host.isAligned(to: geometry.clusterByteCount) else {
      if isZero {
        return flaw(
          "has a preallocated cluster at \(host), which is not aligned", zero,
          "it reads as zeroes as before")
      }
      if hasSubclusters && entry.bitmap & RawL2Entry.allocatedMask == 0 {
        return flaw(
          "has a preallocated cluster at \(host), which is not aligned",
          RawL2Entry(word: 0, bitmap: entry.bitmap), "it reads as before")
      }
      return flaw(
        "has a data cluster at \(host), which is not aligned", zero, EntryFlaw.losesCluster)
    }
    if host != 0, !hasDataFile, isPastEnd(host, geometry.clusterByteCount) {
      return flaw(
        "has a cluster at \(host), behind the end of the file", zero,
        "the cluster reads as zeroes, as what lies there does")
    }
    var plain = entry.word & (RawL2Entry.offsetMask | L2Entry.copiedFlag)
    if version >= 3 && !hasSubclusters { plain |= entry.word & L2Entry.zeroFlag }
    if host == 0 && !hasDataFile { plain &= ~L2Entry.copiedFlag }
    guard plain == entry.word else {
      let isJustCopied = entry.word & ~L2Entry.copiedFlag == plain
      return flaw(
        isJustCopied ? "has the COPIED flag but no cluster" : "has reserved bits set",
        RawL2Entry(word: plain, bitmap: entry.bitmap), EntryFlaw.keepsMapping)
    }
    return hasSubclusters ? subclusterFlaw(entry) : nil
  }

  private func subclusterFlaw(_ entry: RawL2Entry) -> EntryFlaw? {
    let allocated = entry.bitmap & RawL2Entry.allocatedMask
    let zeroes = entry.bitmap >> 32
    let hasCluster = entry.hostOffset != 0 || hasDataFile && entry.isCopied
    let wrong = hasCluster ? allocated & zeroes : allocated
    guard wrong != 0 else { return nil }
    let mended = RawL2Entry(
      word: entry.word, bitmap: entry.bitmap & ~wrong | wrong << 32)
    return EntryFlaw(
      problem: hasCluster
        ? "has subclusters that are both allocated and zero"
        : "has allocated subclusters but no cluster",
      rule: EntryFlaw.extendedRule, mended: mended, result: "these subclusters read as zeroes")
  }

  /// An entry without a host cluster that reads as zeroes, as far as the version has one.
  var zero: RawL2Entry {
    if hasSubclusters { return RawL2Entry(word: 0, bitmap: ~RawL2Entry.allocatedMask) }
    return RawL2Entry(word: version >= 3 ? L2Entry.zeroFlag : 0)
  }
}
