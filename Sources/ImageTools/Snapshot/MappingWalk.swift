// SPDX-License-Identifier: Apache-2.0
//
// All host clusters that an L1 table leads to, one after the other, as often as it does. Reads one
// L2 table at a time. Spec: qcow2.rst, "Cluster mapping".

import BlockTypes
import LinuxIO
import Qcow2

/// A walk over an L1 table and its L2 tables.
struct MappingWalk {
  let storage: LayerFile
  let header: Header
  let l1TableOffset: HostOffset
  let l1EntryCount: Int

  /// What a cluster holds.
  enum Use {
    case l2Table
    case data
    /// Some of the packed bytes of a compressed cluster: others may share the host cluster.
    case compressed
  }

  private static let chunkEntryCount = 1 << 17

  /// Calls `visit` with each cluster. Throws where an entry contradicts the format.
  func run(
    _ visit: (_ cluster: UInt64, Use) throws(ImageFault) -> Void
  ) throws(ImageFault) {
    let fileByteCount = try storage.byteCount()
    let bits = UInt64(header.geometry.clusterBits)
    for first in stride(from: 0, to: l1EntryCount, by: Self.chunkEntryCount) {
      let count = min(Self.chunkEntryCount, l1EntryCount - first)
      let words = try storage.read(
        at: l1TableOffset.byteOffset + UInt64(first) * 8, byteCount: count * 8
      ).bigEndianWords()
      for (index, word) in words.enumerated() where word != 0 {
        let entry = L1Entry(rawValue: word)
        let table = entry.tableOffset.byteOffset
        guard entry.isValid(in: header.geometry), table < fileByteCount else {
          throw damaged("L1 entry \(first + index) is 0x\(String(word, radix: 16))")
        }
        if entry.isEmpty { continue }
        try walkTable(at: table, visit)
        // Afterwards: a visitor may give the table up.
        try visit(table >> bits, .l2Table)
      }
    }
  }

  private func walkTable(
    at table: UInt64, _ visit: (_ cluster: UInt64, Use) throws(ImageFault) -> Void
  ) throws(ImageFault) {
    let geometry = header.geometry
    let bits = UInt64(geometry.clusterBits)
    let words = try storage.read(at: table, byteCount: Int(geometry.clusterByteCount))
      .bigEndianWords()
    // What a subcluster says changes nothing in who references which cluster.
    for index in stride(from: 0, to: words.count, by: geometry.l2EntryByteCount / 8) {
      let entry = L2Entry(rawValue: words[index])
      switch entry.kind(in: geometry, version: header.version) {
      case .unallocated, .zeroPlain: break
      case .normal, .zeroAllocated: try visit(entry.hostOffset.byteOffset >> bits, .data)
      case .compressed:
        let range = entry.compressedRange(in: geometry)
        for cluster in (range.start >> bits)...((range.end - 1) >> bits) {
          try visit(cluster, .compressed)
        }
      case .invalid:
        throw damaged("an entry of the L2 table at \(table) is damaged")
      }
    }
  }

  private func damaged(_ what: String) -> ImageFault {
    ImageFault(
      storage.path, "it is damaged: \(what)", wayOut: "check it (strata check)", kind: .corrupt)
  }
}
