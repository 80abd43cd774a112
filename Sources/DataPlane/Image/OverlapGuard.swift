// SPDX-License-Identifier: Apache-2.0
//
// Which clusters of the active layer hold its own tables, so that none of them is ever handed out
// as free or overwritten as a guest's data: QEMU's overlap checks. A filter answers for most
// clusters in two loads; who it suspects is looked for in the tables themselves.
// Source: qcow2.rst; QEMU, the qcow2 option overlap-check.

import BlockTypes
import LinuxIO
import Qcow2

/// Which tables are guarded. Each mode guards what the one before does, too.
public enum OverlapCheck: String, Sendable, CaseIterable {
  /// The header, the L1 table, the refcount table: these are looked at in any case.
  case none
  /// Also the snapshot table, the header of LUKS and what else stays where it is.
  case constant
  /// Also L2 tables, refcount blocks and the L1 tables of snapshots, which are in memory anyway.
  case cached
  /// Also the L2 tables of snapshots, which are read for this when the image is opened.
  case all
}

/// A set of clusters that sometimes holds more than it was given, and never less: a Bloom filter
/// whose bits for one cluster lie in one word. Filled, it is wrong about one cluster in thousands,
/// so that few of the pages with hundreds of entries have one that has to be looked up.
struct TableFilter: ~Copyable {
  /// Bits for each cluster that there may be.
  private static let bitsPerCluster = 32
  private var words: FixedArray<UInt64>

  init(clusterCountMax: Int) {
    let bitCount = max(clusterCountMax, 64) * TableFilter.bitsPerCluster
    // A power of two; pages that nothing is entered in cost no memory.
    words = FixedArray(
      zeroedCount: 1 << (Int.bitWidth - (bitCount / 64 - 1).leadingZeroBitCount))
  }

  /// The word of a cluster, and four bits in it.
  private func place(_ cluster: UInt64) -> (word: Int, bits: UInt64) {
    // Multiplicative hashes; their high bits are the good ones.
    let first = cluster &* 0x9e37_79b9_7f4a_7c15
    let hash = (first ^ first >> 32) &* 0xd6e8_feb8_6659_fd93
    let bits =
      1 << (hash >> 58) | 1 << (hash >> 52 & 63) | 1 << (hash >> 46 & 63)
      | 1 << (hash >> 40 & 63) as UInt64
    return (Int(hash >> 8 & 0xffff_ffff) & (words.count - 1), bits)
  }

  mutating func insert(_ cluster: UInt64) {
    let place = place(cluster)
    words[place.word] |= place.bits
  }

  func mayContain(_ cluster: UInt64) -> Bool {
    let place = place(cluster)
    return words[place.word] & place.bits == place.bits
  }
}

/// What is known of the active layer's tables, and the first damage that was met.
struct OverlapGuard: ~Copyable {
  /// Bytes of snapshots' L1 tables that are read for the mode `all` at most.
  static let snapshotByteCountMax = 256 << 20

  let mode: OverlapCheck
  /// The guest's clusters lie in the same file as the tables.
  let judgesData: Bool
  /// Tables that stay where they are while the image is served, by their place.
  private let fixed: [(range: ByteRange, name: String)]
  /// The clusters of the snapshots' L2 tables.
  private let snapshotTables: Set<UInt64>
  private(set) var l2Tables: TableFilter
  private(set) var refcountBlocks: TableFilter
  /// Grows with each table that finds a place: what was said of entries before may hold no more.
  private(set) var generation: UInt64 = 1

  /// What contradicts the format, in words; nil as long as nothing does. The image takes no more
  /// changes then.
  private(set) var verdict: String?
  /// The header and the user have to be told.
  var isUnmarked = false
  var isUnreported = false

  var isTripped: Bool { verdict != nil }

  /// Remembers the first damage.
  mutating func trip(_ text: String) {
    guard verdict == nil else { return }
    verdict = text
    isUnmarked = true
    isUnreported = true
  }

  /// - Throws: `ImageError` when a table cannot be read.
  init(_ plan: ExportPlan, l1: [UInt64], refcountTable: borrowing FixedArray<UInt64>)
    throws(ImageError)
  {
    guard !plan.isReadOnly, case .qcow2(let header) = plan.layers[0].format else {
      self.init(
        mode: .none, judgesData: false, fixed: [], snapshotTables: [], l2Count: 0, blockCount: 0)
      return
    }
    let bits = UInt64(header.geometry.clusterBits)
    let snapshots = try Self.snapshots(of: plan.layers[0], header)
    var fixed: [(range: ByteRange, name: String)] = []
    if plan.overlapCheck != .none { fixed = try Self.constantTables(of: header, snapshots) }
    let caches = plan.overlapCheck == .cached || plan.overlapCheck == .all
    if caches {
      for record in snapshots.records {
        fixed.append(
          (
            ByteRange(at: record.l1TableOffset.byteOffset, UInt64(record.l1EntryCount) * 8),
            "the L1 table of a snapshot"
          ))
      }
    }
    self.init(
      mode: plan.overlapCheck,
      judgesData: !header.incompatibleFeatures.contains(.externalDataFile), fixed: fixed,
      snapshotTables: plan.overlapCheck == .all
        ? try Self.l2Tables(of: snapshots, plan.layers[0], header) : [],
      l2Count: caches ? l1.count : 0, blockCount: caches ? refcountTable.count : 0)
    guard caches else { return }
    for word in l1 {
      let table = L1Entry(rawValue: word).tableOffset.byteOffset
      if table != 0 { l2Tables.insert(table >> bits) }
    }
    for index in 0..<refcountTable.count where refcountTable[index] != 0 {
      refcountBlocks.insert(refcountTable[index] >> bits)
    }
  }

  private init(
    mode: OverlapCheck, judgesData: Bool, fixed: [(range: ByteRange, name: String)],
    snapshotTables: Set<UInt64>, l2Count: Int, blockCount: Int
  ) {
    self.mode = mode
    self.judgesData = judgesData
    self.fixed = fixed.filter { !$0.range.isEmpty }.sorted { $0.range.start < $1.range.start }
    self.snapshotTables = snapshotTables
    l2Tables = TableFilter(clusterCountMax: l2Count)
    refcountBlocks = TableFilter(clusterCountMax: blockCount)
  }

  /// An L2 table of the active layer lies in the cluster from now on.
  mutating func addL2Table(_ cluster: UInt64) {
    l2Tables.insert(cluster)
    generation += 1
  }

  mutating func addRefcountBlock(_ cluster: UInt64) {
    refcountBlocks.insert(cluster)
    generation += 1
  }

  /// Whether some table may lie in the cluster; where the answer is no, none does.
  func mayHold(_ cluster: UInt64, _ geometry: ClusterGeometry) -> Bool {
    if l2Tables.mayContain(cluster) || refcountBlocks.mayContain(cluster) { return true }
    if fixed.isEmpty && snapshotTables.isEmpty { return false }
    return fixedHolder(of: cluster, geometry) != nil
  }

  /// The name of the table that stays where it is and lies in the cluster; nil when none does.
  func fixedHolder(of cluster: UInt64, _ geometry: ClusterGeometry) -> String? {
    if snapshotTables.contains(cluster) { return "an L2 table of a snapshot" }
    let start = cluster << UInt64(geometry.clusterBits)
    let end = start + geometry.clusterByteCount
    // The last table that begins before the cluster's end; tables do not overlap each other.
    var low = 0
    var high = fixed.count
    while low < high {
      let middle = (low + high) / 2
      if fixed[middle].range.start < end { low = middle + 1 } else { high = middle }
    }
    guard low > 0, fixed[low - 1].range.end > start else { return nil }
    return fixed[low - 1].name
  }
}

// MARK: Reading what is guarded

extension OverlapGuard {
  private static func snapshots(
    of layer: LayerPlan, _ header: Header
  ) throws(ImageError) -> SnapshotRecords {
    let fileByteCount: UInt64
    do throws(SystemError) {
      fileByteCount = try layer.storage.file.byteCount()
    } catch {
      throw ImageError(.corrupt, "the file's length cannot be read: \(error)")
    }
    let records = try SnapshotRecords(
      of: header, fileByteCount: fileByteCount,
      read: { (offset, byteCount) throws(ImageError) in try read(layer, offset, byteCount) })
    if let flaw = records.flaw {
      throw ImageError(
        .corrupt,
        "the snapshot table is damaged (\(flaw)); repair it (strata check -r all) or open it "
          + "read-only")
    }
    return records
  }

  private static func constantTables(
    of header: Header, _ snapshots: SnapshotRecords
  ) throws(ImageError) -> [(range: ByteRange, name: String)] {
    var fixed = [
      (
        range: ByteRange(at: header.snapshotTableOffset.byteOffset, snapshots.byteCount),
        name: "the snapshot table"
      )
    ]
    if let area = try header.encryptionArea() {
      fixed.append((ByteRange(at: area.offset.byteOffset, area.byteCount), "the encryption header"))
    }
    // Not the bitmaps' directory: it moves while the image is served.
    return fixed
  }

  /// The clusters of L2 tables that the L1 tables of snapshots name.
  private static func l2Tables(
    of snapshots: SnapshotRecords, _ layer: LayerPlan, _ header: Header
  ) throws(ImageError) -> Set<UInt64> {
    var clusters: Set<UInt64> = []
    var byteCount = 0
    for record in snapshots.records {
      byteCount += record.l1EntryCount * 8
      guard byteCount <= snapshotByteCountMax else {
        throw ImageError(
          .unsupported,
          "the L1 tables of its snapshots have more than \(snapshotByteCountMax) bytes, too many "
            + "for overlap-check=all; use cached")
      }
      let bytes = try read(layer, record.l1TableOffset.byteOffset, record.l1EntryCount * 8)
      for word in bytes.bigEndianWords() {
        let table = L1Entry(rawValue: word).tableOffset.byteOffset
        if table != 0 { clusters.insert(table >> UInt64(header.geometry.clusterBits)) }
      }
    }
    return clusters
  }

  private static func read(
    _ layer: LayerPlan, _ offset: UInt64, _ byteCount: Int
  ) throws(ImageError) -> [UInt8] {
    do throws(SystemError) {
      return try layer.storage.file.read(at: offset, byteCount: byteCount)
    } catch {
      throw ImageError(
        .corrupt, "a table of its snapshots cannot be read: \(error)",
        at: HostOffset(byteOffset: offset))
    }
  }
}

extension ByteRange {
  /// The bytes from `start` on, as far as there are offsets for them.
  fileprivate init(at start: UInt64, _ byteCount: UInt64) {
    let (end, overflows) = start.addingReportingOverflow(byteCount)
    self.init(start: start, end: overflows ? .max : end)
  }
}
