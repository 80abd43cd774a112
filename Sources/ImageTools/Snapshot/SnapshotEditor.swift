// SPDX-License-Identifier: Apache-2.0
//
// An image that is about to get, lose or go back to a snapshot: locked as a writer does, its
// snapshot table and its counts. Spec: qcow2.rst, "Snapshots".

import BlockTypes
import LinuxIO
import Qcow2

/// An image at rest with its internal snapshots.
struct SnapshotEditor {
  let storage: LayerFile
  var snapshots: SnapshotTable
  let counts: RefcountEditor

  /// The header on disk.
  var header: Header { counts.header }
  private var geometry: ClusterGeometry { header.geometry }

  init(
    path: String, format: ImageFormat?, remote: (any RemoteOpener)? = nil
  ) throws(ImageFault) {
    let layers = try OpenChain.open(
      path: path, format: format, access: .readWrite,
      options: OpenChain.Options(
        detection: .topQcow2, followsBackingFiles: false, requiresSupport: false,
        changesDisk: false, remote: remote))
    guard let header = layers[0].header else { throw Self.noneInRaw(path) }
    try self.init(layers[0].storage, header)
  }

  /// The image of an export that stands still, which has locked it.
  init(standingStill storage: LayerFile) throws(ImageFault) {
    guard try OpenedLayer.hasQcow2Magic(storage) else { throw Self.noneInRaw(storage.path) }
    try self.init(storage, try OpenedLayer.readHeader(of: storage))
  }

  private init(_ storage: LayerFile, _ header: Header) throws(ImageFault) {
    try Self.requireUsable(header, storage.path)
    self.storage = storage
    self.snapshots = try Self.snapshots(of: header, storage)
    self.counts = try RefcountEditor(storage, header)
  }

  private static func requireUsable(_ header: Header, _ path: String) throws(ImageFault) {
    if header.incompatibleFeatures.contains(.externalDataFile) {
      throw ImageFault(
        path, "an image with an external data file has no snapshots: they cannot share its data",
        wayOut: "make an overlay (strata create -b)", kind: .unsupported)
    }
    if header.isMarkedCorrupt {
      throw ImageFault(
        path, "the image is marked corrupt", wayOut: "repair it first (strata check -r all)",
        kind: .corrupt)
    }
  }

  /// The snapshots of an image, in their order.
  static func snapshots(
    of header: Header, _ storage: LayerFile
  ) throws(ImageFault) -> SnapshotTable {
    guard header.snapshotCount > 0 else { return SnapshotTable(entries: []) }
    return try SnapshotTable(
      of: header, fault: { ImageFault(storage.path, $0) },
      read: { (offset, byteCount) throws(ImageFault) in
        try storage.read(at: offset, byteCount: byteCount)
      })
  }

  static func noneInRaw(_ path: String) -> ImageFault {
    ImageFault(
      path, "a raw image has no snapshots",
      wayOut: "copy it to qcow2 (strata convert -f raw -O qcow2)", kind: .unsupported)
  }

  static func noneInForeign(_ path: String) -> ImageFault {
    ImageFault(path, "snapshots of this format are not read", kind: .unsupported)
  }

  /// The header by which a snapshot is read.
  static func view(
    of header: Header, _ storage: LayerFile, at idOrName: String
  ) throws(ImageFault) -> Header {
    let table = try snapshots(of: header, storage)
    guard let index = table.index(of: idOrName) else { throw missing(idOrName, storage.path) }
    let fileByteCount = try storage.byteCount()
    do throws(ImageError) {
      return try header.atSnapshot(table.entries[index], fileByteCount: fileByteCount)
    } catch {
      throw ImageFault(storage.path, error)
    }
  }

  private static func missing(_ idOrName: String, _ path: String) -> ImageFault {
    ImageFault(
      path, "it has no snapshot with the id or name '\(idOrName)'",
      wayOut: "list them (strata snapshot list)", kind: .refused)
  }

  /// Where in the table the snapshot with this id or name is.
  func index(of idOrName: String) throws(ImageFault) -> Int {
    guard let index = snapshots.index(of: idOrName) else {
      throw Self.missing(idOrName, storage.path)
    }
    let entry = snapshots.entries[index]
    guard entry.l1TableOffset.byteOffset.isAligned(to: geometry.clusterByteCount),
      entry.l1TableOffset.byteOffset < 1 << 56,
      entry.l1EntryCount <= Header.l1TableByteCountMax / 8
    else {
      throw counts.damaged("the L1 table of snapshot \(entry.id) is unaligned or too large")
    }
    return index
  }

  /// The clusters of the disk as it is now.
  var activeWalk: MappingWalk {
    MappingWalk(
      storage: storage, header: header, l1TableOffset: header.l1TableOffset,
      l1EntryCount: header.l1EntryCount)
  }

  /// The clusters of a snapshot, as far as the first `entryCountMax` entries of its L1 table go.
  func walk(of entry: SnapshotEntry, entryCountMax: Int = .max) -> MappingWalk {
    MappingWalk(
      storage: storage, header: header, l1TableOffset: entry.l1TableOffset,
      l1EntryCount: min(entry.l1EntryCount, entryCountMax))
  }

  // MARK: What may be counted

  /// Host clusters with several packed clusters whose counts are nearly full, at most.
  private static let tightClustersMax = 1 << 20

  /// Throws unless every cluster of `walk` is counted and can be counted once more as often as the
  /// walk meets it. Changes nothing.
  func requireRoom(for walk: MappingWalk) throws(ImageFault) {
    var tight: [UInt64: UInt64] = [:]
    try walk.run { (cluster, use) throws(ImageFault) in
      let count = try counts.count(of: cluster)
      guard count > 0 else {
        throw counts.damaged("cluster \(cluster) is in use and counted zero times")
      }
      guard count < geometry.refcountMax else { throw overflow() }
      guard use == .compressed, count > geometry.refcountMax / 2 else { return }
      tight[cluster, default: 0] += 1
      let isFull = tight[cluster, default: 0] > geometry.refcountMax - count
      guard !isFull, tight.count <= Self.tightClustersMax else { throw overflow() }
    }
  }

  private func overflow() -> ImageFault {
    let bits = 1 << geometry.refcountOrder
    return ImageFault(
      storage.path,
      "a cluster is shared as often as its reference count of \(bits) bit\(bits == 1 ? "" : "s") "
        + "can tell",
      wayOut: "delete snapshots, or widen the counts (qemu-img amend -o refcount_bits=16)",
      kind: .refused)
  }

  // MARK: Writing

  /// Writes a table to clusters of its own, padded with zeroes.
  func write(_ bytes: [UInt8], at offset: HostOffset) throws(ImageFault) {
    let padding = UInt64(bytes.count).alignedUp(to: geometry.clusterByteCount) - UInt64(bytes.count)
    try storage.write(bytes + [UInt8](repeating: 0, count: Int(padding)), at: offset.byteOffset)
  }

  /// Changes the header on disk, durably.
  func changeHeader(_ change: (inout Header) -> Void) throws(ImageFault) {
    var header = counts.header
    change(&header)
    try storage.rewriteHeader(to: header)
    counts.header = header
  }

  /// Writes a new snapshot table and returns its place; none for no snapshots. It is in the file
  /// after the next flush, and in force when the header names it.
  func place(_ table: SnapshotTable) throws(ImageFault) -> HostOffset {
    guard !table.entries.isEmpty else { return HostOffset(byteOffset: 0) }
    guard table.byteCount <= SnapshotTable.byteCountMax else {
      throw ImageFault(
        storage.path, "the snapshot table would be larger than 64 MiB",
        wayOut: "delete snapshots first", kind: .refused)
    }
    let offset = try counts.allocate(byteCount: table.byteCount)
    try write(table.encode(), at: offset)
    return offset
  }

  /// Gives the clusters of the old snapshot table back.
  func release(_ table: SnapshotTable, at offset: HostOffset) throws(ImageFault) {
    guard table.byteCount > 0 else { return }
    try counts.lower(from: offset, byteCount: table.byteCount)
  }

  /// Makes the COPIED flags of an L1 table and of its L2 tables agree with the counts.
  func correctFlags(in header: Header) throws(ImageFault) {
    try CopiedFlagRepair(reader: try MetadataReader(storage), header: header).run {
      (cluster) throws(ImageFault) in try counts.count(of: cluster)
    }
  }

  /// Marks the image while counts and flags of the active tables do not agree, so that whoever
  /// opens it after a crash makes them agree. Version 2 has no mark: what is left of a crash there
  /// are leaks, and flags that cost a copy.
  func markDirty(_ isDirty: Bool, in header: inout Header) {
    guard header.version >= 3 else { return }
    if isDirty {
      header.incompatibleFeatures.insert(.dirty)
    } else {
      header.incompatibleFeatures.remove(.dirty)
    }
  }
}
