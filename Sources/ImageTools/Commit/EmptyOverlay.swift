// SPDX-License-Identifier: Apache-2.0
//
// Empties an overlay whose base says everything that it says: it gets a new L1 table of nothing,
// and then gives back what the old one led to. A cut leaves the old disk or the new one, which read
// the same, and leaked clusters at worst. Spec: qcow2.rst, "Cluster mapping"; Durability.md.

import BlockTypes
import LinuxIO
import Qcow2

/// Takes everything out of overlays.
public enum EmptyOverlay {
  private static let zeroes = [UInt8](repeating: 0, count: 1 << 20)

  /// Throws when the image cannot be emptied.
  public static func requirePossible(_ layer: OpenedLayer) throws(ImageFault) {
    guard let header = layer.header else {
      throw ImageFault(
        layer.path, "a raw image has no backing file to commit to", kind: .unsupported)
    }
    guard header.backingFile != nil else {
      throw ImageFault(layer.path, "it has no backing file to commit to", kind: .refused)
    }
    guard layer.dataStorage == nil else {
      throw ImageFault(
        layer.path, "an image with an external data file is not emptied",
        wayOut: "say -d to keep it as it is", kind: .unsupported)
    }
  }

  /// Empties the image, which is open for writing. What its base says must be durable.
  ///
  /// A fault leaves the same disk, in the overlay or in its base, and at worst leaked clusters.
  public static func run(_ layer: OpenedLayer) throws(ImageFault) {
    do throws(ImageFault) {
      try empty(layer)
    } catch {
      throw error.after("its base has all that it says, and the next commit empties it")
    }
  }

  private static func empty(_ layer: OpenedLayer) throws(ImageFault) {
    guard let header = layer.header else { preconditionFailure("a raw image has no tables") }
    let counts = try RefcountEditor(layer.storage, header)
    let old = MappingWalk(
      storage: layer.storage, header: header, l1TableOffset: header.l1TableOffset,
      l1EntryCount: header.l1EntryCount)
    // Nothing is changed when the tables cannot be followed.
    try old.run { (_, _) throws(ImageFault) in }
    try replaceTable(counts)
    try old.run { (cluster, _) throws(ImageFault) in try counts.lower(cluster) }
    try counts.lower(from: header.l1TableOffset, byteCount: UInt64(header.l1EntryCount) * 8)
    try counts.flush()
    try moveTableForward(layer.storage, counts.header)
  }

  /// Puts a new L1 table of nothing in the place of the old one, which keeps its counts.
  private static func replaceTable(_ counts: RefcountEditor) throws(ImageFault) {
    var header = counts.header
    guard header.l1EntryCount > 0 else { return }
    let byteCount = UInt64(header.l1EntryCount) * 8
    let table = try counts.allocate(byteCount: byteCount)
    var offset = table.byteOffset
    let end = offset + byteCount.alignedUp(to: header.geometry.clusterByteCount)
    while offset < end {
      let count = min(UInt64(zeroes.count), end - offset)
      try counts.storage.write(Array(zeroes[..<Int(count)]), at: offset)
      offset += count
    }
    try counts.flush()
    // The counts may have moved, and the header on disk with them.
    header = counts.header
    header.l1TableOffset = table
    try counts.storage.rewriteHeader(to: header)
    counts.header = header
  }

  /// Moves the empty table to where there is room now, and cuts off what nothing uses any more.
  private static func moveTableForward(
    _ storage: LayerFile, _ header: Header
  ) throws(ImageFault) {
    let counts = try RefcountEditor(storage, header)
    let old = header.l1TableOffset
    try replaceTable(counts)
    let byteCount = UInt64(header.l1EntryCount) * 8
    try counts.lower(from: old, byteCount: byteCount)
    try counts.flush()
    guard try storage.isRegularFile(), let last = try counts.lastUsedCluster() else { return }
    let end = (last + 1) << UInt64(header.geometry.clusterBits)
    guard try storage.byteCount() > end else { return }
    try storage.truncate(to: end)
    try storage.synchronize()
  }
}

extension RefcountEditor {
  /// The last cluster that is counted; nil when none is.
  fileprivate func lastUsedCluster() throws(ImageFault) -> UInt64? {
    let perBlock = Int(geometry.refcountBlockEntryCount)
    for index in table.indices.reversed() {
      guard let bytes = try block(index) else { continue }
      for entry in (0..<perBlock).reversed()
      where Refcount.load(bytes, at: entry, order: geometry.refcountOrder) != 0 {
        return UInt64(index) * UInt64(perBlock) + UInt64(entry)
      }
    }
    return nil
  }
}
