// SPDX-License-Identifier: Apache-2.0
//
// Sets the COPIED flags of the active L1 table and of its L2 tables where the reference count is
// one, and clears them elsewhere. Spec: qcow2.rst, "L1 table entry", "L2 table entry".

import LinuxIO
import Qcow2

/// Corrects the COPIED flags of an image whose references are known.
struct CopiedFlagRepair {
  let header: Header
  let reader: MetadataReader
  let counts: ClusterCounts

  /// Writes the tables whose flags are wrong.
  func run() throws(ImageFault) {
    var seen: Set<UInt64> = []
    var first = 0
    while first < header.l1EntryCount {
      let count = min(131_072, header.l1EntryCount - first)
      let offset = header.l1TableOffset.byteOffset + UInt64(first) * 8
      let words = try words(at: offset, count: count)
      let corrected = words.map { word in
        let cluster = CopiedFlags.cluster(ofL1: word, geometry: header.geometry)
        return cluster.map { CopiedFlags.corrected(word, count: references(to: $0)) } ?? word
      }
      if corrected != words { try write(corrected, at: offset) }
      for word in corrected where word != 0 {
        let table = L1Entry(rawValue: word).tableOffset.byteOffset
        if table != 0 && seen.insert(table).inserted { try correctTable(at: table) }
      }
      first += count
    }
  }

  private func correctTable(at offset: UInt64) throws(ImageFault) {
    let words = try words(at: offset, count: header.geometry.tableWordCount)
    let table = L2TableWords(words, header)
    var corrected = words
    for index in 0..<table.entryCount {
      let word = table.descriptor(index).rawValue
      let cluster = CopiedFlags.cluster(
        ofL2: word, geometry: header.geometry, version: header.version)
      guard let cluster else { continue }
      corrected[table.wordIndex(index)] = CopiedFlags.corrected(
        word, count: references(to: cluster))
    }
    if corrected != words { try write(corrected, at: offset) }
  }

  private func references(to cluster: UInt64) -> UInt64 {
    cluster < counts.clusterCount ? counts[cluster] : 0
  }

  private func words(at offset: UInt64, count: Int) throws(ImageFault) -> [UInt64] {
    try reader.read(offset, count * 8).bigEndianWords()
  }

  private func write(_ words: [UInt64], at offset: UInt64) throws(ImageFault) {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(words.count * 8)
    for word in words { bytes.appendBigEndian(word) }
    try reader.storage.write(bytes, at: offset)
  }
}
