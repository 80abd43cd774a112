// SPDX-License-Identifier: Apache-2.0
//
// Checks the metadata of a qcow2 image: counts who references each cluster and compares with the
// reference counts on disk and with the COPIED flags. Reads through a closure and streams all
// tables, so that memory and time follow the file and not what it claims.
// Spec: qcow2.rst, "Host cluster management", "Cluster mapping", "Snapshots", "Bitmaps".

import BlockTypes

/// One check of one image.
public struct Checker<Failure: Error> {
  let header: Header
  let fileByteCount: UInt64
  /// Reads at an offset. Fewer bytes than asked for mean that the rest is zeroes; none at all is
  /// the quick answer for a hole.
  let read: (_ offset: UInt64, _ byteCount: Int) throws(Failure) -> [UInt8]
  let fault: (ImageError) -> Failure
  let finding: (CheckFinding) -> Void

  public internal(set) var report = CheckReport()
  /// How often each cluster is referenced.
  public internal(set) var counts: ClusterCounts
  /// The reference counts on disk, cut at 2^32 - 1.
  var stored: ClusterCounts

  /// Bytes of a table that are read at once.
  static var chunkByteCount: Int { 1 << 20 }
  /// L1 entries and bitmap table entries that are looked at, over all snapshots and bitmaps.
  static var tableEntryCountMax: Int { 1 << 26 }
  /// L2 tables that an image can have: those that take space, and some that lie in holes.
  let l2TableCountMax: Int

  /// - Parameters:
  ///   - fileByteCount: bytes that the file spans.
  ///   - allocatedByteCount: bytes that the file occupies; bounds the memory of the check.
  public init(
    header: Header, fileByteCount: UInt64, allocatedByteCount: UInt64,
    read: @escaping (_ offset: UInt64, _ byteCount: Int) throws(Failure) -> [UInt8],
    fault: @escaping (ImageError) -> Failure, finding: @escaping (CheckFinding) -> Void
  ) throws(Failure) {
    self.header = header
    self.fileByteCount = fileByteCount
    self.read = read
    self.fault = fault
    self.finding = finding
    let clusterCount = header.geometry.clusterCount(for: fileByteCount)
    // A count takes four bytes for each cluster, of which there is one in 512 bytes at most; a
    // fixed part is for files whose clusters are holes.
    let allocated = Int(min(allocatedByteCount, fileByteCount))
    let byteCountMax = allocated / 64 + (64 << 20)
    self.l2TableCountMax = allocated / 512 + (1 << 20)
    do throws(ImageError) {
      // One more, because the last cluster in use may lie just past the end of the file.
      self.counts = try ClusterCounts(
        clusterCount: clusterCount + 1, byteCountMax: byteCountMax)
      self.stored = try ClusterCounts(
        clusterCount: clusterCount + 1, byteCountMax: byteCountMax)
    } catch {
      throw fault(error)
    }
    report.totalClusterCount = header.geometry.clusterCount(for: header.diskByteCount)
  }

  /// Checks everything. The result is in `report`.
  public mutating func run() throws(Failure) {
    try countReferences()
    try countRefcountStructure()
    try compareRefcounts()
    try checkCopiedFlags()
  }

  /// Counts all references but those of the refcount structure to itself.
  public mutating func countReferences() throws(Failure) {
    try reference(0, header.geometry.clusterByteCount, by: "the header")
    try countEncryptionArea()
    var tables: [UInt64: L2TableUse] = [:]
    var entryBudget = Self.tableEntryCountMax
    try countL1Table(
      at: header.l1TableOffset, entryCount: header.l1EntryCount, isActive: true, &tables,
      &entryBudget)
    try countSnapshots(&tables, &entryBudget)
    try countBitmaps(&entryBudget)
    for offset in tables.keys.sorted() {
      guard let use = tables[offset] else { continue }
      try countL2Table(at: offset, use: use)
    }
  }

  /// Counts the LUKS header and its key slots.
  private mutating func countEncryptionArea() throws(Failure) {
    let area: EncryptionExtension?
    do throws(ImageError) { area = try header.encryptionArea() } catch { throw fault(error) }
    guard let area else { return }
    try reference(area.offset.byteOffset, area.byteCount, by: "the encryption header")
  }

  /// Counts a run of bytes that `user` occupies, `times` times.
  mutating func reference(
    _ start: UInt64, _ byteCount: UInt64, times: UInt32 = 1, by user: @autoclosure () -> String
  ) throws(Failure) {
    if byteCount == 0 { return }
    let (end, overflows) = start.addingReportingOverflow(byteCount)
    let clusterBits = UInt64(header.geometry.clusterBits)
    // The last cluster may be cut by the end of the file.
    if overflows || end > fileByteCount && end - fileByteCount >= 1 << clusterBits {
      corrupt("\(user()) at \(start) passes the end of the file", inTable: true)
      return
    }
    for cluster in (start >> clusterBits)...((end - 1) >> clusterBits) {
      let sum: UInt32
      do throws(ImageError) {
        sum = try counts.add(times, to: cluster)
      } catch {
        throw fault(error)
      }
      // Said once for each cluster: when the sum passes the limit.
      let before = UInt64(sum) - min(UInt64(sum), UInt64(times))
      if UInt64(sum) > header.geometry.refcountMax && before <= header.geometry.refcountMax {
        corrupt("cluster \(cluster) has more references than its count can hold", inTable: true)
      }
    }
  }

  mutating func corrupt(_ text: String, inTable: Bool = false) {
    report.corruptionCount += 1
    if inTable { report.tableCorruptionCount += 1 }
    finding(CheckFinding(severity: .corruption, text: "ERROR \(text)"))
  }

  mutating func leak(_ text: String) {
    report.leakCount += 1
    finding(CheckFinding(severity: .leak, text: "Leaked \(text)"))
  }

  /// Reads `count` big-endian words; trailing zeroes may be missing, all of them for a hole.
  func words(at offset: UInt64, count: Int) throws(Failure) -> [UInt64] {
    try read(offset, count * 8).bigEndianWords()
  }
}

/// How often an L2 table is referenced, by all L1 tables and by the active one.
struct L2TableUse {
  var times: UInt32 = 0
  var activeTimes: UInt32 = 0
}
