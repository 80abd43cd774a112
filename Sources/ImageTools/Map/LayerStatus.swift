// SPDX-License-Identifier: Apache-2.0
//
// Where one layer keeps a piece of the disk. Reads L1 and L2 tables in slices of 4 KiB, so that a
// chain of a thousand layers takes a few MiB; asks raw files for their holes.
// Spec: qcow2.rst, "Cluster mapping"; lseek(2), SEEK_HOLE.

import BlockTypes
import LinuxIO
import Qcow2

/// What a layer says about a run of the disk that starts where it was asked.
struct LayerRun {
  var byteCount: UInt64
  var isPresent: Bool
  var isZero: Bool
  var isData: Bool
  var hostOffset: UInt64?

  static func absent(_ byteCount: UInt64) -> LayerRun {
    LayerRun(byteCount: byteCount, isPresent: false, isZero: false, isData: false)
  }
}

/// The map of one layer, with the table slices that were read last.
struct LayerMap {
  let path: String
  let diskByteCount: UInt64
  /// nil for a raw image. Not the whole header, which costs a reference count for each look.
  private let tables: MappingTables?
  private let reader: MetadataReader
  private let tellsHoles: Bool
  private var l1Slice = TableSlice()
  private var l2Slice = TableSlice()
  /// Whether data clusters may lie in holes of the file: a disk with preallocated metadata.
  private let mayHaveHoles: Bool

  /// - Parameter tellsSealed: tell also the places of encrypted data, for who can read it.
  init(_ layer: OpenedLayer, tellsSealed: Bool = false) throws(ImageFault) {
    self.path = layer.dataStorage?.path ?? layer.path
    self.diskByteCount = layer.diskByteCount
    self.tables = layer.header.map {
      MappingTables($0, hidesPlaces: $0.encryptionMethod != 0 && !tellsSealed)
    }
    self.reader = try MetadataReader(layer.storage)
    self.tellsHoles = try layer.storage.tellsHoles()
    if let header = layer.header, layer.dataStorage == nil {
      self.mayHaveHoles = try PreallocationProbe(header: header, reader: reader).run()
    } else {
      self.mayHaveHoles = false
    }
  }

  /// The status at `offset`, which lies on this layer's disk, for at most `byteCountMax` bytes.
  mutating func run(at offset: UInt64, byteCountMax: UInt64) throws(ImageFault) -> LayerRun {
    let limit = min(byteCountMax, diskByteCount - offset)
    guard let tables else { return try rawRun(at: offset, limit) }
    let run = try qcow2Run(at: offset, limit, tables)
    guard mayHaveHoles, run.isData, !run.isZero, let host = run.hostOffset else { return run }
    return try splitAtHole(run, host: host)
  }

  private func rawRun(at offset: UInt64, _ limit: UInt64) throws(ImageFault) -> LayerRun {
    let (isData, byteCount) = try fileStatus(at: offset, limit)
    return LayerRun(
      byteCount: byteCount, isPresent: true, isZero: !isData, isData: isData, hostOffset: offset)
  }

  private func splitAtHole(_ run: LayerRun, host: UInt64) throws(ImageFault) -> LayerRun {
    let (isData, byteCount) = try fileStatus(at: host, run.byteCount)
    var part = run
    part.byteCount = byteCount
    part.isZero = !isData
    return part
  }

  /// Whether the file has data at `offset`, and for how long that holds.
  private func fileStatus(
    at offset: UInt64, _ limit: UInt64
  ) throws(ImageFault) -> (isData: Bool, byteCount: UInt64) {
    guard tellsHoles else { return (true, limit) }
    guard offset < reader.fileByteCount else { return (false, limit) }
    let range = ByteRange(start: offset, end: min(offset + limit, reader.fileByteCount))
    guard let run = try reader.storage.firstRun(of: range) else { return (true, limit) }
    return (!run.isZero, min(limit, run.byteCount))
  }

  private mutating func qcow2Run(
    at offset: UInt64, _ limit: UInt64, _ tables: MappingTables
  ) throws(ImageFault) -> LayerRun {
    let geometry = tables.geometry
    let guest = GuestOffset(byteOffset: offset)
    let l1Index = geometry.l1Index(of: guest)
    let l1 = L1Entry(
      rawValue: try l1Slice.word(
        l1Index, ofTableAt: tables.l1TableOffset, entryCount: tables.l1EntryCount, reader
      ))
    guard l1.isValid(in: geometry) else {
      throw ImageFault(path, "L1 entry \(l1Index) is damaged", kind: .corrupt)
    }
    let tableEnd = (UInt64(l1Index) + 1) * geometry.l2CoverageByteCount - offset
    if l1.isEmpty { return .absent(min(limit, tableEnd)) }
    return try l2Run(at: guest, min(limit, tableEnd), l1.tableOffset.byteOffset, tables)
  }

  /// A run of clusters of one kind, contiguous where they have a place, within one table slice.
  private mutating func l2Run(
    at guest: GuestOffset, _ limit: UInt64, _ table: UInt64, _ tables: MappingTables
  ) throws(ImageFault) -> LayerRun {
    let geometry = tables.geometry
    let clusterByteCount = geometry.clusterByteCount
    var index = geometry.l2Index(of: guest)
    let inCluster = guest.byteOffset % clusterByteCount
    var run = try clusterRun(index, from: inCluster, table, tables)
    var end = inCluster + run.byteCount
    while end == clusterByteCount && run.byteCount < limit && index + 1 < geometry.l2EntryCount {
      index += 1
      let next = try clusterRun(index, from: 0, table, tables)
      let isSame =
        next.isPresent == run.isPresent && next.isZero == run.isZero && next.isData == run.isData
        && next.hostOffset == run.hostOffset.map { $0 + run.byteCount }
      if !isSame { break }
      run.byteCount += next.byteCount
      end = next.byteCount
    }
    run.byteCount = min(run.byteCount, limit)
    return run
  }

  /// Where the compressed cluster at `offset` is stored.
  mutating func compressedRange(at offset: UInt64) throws(ImageFault) -> ByteRange {
    guard let tables else { preconditionFailure("a raw layer has no clusters") }
    let geometry = tables.geometry
    let guest = GuestOffset(byteOffset: offset)
    let l1 = L1Entry(
      rawValue: try l1Slice.word(
        geometry.l1Index(of: guest), ofTableAt: tables.l1TableOffset,
        entryCount: tables.l1EntryCount, reader))
    let wordsPerEntry = geometry.l2EntryByteCount / 8
    let l2 = L2Entry(
      rawValue: try l2Slice.word(
        geometry.l2Index(of: guest) * wordsPerEntry, ofTableAt: l1.tableOffset.byteOffset,
        entryCount: geometry.tableWordCount, reader))
    return l2.compressedRange(in: geometry)
  }

  /// What the cluster says of its bytes from `inCluster` on: of all, or of equal subclusters.
  private mutating func clusterRun(
    _ index: Int, from inCluster: UInt64, _ table: UInt64, _ tables: MappingTables
  ) throws(ImageFault) -> LayerRun {
    let geometry = tables.geometry
    let wordsPerEntry = geometry.l2EntryByteCount / 8
    let entry = L2Entry(
      rawValue: try l2Slice.word(
        index * wordsPerEntry, ofTableAt: table, entryCount: geometry.tableWordCount, reader))
    var kind = entry.kind(
      in: geometry, version: tables.version, hasDataFile: tables.hasDataFile)
    var run = LayerRun.absent(geometry.clusterByteCount - inCluster)
    if geometry.hasSubclusters {
      let bitmap = SubclusterBitmap(
        rawValue: try l2Slice.word(
          index * 2 + 1, ofTableAt: table, entryCount: geometry.tableWordCount, reader))
      let extended = ExtendedL2Entry(entry, bitmap)
      let first = Int(inCluster >> UInt64(geometry.subclusterBits))
      let part = extended.run(
        from: first, extended.clusterKind(in: geometry, hasDataFile: tables.hasDataFile))
      kind = part.kind
      run.byteCount = UInt64(first + part.count) << UInt64(geometry.subclusterBits) - inCluster
      // A subcluster that is elsewhere may have a place here.
      if kind == .unallocated && entry != .unallocated && !tables.hidesPlaces {
        run.hostOffset = entry.hostOffset.byteOffset + inCluster
      }
    }
    switch kind {
    case .unallocated: return run
    case .zeroPlain: run.isZero = true
    case .zeroAllocated:
      run.isZero = true
      run.hostOffset = tables.hidesPlaces ? nil : entry.hostOffset.byteOffset + inCluster
    case .normal:
      run.isData = true
      run.hostOffset = tables.hidesPlaces ? nil : entry.hostOffset.byteOffset + inCluster
    case .compressed: run.isData = true
    case .invalid:
      throw ImageFault(
        path, "entry \(index) of the L2 table at \(table) is damaged",
        wayOut: "check the image (strata check)", kind: .corrupt)
    }
    run.isPresent = true
    return run
  }
}

/// What of a header the map needs.
private struct MappingTables {
  let geometry: ClusterGeometry
  let version: Int
  let hasDataFile: Bool
  let l1TableOffset: UInt64
  let l1EntryCount: Int
  /// What lies in the file is not what the disk holds.
  let hidesPlaces: Bool

  init(_ header: Header, hidesPlaces: Bool) {
    geometry = header.geometry
    version = header.version
    hasDataFile = header.incompatibleFeatures.contains(.externalDataFile)
    l1TableOffset = header.l1TableOffset.byteOffset
    l1EntryCount = header.l1EntryCount
    self.hidesPlaces = hidesPlaces
  }
}
