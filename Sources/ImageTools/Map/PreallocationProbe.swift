// SPDX-License-Identifier: Apache-2.0
//
// Whether an image has many more clusters in use than its file occupies: then its clusters were
// allocated in advance and lie in holes, which read as zeroes. The rule is that of QEMU, so that
// maps agree. Spec: qcow2.rst, "Host cluster management".

import Qcow2

/// Compares counted clusters with the space that the file takes.
struct PreallocationProbe {
  let header: Header
  let reader: MetadataReader

  /// Whether at least a ninth (and at least two) more clusters are in use than are on disk.
  func run() throws(ImageFault) -> Bool {
    let geometry = header.geometry
    guard let onDiskByteCount = try reader.storage.allocatedByteCount() else { return false }
    let onDisk = onDiskByteCount >> UInt64(geometry.clusterBits)
    let threshold = max(onDisk * 10 / 9, onDisk + 2)
    let clusterCount = geometry.clusterCount(for: reader.fileByteCount)
    // Without holes of that size there is nothing to find.
    guard reader.hasHoles, clusterCount >= threshold else { return false }
    let perBlock = geometry.refcountBlockEntryCount
    var inUse: UInt64 = 0
    for block in 0...(clusterCount / perBlock) {
      let entryCount = UInt64(header.refcountTableClusterCount) << UInt64(geometry.clusterBits - 3)
      guard block < entryCount else { return false }
      let entry = try reader.read(header.refcountTableOffset.byteOffset + block * 8, 8)
      guard entry.count == 8 else { return false }
      let offset = entry.bigEndianInteger(UInt64.self, at: 0)
      if offset == 0 { continue }
      let bytes = try reader.read(offset, Int(geometry.clusterByteCount))
      let count = min(perBlock, clusterCount - block * perBlock)
      for index in 0..<min(Int(count), (bytes.count * 8) >> geometry.refcountOrder) {
        if Refcount.load(bytes, at: index, order: geometry.refcountOrder) != 0 { inUse += 1 }
      }
      if inUse >= threshold { return true }
    }
    return false
  }
}
