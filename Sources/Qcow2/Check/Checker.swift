// SPDX-License-Identifier: Apache-2.0
//
// Checks the metadata of an image: who references which host cluster, whether the counts, flags
// and entries agree with that, and whether tables lie on each other. Can turn entries that cannot
// be right into what reads safest. Performs no I/O itself: it reads and writes through closures.
// Spec: qcow2.rst.

import BlockTypes

/// One check of one image.
///
/// The clusters are counted in as few passes over the tables as memory allows. What an entry says
/// by itself is judged in the first pass.
public struct Checker<Failure: Error> {
  let header: Header
  let rules: EntryRules
  let fileByteCount: UInt64
  /// Reads at an offset. Fewer bytes than asked for mean that the rest is zeroes; none at all is
  /// the quick answer for a hole.
  let read: (_ offset: UInt64, _ byteCount: Int) throws(Failure) -> [UInt8]
  /// Overwrites bytes; nil: the image is only looked at.
  public var mend: ((_ offset: UInt64, _ bytes: [UInt8]) throws(Failure) -> Void)?
  let fault: (ImageError) -> Failure
  let finding: (CheckFinding) -> Void
  /// Told now and then how far the check is, in millionths.
  public var progress: (_ millionths: Int) -> Void = { _ in }

  public internal(set) var report = CheckReport()
  /// How often each cluster of the current window is referenced.
  public internal(set) var counts: ClusterCounts
  /// L2 tables that are also something else: their entries may be no entries at all. Known after a
  /// first check, and given to the one that mends.
  public var contestedTables: Set<UInt64> = []

  /// All clusters of the file, and one more that its end may cut.
  let clusterCount: UInt64
  let memoryByteCountMax: Int
  /// Words of L1 and bitmap tables that a file of this size can hold.
  let tableWordsMax: UInt64
  var tableWordCount: UInt64 = 0
  /// Entries are judged and counted once, in the first pass.
  var isFirstPass = true
  /// Where the tables lie that are one of a kind, for messages.
  var owners: [(range: ByteRange, name: String)] = []
  /// Overlaps of the current window that the reference counts may or may not tell too.
  var conflicts: [UInt64: String] = [:]

  /// Bytes of a table that are read at once.
  static var chunkByteCount: Int { 1 << 20 }
  /// L2 tables that are remembered at one time.
  static var l2TablesMax: Int { 1 << 22 }
  /// Overlaps and tables that are remembered for messages.
  static var rememberedMax: Int { 1 << 14 }
  /// Memory for counts, unless somebody says otherwise.
  public static var defaultMemoryByteCountMax: Int { 640 << 20 }

  /// - Parameters:
  ///   - fileByteCount: bytes that the file spans.
  ///   - allocatedByteCount: bytes that the file occupies; bounds the work of the check.
  ///   - memoryByteCountMax: for the counts; with less memory there are more passes.
  public init(
    header: Header, fileByteCount: UInt64, allocatedByteCount: UInt64,
    memoryByteCountMax: Int = Self.defaultMemoryByteCountMax,
    read: @escaping (_ offset: UInt64, _ byteCount: Int) throws(Failure) -> [UInt8],
    fault: @escaping (ImageError) -> Failure, finding: @escaping (CheckFinding) -> Void
  ) {
    self.header = header
    self.rules = EntryRules(header, fileByteCount: fileByteCount)
    self.fileByteCount = fileByteCount
    self.read = read
    self.fault = fault
    self.finding = finding
    self.memoryByteCountMax = memoryByteCountMax
    self.clusterCount = header.geometry.clusterCount(for: fileByteCount) + 1
    self.tableWordsMax = min(allocatedByteCount, fileByteCount) / 8 + 1 << 22
    self.counts = ClusterCounts(
      clusterCount: clusterCount, step: header.geometry.refcountBlockEntryCount,
      byteCountMax: memoryByteCountMax)
    report.totalClusterCount = header.geometry.clusterCount(for: header.diskByteCount)
  }

  /// Checks everything. The result is in `report`.
  public mutating func run() throws(Failure) {
    var highest: UInt64 = 0
    try forEachWindow(withStructure: true) { (checker) throws(Failure) in
      try checker.compareRefcounts(&highest)
      try checker.checkCopiedFlags()
    }
    report.imageEndOffset = (highest + 1) << UInt64(header.geometry.clusterBits)
    progress(1_000_000)
  }

  /// Counts the references of one window after the other, in `counts`, and lets `body` use them.
  ///
  /// - Parameter withStructure: the references of the refcount structure to itself, too.
  public mutating func forEachWindow(
    withStructure: Bool, _ body: (inout Checker) throws(Failure) -> Void
  ) throws(Failure) {
    var start: UInt64 = 0
    isFirstPass = true
    repeat {
      counts = ClusterCounts(
        from: start, clusterCount: clusterCount, step: header.geometry.refcountBlockEntryCount,
        byteCountMax: memoryByteCountMax)
      conflicts.removeAll(keepingCapacity: true)
      owners.removeAll(keepingCapacity: true)
      tableWordCount = 0
      try countReferences()
      if withStructure { try countRefcountStructure() }
      try body(&self)
      start = counts.window.upperBound
      isFirstPass = false
    } while start < clusterCount
  }

  /// Whether no window comes behind the current one.
  public var isLastWindow: Bool { counts.window.upperBound == clusterCount }

  /// Counts all references but those of the refcount structure to itself: first the tables, then
  /// what their entries name, so that an entry that leads to a table is recognised.
  private mutating func countReferences() throws(Failure) {
    try reference(0, header.geometry.clusterByteCount, as: .table, by: "the header")
    try countEncryptionArea()
    try claimTable(header.l1TableOffset, header.l1EntryCount, of: "the L1 table")
    let snapshots = try countSnapshotTable()
    for (index, snapshot) in snapshots {
      let before = conflicts.count
      try claimTable(
        snapshot.l1TableOffset, snapshot.l1EntryCount,
        of: "the L1 table of snapshot '\(snapshot.id)'")
      if conflicts.count > before {
        report.snapshotFlaws[index] = "its L1 table lies on something else"
      }
    }
    var tables: [L2TableUse] = []
    try countL1Table(
      at: header.l1TableOffset, entryCount: header.l1EntryCount, snapshot: nil, &tables)
    for (_, snapshot) in snapshots {
      try countL1Table(
        at: snapshot.l1TableOffset, entryCount: snapshot.l1EntryCount, snapshot: snapshot.id,
        &tables)
    }
    try countL2Tables(&tables)
    if !conflicts.isEmpty { try judgeContestedSnapshots(snapshots) }
    // Last: what is more than a bitmap wins.
    let before = conflicts.count
    try countBitmaps()
    if conflicts.count > before { report.bitmapFlaw = "its clusters are used otherwise, too" }
  }

  /// Counts the LUKS header and its key slots.
  private mutating func countEncryptionArea() throws(Failure) {
    let area: EncryptionExtension?
    do throws(ImageError) { area = try header.encryptionArea() } catch { throw fault(error) }
    guard let area else { return }
    try reference(area.offset.byteOffset, area.byteCount, as: .table, by: "the encryption header")
  }

  /// Counts a run of bytes that `user` occupies, `times` times; false when it passes the end of the
  /// file and is not counted.
  @discardableResult
  mutating func reference(
    _ start: UInt64, _ byteCount: UInt64, times: UInt32 = 1, as owner: ClusterCounts.Owner,
    by user: @autoclosure () -> String
  ) throws(Failure) -> Bool {
    if byteCount == 0 { return true }
    guard !rules.isPastEnd(start, byteCount) else {
      corrupt(
        "\(user()) at host offset \(start) passes the end of the file", "Cluster mapping",
        inTable: true)
      return false
    }
    let bits = UInt64(header.geometry.clusterBits)
    let clusters = (start >> bits)..<(((start + byteCount - 1) >> bits) + 1)
    for cluster in counts.add(times, to: clusters, as: owner) {
      guard conflicts.count < Self.rememberedMax else { break }
      if conflicts[cluster] == nil {
        conflicts[cluster] = "\(user()) lies on \(ownerName(of: cluster))"
      }
      if counts.owner(of: cluster) == .l2Table || owner == .l2Table {
        contestedTables.insert(cluster << bits)
      }
    }
    if owner == .table, owners.count < Self.rememberedMax {
      owners.append((ByteRange(start: start, end: start + byteCount), user()))
    }
    return true
  }

  /// What a cluster is used for, as far as that is remembered.
  func ownerName(of cluster: UInt64) -> String {
    let start = cluster << UInt64(header.geometry.clusterBits)
    let range = ByteRange(start: start, end: start + header.geometry.clusterByteCount)
    switch counts.owner(of: cluster) {
    case .data: return "a data cluster"
    case .table: return owners.first { $0.range.overlaps(range) }?.name ?? "a table"
    case .l2Table: return "an L2 table"
    case .refcountBlock: return "a refcount block"
    }
  }

  // MARK: Findings

  /// Counts and tells a corruption; what an entry says by itself only in the first pass.
  mutating func corrupt(_ text: String, _ rule: String, inTable: Bool = false) {
    if inTable && !isFirstPass { return }
    report.corruptionCount += 1
    if inTable { report.tableCorruptionCount += 1 }
    finding(CheckFinding(severity: .corruption, text: "ERROR \(text) (qcow2.rst, \"\(rule)\")"))
  }

  mutating func leak(_ text: String) {
    report.leakCount += 1
    finding(CheckFinding(severity: .leak, text: "Leaked \(text)"))
  }

  func remark(_ text: String) { finding(CheckFinding(severity: .remark, text: text)) }

  /// Says what will be changed, and changes it.
  mutating func change(
    _ text: String, at offset: UInt64, to words: [UInt64]
  ) throws(Failure) {
    guard let mend else { preconditionFailure("a check that only looks was to change something") }
    finding(CheckFinding(severity: .repair, text: "Repairing \(text)"))
    var bytes: [UInt8] = []
    for word in words { bytes.appendBigEndian(word) }
    try mend(offset, bytes)
  }

  /// Reads `count` big-endian words; trailing zeroes may be missing, all of them for a hole.
  func words(at offset: UInt64, count: Int) throws(Failure) -> [UInt64] {
    try read(offset, count * 8).bigEndianWords()
  }
}
