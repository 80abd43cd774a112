// SPDX-License-Identifier: Apache-2.0
//
// The COPIED flag of L1 and L2 entries: set exactly where the reference count is one.
// Spec: qcow2.rst, "L1 table entry", "L2 table entry". This file performs no I/O.

import BlockTypes

/// Says what the COPIED flags of an image must be.
public struct CopiedFlags {
  private let rules: EntryRules

  public init(_ header: Header, fileByteCount: UInt64) {
    rules = EntryRules(header, fileByteCount: fileByteCount)
  }

  /// The words of an L1 table with the flags that the counts demand; of clusters that `counts` does
  /// not cover they stay as they are.
  public func corrected(l1 words: [UInt64], counts: ClusterCounts) -> [UInt64] {
    words.map { word in
      let table = word & RawL2Entry.offsetMask
      return table == 0 ? word : corrected(word, table, counts)
    }
  }

  /// The words of an L2 table, likewise.
  public func corrected(l2 words: [UInt64], counts: ClusterCounts) -> [UInt64] {
    var result = words
    for index in stride(from: 0, to: words.count, by: rules.wordsPerEntry) {
      let entry = RawL2Entry(word: words[index])
      if entry.isCompressed || entry.hostOffset == 0 { continue }
      // Clusters of a data file have no counts, and are overwritten in place.
      result[index] =
        rules.hasDataFile
        ? entry.word | L2Entry.copiedFlag : corrected(entry.word, entry.hostOffset, counts)
    }
    return result
  }

  private func corrected(_ word: UInt64, _ host: UInt64, _ counts: ClusterCounts) -> UInt64 {
    let cluster = host >> UInt64(rules.geometry.clusterBits)
    guard counts.window.contains(cluster) else { return word }
    return counts[cluster] == 1 ? word | L2Entry.copiedFlag : word & ~L2Entry.copiedFlag
  }
}
