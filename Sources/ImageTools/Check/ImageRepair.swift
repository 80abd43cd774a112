// SPDX-License-Identifier: Apache-2.0
//
// `check -r all`: repairs an image, with loss where its tables cannot be right. Each change is said
// before it is made, and the order of writes is such that a crash leaves the image no worse than it
// was: first entries let go of what is not theirs, and only when that is durable the counts follow;
// new tables are durable before the header names them; the marks go last, and only if nothing
// remains. Source: reference qcow2.rst; qemu-img(1), "check -r".

import BlockTypes
import LinuxIO
import Qcow2

/// One repair of one image, whose file is locked for writing.
struct ImageRepair {
  let storage: LayerFile
  let finding: (CheckFinding) -> Void

  /// One repair may uncover what another one hid; more rounds than these would go round in circles.
  private static let roundsMax = 4

  /// Repairs what `report` and further checks say, and returns the header that is on disk then.
  func run(_ header: Header, _ report: CheckReport, contested: Set<UInt64>) throws(ImageFault)
    -> Header
  {
    var header = header
    var report = report
    var contested = contested
    for _ in 0..<Self.roundsMax {
      if report.tableCorruptionCount > 0 {
        header = try dropSnapshots(header, report)
        header = try dropBitmaps(header, report)
        try mendEntries(header, contested)
        // No cluster may be counted less before it is durable that nobody names it.
        try storage.synchronize()
      }
      let before = report
      (report, contested) = try look(at: header)
      header = try RebuildRefcounts.correct(storage, header, report)
      try storage.synchronize()
      try storage.rewriteHeader(to: header)
      (report, contested) = try look(at: header)
      if report.isClean || report == before { break }
    }
    guard report.isClean else { return header }
    header.incompatibleFeatures.subtract([.dirty, .corrupt])
    try storage.rewriteHeader(to: header)
    return header
  }

  private func look(at header: Header) throws(ImageFault) -> (CheckReport, Set<UInt64>) {
    var checker = try MetadataReader(storage).makeChecker(header)
    try checker.run()
    return (checker.report, checker.contestedTables)
  }

  /// Turns entries of L1 and L2 tables that cannot be right into what reads safest.
  private func mendEntries(_ header: Header, _ contested: Set<UInt64>) throws(ImageFault) {
    let storage = storage
    var checker = try MetadataReader(storage).makeChecker(header) { finding in
      // What is not changed was told before.
      if finding.severity == .repair { self.finding(finding) }
    }
    checker.contestedTables = contested
    checker.mend = { (offset, bytes) throws(ImageFault) in try storage.write(bytes, at: offset) }
    try checker.forEachWindow(withStructure: false) { _ in }
  }

  /// Writes a snapshot table without the snapshots that cannot be used.
  private func dropSnapshots(
    _ header: Header, _ report: CheckReport
  ) throws(ImageFault) -> Header {
    guard
      !report.snapshotFlaws.isEmpty || report.readableSnapshotCount != nil
        || report.snapshotTableIsContested
    else { return header }
    let reader = try MetadataReader(storage)
    let old = try SnapshotRecords(
      of: header, fileByteCount: reader.fileByteCount,
      read: { (offset, byteCount) throws(ImageFault) in try reader.read(offset, byteCount) })
    var kept: [SnapshotRecord] = []
    for (index, record) in old.records.enumerated() {
      if let flaw = report.snapshotFlaws[index] {
        say("snapshot '\(record.id)': \(flaw); it is lost")
      } else {
        kept.append(
          header.version >= 3
            ? record.withBoundedExtraData.withWholeExtraData(diskByteCount: header.diskByteCount)
            : record.withBoundedExtraData)
      }
    }
    if old.records.count < header.snapshotCount {
      say("the snapshot table: \(header.snapshotCount - old.records.count) entries are lost")
    } else if report.snapshotTableIsContested {
      say("the snapshot table: it moves, with as much extra data as there may be")
    }
    let table = SnapshotRecord.table(of: kept)
    let place = max(
      reader.fileByteCount.alignedUp(to: header.geometry.clusterByteCount),
      report.imageEndOffset.alignedUp(to: header.geometry.clusterByteCount))
    if !table.isEmpty {
      try storage.write(table, at: place)
      try storage.synchronize()
    }
    var repaired = header
    repaired.snapshotCount = kept.count
    repaired.snapshotTableOffset = HostOffset(byteOffset: kept.isEmpty ? 0 : place)
    try storage.rewriteHeader(to: repaired)
    return repaired
  }

  /// Declares the persistent bitmaps void when one of them is damaged: the spec's autoclear bit
  /// says whether they are consistent with the image, all at once.
  private func dropBitmaps(
    _ header: Header, _ report: CheckReport
  ) throws(ImageFault) -> Header {
    guard let flaw = report.bitmapFlaw else { return header }
    say("the persistent bitmaps: \(flaw); all of them become invalid")
    var repaired = header
    repaired.autoclearFeatures.remove(.bitmaps)
    try storage.rewriteHeader(to: repaired)
    return repaired
  }

  private func say(_ text: String) {
    finding(CheckFinding(severity: .repair, text: "Repairing \(text)"))
  }
}
