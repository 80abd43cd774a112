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

  /// The words of an L1 table with the flags that the counts demand.
  ///
  /// - Parameter count: the reference count of a host cluster; nil leaves its flag as it is.
  public func corrected<Failure>(
    l1 words: [UInt64], count: (UInt64) throws(Failure) -> UInt64?
  ) throws(Failure) -> [UInt64] {
    var result = words
    for index in words.indices {
      let table = words[index] & RawL2Entry.offsetMask
      if table != 0 { result[index] = try corrected(words[index], table, count) }
    }
    return result
  }

  /// The words of an L2 table, likewise.
  public func corrected<Failure>(
    l2 words: [UInt64], count: (UInt64) throws(Failure) -> UInt64?
  ) throws(Failure) -> [UInt64] {
    var result = words
    for index in stride(from: 0, to: words.count, by: rules.wordsPerEntry) {
      let entry = RawL2Entry(word: words[index])
      if entry.isCompressed || entry.hostOffset == 0 { continue }
      // Clusters of a data file have no counts, and are overwritten in place.
      result[index] =
        rules.hasDataFile
        ? entry.word | L2Entry.copiedFlag : try corrected(entry.word, entry.hostOffset, count)
    }
    return result
  }

  private func corrected<Failure>(
    _ word: UInt64, _ host: UInt64, _ count: (UInt64) throws(Failure) -> UInt64?
  ) throws(Failure) -> UInt64 {
    guard let count = try count(host >> UInt64(rules.geometry.clusterBits)) else { return word }
    return count == 1 ? word | L2Entry.copiedFlag : word & ~L2Entry.copiedFlag
  }
}
