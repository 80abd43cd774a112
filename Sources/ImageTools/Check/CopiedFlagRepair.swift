// SPDX-License-Identifier: Apache-2.0
//
// Sets the COPIED flags of the active L1 table and of its L2 tables where the reference count is
// one, and clears them elsewhere. Spec: qcow2.rst, "L1 table entry", "L2 table entry".

import LinuxIO
import Qcow2

/// Corrects the COPIED flags of an image whose reference counts are known.
struct CopiedFlagRepair {
  let reader: MetadataReader
  let header: Header

  /// Entries of the L1 table in memory at one time.
  private static let chunkEntryCount = 1 << 17

  /// Writes the tables whose flags are wrong.
  ///
  /// - Parameter count: the reference count of a cluster; nil leaves its flag as it is.
  func run(_ count: (UInt64) throws(ImageFault) -> UInt64?) throws(ImageFault) {
    let flags = CopiedFlags(header, fileByteCount: reader.fileByteCount)
    let tableByteCount = Int(header.geometry.clusterByteCount)
    var seen: Set<UInt64> = []
    for first in stride(from: 0, to: header.l1EntryCount, by: Self.chunkEntryCount) {
      let entryCount = min(Self.chunkEntryCount, header.l1EntryCount - first)
      let offset = header.l1TableOffset.byteOffset + UInt64(first) * 8
      let words = try reader.read(offset, entryCount * 8).bigEndianWords()
      let corrected = try flags.corrected(l1: words, count: count)
      if corrected != words { try reader.write(corrected, at: offset) }
      for word in corrected where word != 0 {
        let table = L1Entry(rawValue: word).tableOffset.byteOffset
        guard table != 0, table < reader.fileByteCount, seen.insert(table).inserted else {
          continue
        }
        let old = try reader.read(table, tableByteCount).bigEndianWords()
        let new = try flags.corrected(l2: old, count: count)
        if new != old { try reader.write(new, at: table) }
      }
    }
  }
}
