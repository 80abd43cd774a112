// SPDX-License-Identifier: Apache-2.0
//
// Sets the COPIED flags of the active L1 table and of its L2 tables where the reference count is
// one, and clears them elsewhere. Spec: qcow2.rst, "L1 table entry", "L2 table entry".

import LinuxIO
import Qcow2

/// Corrects the COPIED flags of an image whose reference counts are known.
struct CopiedFlagRepair {
  let header: Header
  let reader: MetadataReader
  /// The reference count of a cluster.
  let count: (UInt64) throws(ImageFault) -> UInt64

  /// Writes the tables whose flags are wrong.
  func run() throws(ImageFault) {
    let flags = CopiedFlags(header, fileByteCount: reader.fileByteCount)
    var seen: Set<UInt64> = []
    var first = 0
    while first < header.l1EntryCount {
      let count = min(131_072, header.l1EntryCount - first)
      let offset = header.l1TableOffset.byteOffset + UInt64(first) * 8
      let words = try words(at: offset, count: count)
      let corrected = try flags.corrected(l1: words) { (cluster) throws(ImageFault) in
        try self.count(cluster)
      }
      if corrected != words { try reader.write(corrected, at: offset) }
      for word in corrected where word != 0 {
        let table = L1Entry(rawValue: word).tableOffset.byteOffset
        if table != 0 && seen.insert(table).inserted { try correctTable(at: table, flags) }
      }
      first += count
    }
  }

  private func correctTable(at offset: UInt64, _ flags: CopiedFlags) throws(ImageFault) {
    let words = try words(at: offset, count: header.geometry.tableWordCount)
    let corrected = try flags.corrected(l2: words) { (cluster) throws(ImageFault) in
      try self.count(cluster)
    }
    if corrected != words { try reader.write(corrected, at: offset) }
  }

  private func words(at offset: UInt64, count: Int) throws(ImageFault) -> [UInt64] {
    try reader.read(offset, count * 8).bigEndianWords()
  }
}
