// SPDX-License-Identifier: Apache-2.0
//
// A new image that is written from front to back: data as it comes, each table when it is full, the
// L1 table and the refcount table behind everything, the header last. Only one L2 table, the open
// refcount blocks and two small tables are in memory, however large the image is.
// Spec: qcow2.rst, "Host cluster management", "Cluster mapping". This file performs no I/O.

import BlockTypes

/// Where the parts of a growing image go.
public struct AppendedImage: Sendable {
  /// Bytes to write at a place of the file.
  public struct Write: Hashable, Sendable {
    public let offset: HostOffset
    public let bytes: [UInt8]
  }

  public let header: Header
  private var geometry: ClusterGeometry { header.geometry }
  private var l1: [UInt64]
  /// The L2 table that is being filled, and its index; nil where none has an entry yet.
  private var l2: (index: Int, bytes: [UInt8])?
  /// Guest clusters below this have been placed or passed over.
  private var nextCluster: UInt64 = 0
  /// The first byte of the file that nothing has taken.
  private var cursor: UInt64
  /// The refcount blocks from `refcountTable.count` on that have counts.
  private var openBlocks: [[UInt8]] = []
  private var refcountTable: [UInt64] = []
  private var writes: [Write] = []

  /// Largest place that fits into an L2 entry.
  private static let hostOffsetMax: UInt64 = 1 << 55

  /// - Parameter header: of an image without tables; throws when its disk is too large for it.
  public init(_ header: Header) throws(ImageError) {
    let layout = try NewImageLayout(
      geometry: header.geometry, diskByteCount: header.diskByteCount)
    self.header = header
    self.l1 = [UInt64](repeating: 0, count: layout.l1EntryCount)
    self.cursor = header.geometry.clusterByteCount
    count(0..<1)
  }

  /// Takes places for the data of `count` clusters of the disk from `cluster` on, side by side.
  ///
  /// Clusters come in growing order; those that are passed over stay unallocated.
  ///
  /// - Parameter isUnwritten: the places are only kept free. Subclusters know that.
  public mutating func append(
    cluster: UInt64, count: Int, isUnwritten: Bool = false
  ) throws(ImageError) -> HostOffset {
    precondition(count > 0, "no cluster is placed")
    let start = try take(UInt64(count))
    for index in 0..<UInt64(count) {
      let host = HostOffset(byteOffset: start + index << UInt64(geometry.clusterBits))
      try setEntry(L2Entry(normalAt: host), of: cluster + index, isUnwritten: isUnwritten)
    }
    try retireBlocks()
    return HostOffset(byteOffset: start)
  }

  /// Gives the clusters of the disk from `cluster` on their own places in an external data file,
  /// which nothing counts.
  public mutating func appendExternal(cluster: UInt64, count: Int) throws(ImageError) {
    for index in cluster..<(cluster + UInt64(count)) {
      let place = HostOffset(byteOffset: index << UInt64(geometry.clusterBits))
      try setEntry(L2Entry(normalAt: place), of: index, isUnwritten: true)
    }
    try retireBlocks()
  }

  /// Lets `count` clusters from `cluster` on read as zeroes, whatever a backing file holds.
  public mutating func appendZeroes(cluster: UInt64, count: UInt64) throws(ImageError) {
    precondition(header.version >= 3, "version 2 has no zero clusters")
    for index in 0..<count { try setEntry(.zeroPlain, of: cluster + index) }
    try retireBlocks()
  }

  /// Takes a place for `byteCount` compressed bytes of a cluster.
  public mutating func append(
    cluster: UInt64, packedByteCount byteCount: Int
  ) throws(ImageError) -> HostOffset {
    precondition(
      (1..<Int(geometry.clusterByteCount)).contains(byteCount), "a cluster did not shrink")
    if cursor % geometry.clusterByteCount != 0,
      refcount(of: cursor >> UInt64(geometry.clusterBits)) == geometry.refcountMax
    {
      cursor = cursor.alignedUp(to: geometry.clusterByteCount)
    }
    guard cursor + UInt64(byteCount) <= L2Entry.compressedPlaceMax(in: geometry) else {
      throw ImageError(.refused, "the image is too large for compressed clusters")
    }
    let place = HostOffset(byteOffset: cursor)
    let entry = L2Entry(compressedAt: place, byteCount: byteCount, in: geometry)
    let sectors = entry.compressedRange(in: geometry)
    cursor += UInt64(byteCount)
    count(
      sectors.start >> UInt64(geometry.clusterBits)..<geometry.clusterCount(for: sectors.end))
    try setEntry(entry, of: cluster)
    try retireBlocks()
    return place
  }

  /// Hands out the tables that are full.
  public mutating func takeWrites() -> [Write] {
    defer { writes = [] }
    return writes
  }

  /// Ends the image: what is still to be written, the header that goes to the start of the file
  /// when all else is durable, and the file's length.
  public consuming func finish() throws(ImageError) -> (
    writes: [Write], header: [UInt8], fileByteCount: UInt64
  ) {
    try finishL2()
    // An empty disk has a table of nothing, for which nothing is taken.
    let l1Start = try take(geometry.clusterCount(for: UInt64(l1.count) * 8))
    if !l1.isEmpty {
      writes.append(Write(offset: HostOffset(byteOffset: l1Start), bytes: Self.bytes(of: l1)))
    }
    try retireBlocks()
    let (blockCount, tableClusterCount) = lastRefcountCounts()
    let tableStart = try take(tableClusterCount)
    let blocksStart = try take(blockCount)
    precondition(openBlocks.count == Int(blockCount), "the refcount blocks were miscounted")
    for (index, block) in openBlocks.enumerated() {
      let place = blocksStart + UInt64(index) << UInt64(geometry.clusterBits)
      refcountTable.append(place)
      writes.append(Write(offset: HostOffset(byteOffset: place), bytes: block))
    }
    let table = Self.bytes(of: refcountTable)
    guard table.count <= Header.refcountTableByteCountMax else {
      throw ImageError(
        .refused, "the image is too large for clusters of \(geometry.clusterByteCount) bytes")
    }
    writes.append(Write(offset: HostOffset(byteOffset: tableStart), bytes: table))
    var header = self.header
    header.l1EntryCount = l1.count
    header.l1TableOffset = HostOffset(byteOffset: l1Start)
    header.refcountTableOffset = HostOffset(byteOffset: tableStart)
    header.refcountTableClusterCount = Int(tableClusterCount)
    return (writes, try header.encode(), cursor)
  }

  // MARK: Mapping

  private mutating func setEntry(
    _ entry: L2Entry, of cluster: UInt64, isUnwritten: Bool = false
  ) throws(ImageError) {
    precondition(cluster >= nextCluster, "clusters come in growing order")
    nextCluster = cluster + 1
    let perTable = UInt64(geometry.l2EntryCount)
    let l1Index = Int(cluster / perTable)
    precondition(l1Index < l1.count, "a cluster lies behind the disk")
    if l2?.index != l1Index {
      try finishL2()
      l2 = (l1Index, [UInt8](repeating: 0, count: Int(geometry.clusterByteCount)))
    }
    let place = Int(cluster % perTable) * geometry.l2EntryByteCount
    guard geometry.hasSubclusters else {
      l2?.bytes.putBigEndian(entry.rawValue, at: place)
      return
    }
    // Clusters are written whole. The zero flag of an entry is reserved here: the bitmap has it.
    let isZero = entry == .zeroPlain
    let bitmap: SubclusterBitmap =
      isZero
      ? .allZero
      : entry.isCompressed || isUnwritten ? .none : SubclusterBitmap(allocated: .max, zero: 0)
    l2?.bytes.putBigEndian(isZero ? 0 : entry.rawValue, at: place)
    l2?.bytes.putBigEndian(bitmap.rawValue, at: place + 8)
  }

  /// Places the L2 table that was filled.
  private mutating func finishL2() throws(ImageError) {
    guard let table = l2 else { return }
    l2 = nil
    let place = HostOffset(byteOffset: try take(1))
    l1[table.index] = L1Entry(tableAt: place).rawValue
    writes.append(Write(offset: place, bytes: table.bytes))
  }

  // MARK: Space

  /// Takes whole clusters at the end.
  private mutating func take(_ clusterCount: UInt64) throws(ImageError) -> UInt64 {
    let start = cursor.alignedUp(to: geometry.clusterByteCount)
    cursor = start + clusterCount << UInt64(geometry.clusterBits)
    guard cursor <= Self.hostOffsetMax else {
      throw ImageError(.refused, "the image would be larger than \(Self.hostOffsetMax) bytes")
    }
    let first = start >> UInt64(geometry.clusterBits)
    count(first..<(first + clusterCount))
    return start
  }

  /// Counts one more reference to each of the clusters.
  private mutating func count(_ clusters: Range<UInt64>) {
    let perBlock = geometry.refcountBlockEntryCount
    for cluster in clusters {
      let block = Int(cluster / perBlock) - refcountTable.count
      precondition(block >= 0, "a refcount block was written too early")
      while block >= openBlocks.count {
        openBlocks.append([UInt8](repeating: 0, count: Int(geometry.clusterByteCount)))
      }
      let index = Int(cluster % perBlock)
      let old = Refcount.load(openBlocks[block], at: index, order: geometry.refcountOrder)
      Refcount.store(old + 1, to: &openBlocks[block], at: index, order: geometry.refcountOrder)
    }
  }

  private func refcount(of cluster: UInt64) -> UInt64 {
    let block = Int(cluster / geometry.refcountBlockEntryCount) - refcountTable.count
    return Refcount.load(
      openBlocks[block], at: Int(cluster % geometry.refcountBlockEntryCount),
      order: geometry.refcountOrder)
  }

  /// Writes the refcount blocks whose clusters are all taken.
  private mutating func retireBlocks() throws(ImageError) {
    let blockBits =
      UInt64(geometry.clusterBits)
      + UInt64(
        geometry.refcountBlockEntryCount.trailingZeroBitCount)
    while (UInt64(refcountTable.count) + 1) << blockBits
      <= cursor.alignedDown(to: geometry.clusterByteCount)
    {
      let place = try take(1)
      writes.append(
        Write(offset: HostOffset(byteOffset: place), bytes: openBlocks.removeFirst()))
      refcountTable.append(place)
    }
  }

  /// How many refcount blocks are still to be written, and clusters of the refcount table, when
  /// both count themselves.
  private func lastRefcountCounts() -> (blocks: UInt64, tableClusters: UInt64) {
    let perBlock = geometry.refcountBlockEntryCount
    let taken = geometry.clusterCount(for: cursor)
    let written = UInt64(refcountTable.count)
    var blocks: UInt64 = 1
    var tableClusters: UInt64 = 1
    // As in `NewImageLayout.refcountClusterCounts`: each round only grows the counts.
    while true {
      let last = (taken + blocks + tableClusters - 1) / perBlock
      let neededBlocks = last + 1 - written
      let neededClusters = geometry.clusterCount(for: (last + 1) * 8)
      if neededBlocks <= blocks && neededClusters <= tableClusters {
        return (blocks, tableClusters)
      }
      blocks = max(blocks, neededBlocks)
      tableClusters = max(tableClusters, neededClusters)
    }
  }

  private static func bytes(of words: [UInt64]) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(words.count * 8)
    for word in words { bytes.appendBigEndian(word) }
    return bytes
  }
}
