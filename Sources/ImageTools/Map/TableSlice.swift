// SPDX-License-Identifier: Apache-2.0
//
// A piece of an L1 or L2 table that was read last.

import Qcow2

/// A cache of one run of 8-byte entries.
struct TableSlice {
  private var table: UInt64 = 0
  private var firstIndex = 0
  private var words: [UInt64] = []

  private static let entryCount = 512

  /// Entry `index` of the table at `table`; zero where the file has no bytes.
  mutating func word(
    _ index: Int, ofTableAt table: UInt64, entryCount: Int, _ reader: MetadataReader
  ) throws(ImageFault) -> UInt64 {
    precondition(index < entryCount, "a table entry is outside its table")
    if words.isEmpty || table != self.table
      || index / Self.entryCount != firstIndex / Self.entryCount
    {
      firstIndex = index / Self.entryCount * Self.entryCount
      let count = min(Self.entryCount, entryCount - firstIndex)
      words = try reader.read(table + UInt64(firstIndex) * 8, count * 8).bigEndianWords()
      words += [UInt64](repeating: 0, count: count - words.count)
      self.table = table
    }
    return words[index - firstIndex]
  }
}
