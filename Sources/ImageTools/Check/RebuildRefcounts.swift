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
    var checker = try reader.makeChecker(header)
    try checker.run()
    guard checker.report.tableCorruptionCount == 0 else {
      throw ImageFault(
        storage.path,
        "its tables are damaged (\(checker.report.tableCorruptionCount) errors), which rebuilding "
          + "the reference counts does not cure",
        wayOut: "look at them (strata check), and copy what can be read "
          + "(qemu-img convert --salvage) or repair it with loss (strata check -r all --to COPY)",
        kind: .corrupt)
    }
    var repaired = try correct(storage, header, checker.report)
    repaired.incompatibleFeatures.remove(.dirty)
    try storage.synchronize()
    try storage.rewriteHeader(to: repaired)
    return repaired
  }

  /// Makes counts and flags agree with the references, as a check has found them, and returns the
  /// header that names the counts. The dirty and the corrupt bit stay.
  static func correct(
    _ storage: LayerFile, _ header: Header, _ report: CheckReport
  ) throws(ImageFault) -> Header {
    if report.isClean { return header }
    let reader = try MetadataReader(storage)
    if report.refcountStructureIsBroken || report.needsMoreRefcountBlocks {
      return try writeNewStructure(reader, header, report)
    }
    var checker = try reader.makeChecker(header)
    try checker.forEachWindow(withStructure: true) { (checker) throws(ImageFault) in
      try correctBlocks(reader, header, checker.counts)
      try correctFlags(reader, header, checker.counts)
    }
    return header
  }

  // MARK: In place

  /// Writes the blocks that differ from `counts`, which cover whole blocks.
  private static func correctBlocks(
    _ reader: MetadataReader, _ header: Header, _ counts: ClusterCounts
  ) throws(ImageFault) {
    let geometry = header.geometry
    let perBlock = geometry.refcountBlockEntryCount
    let clusterByteCount = Int(geometry.clusterByteCount)
    var first = counts.window.lowerBound
    while first < counts.window.upperBound {
      let clusters = first..<min(first + perBlock, counts.window.upperBound)
      if let offset = try reader.refcountBlock(first / perBlock, header) {
        let old = try reader.read(offset, clusterByteCount)
        var new = old + [UInt8](repeating: 0, count: clusterByteCount - old.count)
        for cluster in clusters {
          Refcount.store(
            min(counts[cluster], geometry.refcountMax), to: &new,
            at: Int(cluster - clusters.lowerBound), order: geometry.refcountOrder)
        }
        if !(new.starts(with: old) && new[old.count...].allSatisfy { $0 == 0 }) {
          try reader.storage.write(new, at: offset)
        }
      }
      first += perBlock
    }
  }

  /// Makes the COPIED flags agree with the counts of the clusters that `counts` covers.
  private static func correctFlags(
    _ reader: MetadataReader, _ header: Header, _ counts: ClusterCounts
  ) throws(ImageFault) {
    try CopiedFlagRepair(reader: reader, header: header).run { (cluster) throws(ImageFault) in
      counts.window.contains(cluster) ? UInt64(counts[cluster]) : nil
    }
  }

  // MARK: Anew

  /// Writes counts for everything but the old structure and returns the header that points there.
  private static func writeNewStructure(
    _ reader: MetadataReader, _ header: Header, _ report: CheckReport
  ) throws(ImageFault) -> Header {
    let geometry = header.geometry
    let perBlock = geometry.refcountBlockEntryCount
    // A cluster that the end of the file cuts off may still be in use.
    let firstFreeCluster = max(
      geometry.clusterCount(for: reader.fileByteCount),
      geometry.clusterCount(for: report.imageEndOffset))
    var blocks: Set<UInt64> = []
    var counter = try reader.makeChecker(header)
    try counter.forEachWindow(withStructure: false) { (counter) throws(ImageFault) in
      for first in counter.counts.blockStarts(perBlock) { blocks.insert(first / perBlock) }
    }
    let plan: RefcountPlan
    do throws(ImageError) {
      plan = try RefcountPlan(
        blocks: blocks, firstFreeCluster: firstFreeCluster, geometry: geometry)
    } catch {
      throw ImageFault(reader.storage.path, error)
    }
    var position = 0
    try counter.forEachWindow(withStructure: false) { (counter) throws(ImageFault) in
      let isLast = counter.isLastWindow
      while position < plan.blockIndices.count,
        isLast || plan.clusters(at: position).lowerBound < counter.counts.window.upperBound
      {
        try reader.storage.write(
          plan.blockBytes(at: position, counts: counter.counts),
          at: plan.blockOffset(at: position).byteOffset)
        position += 1
      }
      try correctFlags(reader, header, counter.counts)
    }
    try reader.storage.write(plan.tableBytes(), at: plan.tableOffset.byteOffset)
    try reader.storage.synchronize()
    var repaired = header
    repaired.refcountTableOffset = plan.tableOffset
    repaired.refcountTableClusterCount = Int(plan.tableClusterCount)
    return repaired
  }
}
