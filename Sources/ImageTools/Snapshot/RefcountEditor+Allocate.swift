// SPDX-License-Identifier: Apache-2.0
//
// Free clusters in one piece, for tables of an image at rest: where the file has them, or at its
// end, with the refcount blocks and the larger refcount table that this takes. A power cut leaves
// leaked clusters at worst: a block is durable before the table names it, and a table before the
// header does. Spec: qcow2.rst, "Host cluster management".

import BlockTypes
import LinuxIO
import Qcow2

extension RefcountEditor {
  /// Takes clusters in one piece for `byteCount` bytes and counts them once. Their counts are in
  /// the file after the next `flush`.
  func allocate(byteCount: UInt64) throws(ImageFault) -> HostOffset {
    // Before a freed cluster is used again: a hole punched later would destroy what it holds then.
    try punchFreed()
    let count = geometry.clusterCount(for: byteCount)
    let first: UInt64
    if let free = try firstFree(count) {
      for cluster in free..<(free + count) {
        guard !holdsTables(cluster) else {
          throw damaged("cluster \(cluster) holds tables and is not counted")
        }
        try set(1, of: cluster)
      }
      first = free
    } else {
      first = try extend(by: count)
    }
    return HostOffset(byteOffset: first << UInt64(geometry.clusterBits))
  }

  /// The first run of `count` clusters that blocks count, and count zero.
  private func firstFree(_ count: UInt64) throws(ImageFault) -> UInt64? {
    let perBlock = Int(geometry.refcountBlockEntryCount)
    let limit = try clusterCountMax()
    var start: UInt64 = 0
    var length: UInt64 = 0
    for index in table.indices {
      guard let bytes = try block(index) else {
        length = 0
        continue
      }
      for entry in 0..<perBlock {
        let isFree = Refcount.load(bytes, at: entry, order: geometry.refcountOrder) == 0
        if !isFree {
          length = 0
          continue
        }
        if length == 0 { start = UInt64(index) * UInt64(perBlock) + UInt64(entry) }
        length += 1
        if start + length > limit { return nil }
        if length == count { return start }
      }
    }
    return nil
  }

  /// Clusters that the storage can have: a device has an end.
  private func clusterCountMax() throws(ImageFault) -> UInt64 {
    if try storage.isRegularFile() { return 1 << (56 - UInt64(geometry.clusterBits)) }
    return try storage.byteCount() >> UInt64(geometry.clusterBits)
  }

  // MARK: At the end of the file

  /// Takes `count` clusters behind the end of the file, with what counts them behind them.
  private func extend(by count: UInt64) throws(ImageFault) -> UInt64 {
    guard try storage.isRegularFile() else {
      throw ImageFault(
        storage.path, "the device has no room for another table", wayOut: "make it larger",
        kind: .refused)
    }
    var start = geometry.clusterCount(for: try storage.byteCount())
    var growth = try growth(from: start, count)
    // A power cut may leave the file shorter than what is counted: those clusters are leaked.
    while let leaked = try lastCounted(
      start..<(start + count + UInt64(growth.blocks.count) + growth.tableClusterCount))
    {
      start = leaked + 1
      growth = try self.growth(from: start, count)
    }
    let firstBlock = start + count
    let newTable = firstBlock + UInt64(growth.blocks.count)
    table += [UInt64](repeating: 0, count: growth.tableEntryCount - table.count)
    for (number, index) in growth.blocks.enumerated() {
      try makeBlock(index, at: (firstBlock + UInt64(number)) << UInt64(geometry.clusterBits))
    }
    for cluster in start..<(newTable + growth.tableClusterCount) {
      try set(1, of: cluster)
    }
    try flush()
    if growth.tableClusterCount > 0 {
      try moveTable(to: newTable << UInt64(geometry.clusterBits), growth.tableClusterCount)
    } else {
      for index in growth.blocks {
        var word: [UInt8] = []
        word.appendBigEndian(table[index])
        try storage.write(word, at: header.refcountTableOffset.byteOffset + UInt64(index) * 8)
      }
      try storage.synchronize()
    }
    return start
  }

  /// The last cluster of a range whose count is not zero.
  private func lastCounted(_ clusters: Range<UInt64>) throws(ImageFault) -> UInt64? {
    for cluster in clusters.reversed() where try count(of: cluster) != 0 { return cluster }
    return nil
  }

  private func moveTable(
    to offset: UInt64, _ clusterCount: UInt64
  ) throws(ImageFault) {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(table.count * 8)
    for word in table { bytes.appendBigEndian(word) }
    try storage.write(bytes, at: offset)
    try storage.synchronize()
    let old = header
    header.refcountTableOffset = HostOffset(byteOffset: offset)
    header.refcountTableClusterCount = Int(clusterCount)
    try storage.rewriteHeader(to: header)
    try lower(
      from: old.refcountTableOffset,
      byteCount: UInt64(old.refcountTableClusterCount) << UInt64(geometry.clusterBits))
  }

  private struct Growth {
    /// Blocks that have to be made.
    var blocks: [Int] = []
    /// Clusters of a larger table; 0 when the old one suffices.
    var tableClusterCount: UInt64 = 0
    var tableEntryCount: Int
  }

  /// What counts `count` clusters from `start` on, and itself. Each round can only add to it, and a
  /// block counts at least 64 clusters, so a few rounds suffice.
  private func growth(from start: UInt64, _ count: UInt64) throws(ImageFault) -> Growth {
    let perBlock = geometry.refcountBlockEntryCount
    var growth = Growth(tableEntryCount: table.count)
    while true {
      let end = start + count + UInt64(growth.blocks.count) + growth.tableClusterCount
      let highest = Int((end - 1) / perBlock)
      var next = Growth(tableEntryCount: table.count)
      next.blocks = (Int(start / perBlock)...highest).filter {
        $0 >= table.count || table[$0] == 0
      }
      if highest >= table.count {
        next.tableClusterCount = geometry.clusterCount(for: UInt64(highest + 1) * 8 * 3 / 2)
        next.tableEntryCount = Int(next.tableClusterCount << UInt64(geometry.clusterBits)) / 8
      }
      guard next.tableEntryCount * 8 <= Header.refcountTableByteCountMax else {
        throw ImageFault(
          storage.path, "the file is too large for a refcount table of 8 MiB",
          wayOut: "copy it with larger clusters (strata convert -O qcow2 -o cluster_size=SIZE)",
          kind: .unsupported)
      }
      if next.blocks.count == growth.blocks.count,
        next.tableClusterCount == growth.tableClusterCount
      {
        return next
      }
      growth.blocks = next.blocks
      growth.tableClusterCount = max(growth.tableClusterCount, next.tableClusterCount)
      growth.tableEntryCount = next.tableEntryCount
    }
  }
}
