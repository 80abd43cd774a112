// SPDX-License-Identifier: Apache-2.0
//
// The refcount blocks that an image has, corrected in place. Spec: qcow2.rst, "Host cluster
// management".

import LinuxIO
import Qcow2

/// The refcount structure of an image whose blocks are all sound.
struct RefcountBlocks {
  let header: Header
  let reader: MetadataReader

  private var geometry: ClusterGeometry { header.geometry }

  /// Whether there is a block for every cluster that is referenced.
  func cover(_ counts: ClusterCounts) throws(ImageFault) -> Bool {
    var index: UInt64 = 0
    while let clusters = clusters(ofBlock: index, of: counts) {
      if !counts.isEmpty(in: clusters) {
        guard try offset(ofBlock: index) != nil else { return false }
      }
      index += 1
    }
    return true
  }

  /// Writes the blocks that differ from `counts`.
  func correct(to counts: ClusterCounts) throws(ImageFault) {
    var index: UInt64 = 0
    while let clusters = clusters(ofBlock: index, of: counts) {
      if let offset = try offset(ofBlock: index) {
        let old = try reader.read(offset, Int(geometry.clusterByteCount))
        var new = old + [UInt8](repeating: 0, count: Int(geometry.clusterByteCount) - old.count)
        for cluster in clusters {
          Refcount.store(
            counts[cluster], to: &new, at: Int(cluster - clusters.lowerBound),
            order: geometry.refcountOrder)
        }
        if !(new.starts(with: old) && new[old.count...].allSatisfy { $0 == 0 }) {
          try reader.storage.write(new, at: offset)
        }
      }
      index += 1
    }
  }

  /// The clusters that block `index` counts, cut to those of the file; nil past the last one.
  private func clusters(ofBlock index: UInt64, of counts: ClusterCounts) -> Range<UInt64>? {
    let first = index * geometry.refcountBlockEntryCount
    guard first < counts.clusterCount else { return nil }
    return first..<min(first + geometry.refcountBlockEntryCount, counts.clusterCount)
  }

  private func offset(ofBlock index: UInt64) throws(ImageFault) -> UInt64? {
    let entryCount = UInt64(header.refcountTableClusterCount) << UInt64(geometry.clusterBits - 3)
    guard index < entryCount else { return nil }
    let bytes = try reader.read(header.refcountTableOffset.byteOffset + index * 8, 8)
    guard bytes.count == 8 else { return nil }
    let offset = bytes.bigEndianInteger(UInt64.self, at: 0)
    return offset == 0 ? nil : offset
  }
}
