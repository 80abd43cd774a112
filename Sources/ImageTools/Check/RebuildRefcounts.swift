// SPDX-License-Identifier: Apache-2.0
//
// Makes the reference counts and COPIED flags of an image true again, for one that was not closed
// (lazy refcounts) or that a check found wrong. A crash at any point leaves an image that a further
// run repairs: counts only move towards the truth, a new structure is durable before the header
// points to it, and the dirty bit goes last.

import BlockTypes
import LinuxIO
import Qcow2

/// Repairs reference counts.
public enum RebuildRefcounts {
  /// Repairs the image in `storage`, which is locked for writing, and returns the header that is
  /// on disk afterwards.
  ///
  /// Refuses an image whose L1, L2 or other tables are damaged: new counts do not cure those.
  public static func run(on storage: LayerFile, header: Header) throws(ImageFault) -> Header {
    let reader = try MetadataReader(storage)
    var checker = try makeChecker(reader, header)
    try checker.run()
    let report = checker.report
    guard report.tableCorruptionCount == 0 else {
      throw ImageFault(
        storage.path,
        "its tables are damaged (\(report.tableCorruptionCount) errors), which rebuilding the "
          + "reference counts does not cure",
        wayOut: "copy what can be read (qemu-img convert), or repair it with loss (qemu-img check "
          + "-r all)", kind: .corrupt)
    }
    var repaired = header
    if !report.isClean {
      let blocks = RefcountBlocks(header: header, reader: reader)
      let isComplete = try blocks.cover(checker.counts)
      if isComplete && !report.refcountStructureIsBroken {
        try blocks.correct(to: checker.counts)
      } else {
        repaired = try writeNewStructure(reader, header)
      }
      try CopiedFlagRepair(header: header, reader: reader, counts: checker.counts).run()
    }
    repaired.incompatibleFeatures.remove(.dirty)
    try storage.synchronize()
    try storage.rewriteHeader(to: repaired)
    return repaired
  }

  static func makeChecker(
    _ reader: MetadataReader, _ header: Header, finding: @escaping (CheckFinding) -> Void = { _ in }
  ) throws(ImageFault) -> Checker<ImageFault> {
    let path = reader.storage.path
    let allocatedByteCount =
      (reader.hasHoles ? try reader.storage.allocatedByteCount() : nil) ?? reader.fileByteCount
    return try Checker(
      header: header, fileByteCount: reader.fileByteCount,
      allocatedByteCount: allocatedByteCount,
      read: { (offset, byteCount) throws(ImageFault) in try reader.read(offset, byteCount) },
      fault: { ImageFault(path, $0) }, finding: finding)
  }

  /// Writes counts for everything but the old structure and returns the header that points there.
  private static func writeNewStructure(
    _ reader: MetadataReader, _ header: Header
  ) throws(ImageFault) -> Header {
    var counter = try makeChecker(reader, header)
    try counter.countReferences()
    let plan: RefcountPlan
    do throws(ImageError) {
      plan = try RefcountPlan(
        counts: counter.counts, geometry: header.geometry, fileByteCount: reader.fileByteCount)
    } catch {
      throw ImageFault(reader.storage.path, error)
    }
    for position in plan.blockIndices.indices {
      try reader.storage.write(
        plan.blockBytes(at: position), at: plan.blockOffset(at: position).byteOffset)
    }
    try reader.storage.write(plan.tableBytes(), at: plan.tableOffset.byteOffset)
    var repaired = header
    repaired.refcountTableOffset = plan.tableOffset
    repaired.refcountTableClusterCount = Int(plan.tableClusterCount)
    return repaired
  }
}
