// SPDX-License-Identifier: Apache-2.0
//
// The reference counts of an image at rest, read and changed a block at a time. What must be
// durable before what is up to the caller; blocks reach the file at `flush` at the latest.
// Spec: qcow2.rst, "Host cluster management".

import BlockTypes
import LinuxIO
import Qcow2

/// Counts of an image that is locked for writing.
final class RefcountEditor {
  let storage: LayerFile
  /// The header on disk; it changes when the refcount table has to move.
  var header: Header
  let geometry: ClusterGeometry
  /// Offsets of the blocks, 0 where there is none, and all that are.
  var table: [UInt64]
  private(set) var blockOffsets: Set<UInt64>

  /// Where the keys of an encrypted image are.
  private let encryptionArea: ByteRange?

  private struct Block {
    var index: Int
    var bytes: [UInt8]
    var isDirty = false
  }

  /// The blocks in memory, in the order of their arrival from `oldest` on, round and round.
  private var blocks: [Block] = []
  private var oldest = 0
  private var places: [Int: Int] = [:]
  private let blocksMax: Int
  private var lastPlace = 0
  /// Freed clusters whose space is not given back yet.
  private var freed: Range<UInt64>?

  /// Bytes of blocks in memory.
  static let cacheByteCountMax = 16 << 20

  init(_ storage: LayerFile, _ header: Header) throws(ImageFault) {
    self.storage = storage
    self.header = header
    self.geometry = header.geometry
    self.blocksMax = max(4, Self.cacheByteCountMax >> header.geometry.clusterBits)
    let byteCount = header.refcountTableClusterCount << header.geometry.clusterBits
    let bytes = try storage.read(at: header.refcountTableOffset.byteOffset, byteCount: byteCount)
    self.table = bytes.bigEndianWords()
    self.table += [UInt64](repeating: 0, count: byteCount / 8 - table.count)
    self.blockOffsets = Set(table)
    do throws(ImageError) {
      self.encryptionArea = try header.encryptionArea().map {
        ByteRange(start: $0.offset.byteOffset, end: $0.offset.byteOffset + $0.byteCount)
      }
    } catch {
      throw ImageFault(storage.path, error)
    }
    for (index, word) in table.enumerated() where word != 0 {
      guard word.isAligned(to: geometry.clusterByteCount), word < 1 << 56 else {
        throw damaged("refcount block \(index) is at \(word)")
      }
    }
  }

  func damaged(_ what: String) -> ImageFault {
    ImageFault(
      storage.path, "it is damaged: \(what)", wayOut: "check it (strata check)", kind: .corrupt)
  }

  // MARK: Counts

  func count(of cluster: UInt64) throws(ImageFault) -> UInt64 {
    let (index, entry) = split(cluster)
    guard index < table.count, table[index] != 0 else { return 0 }
    let place = try load(index)
    return Refcount.load(blocks[place].bytes, at: entry, order: geometry.refcountOrder)
  }

  /// Sets the count of a cluster that a block counts.
  func set(_ count: UInt64, of cluster: UInt64) throws(ImageFault) {
    let (index, entry) = split(cluster)
    precondition(index < table.count && table[index] != 0, "no block counts this cluster")
    let place = try load(index)
    Refcount.store(count, to: &blocks[place].bytes, at: entry, order: geometry.refcountOrder)
    blocks[place].isDirty = true
  }

  /// Counts one reference more. The caller has seen that the count can hold it.
  func raise(_ cluster: UInt64) throws(ImageFault) {
    let count = try count(of: cluster)
    guard count > 0, count < geometry.refcountMax else {
      throw damaged("cluster \(cluster) has the reference count \(count)")
    }
    try set(count + 1, of: cluster)
  }

  /// Counts one reference less, and gives the space of a cluster back that has none any more.
  ///
  /// Nothing durable may name the cluster for the reference that goes.
  func lower(_ cluster: UInt64) throws(ImageFault) {
    let count = try count(of: cluster)
    // A count of zero was damaged before; it stays at zero.
    guard count > 0 else { return }
    if count == 1, holdsTables(cluster) {
      throw damaged("cluster \(cluster), which holds tables, is in use for something else")
    }
    try set(count - 1, of: cluster)
    if count == 1 { try noteFreed(cluster) }
  }

  /// Whether the cluster holds the header, the L1 table, keys, the refcount table or one of its
  /// blocks.
  func holdsTables(_ cluster: UInt64) -> Bool {
    let start = cluster * geometry.clusterByteCount
    let range = ByteRange(start: start, end: start + geometry.clusterByteCount)
    let l1 = ByteRange(
      start: header.l1TableOffset.byteOffset,
      end: header.l1TableOffset.byteOffset + UInt64(header.l1EntryCount) * 8)
    let refcounts = ByteRange(
      start: header.refcountTableOffset.byteOffset,
      end: header.refcountTableOffset.byteOffset + UInt64(table.count) * 8)
    return cluster == 0 || range.overlaps(l1) || range.overlaps(refcounts)
      || blockOffsets.contains(start) || encryptionArea.map(range.overlaps) == true
  }

  func lower(from offset: HostOffset, byteCount: UInt64) throws(ImageFault) {
    let first = offset.byteOffset >> UInt64(geometry.clusterBits)
    for cluster in first..<(first + geometry.clusterCount(for: byteCount)) { try lower(cluster) }
  }

  private func split(_ cluster: UInt64) -> (index: Int, entry: Int) {
    let perBlock = geometry.refcountBlockEntryCount
    return (Int(clamping: cluster / perBlock), Int(cluster % perBlock))
  }

  // MARK: Freed space

  private func noteFreed(_ cluster: UInt64) throws(ImageFault) {
    if let run = freed, run.upperBound == cluster {
      freed = run.lowerBound..<(cluster + 1)
      return
    }
    try punchFreed()
    freed = cluster..<(cluster + 1)
  }

  /// Gives space back where the storage can.
  func punchFreed() throws(ImageFault) {
    guard let run = freed else { return }
    freed = nil
    let size = geometry.clusterByteCount
    try storage.punchHole(
      ByteRange(start: run.lowerBound * size, end: run.upperBound * size))
  }

  // MARK: Blocks

  /// Where block `index`, which exists, is in memory.
  private func load(_ index: Int) throws(ImageFault) -> Int {
    if lastPlace < blocks.count, blocks[lastPlace].index == index { return lastPlace }
    if let place = places[index] {
      lastPlace = place
      return place
    }
    let size = Int(geometry.clusterByteCount)
    var bytes = try storage.read(at: table[index], byteCount: size)
    bytes += [UInt8](repeating: 0, count: size - bytes.count)
    return try enter(Block(index: index, bytes: bytes))
  }

  private func enter(_ block: Block) throws(ImageFault) -> Int {
    var place = blocks.count
    if blocks.count < blocksMax {
      blocks.append(block)
    } else {
      place = oldest
      oldest = (oldest + 1) % blocksMax
      try write(place)
      places[blocks[place].index] = nil
      blocks[place] = block
    }
    places[block.index] = place
    lastPlace = place
    return place
  }

  /// Enters a new block of zeroes at `offset`.
  func makeBlock(_ index: Int, at offset: UInt64) throws(ImageFault) {
    precondition(table[index] == 0, "a refcount block is there already")
    table[index] = offset
    blockOffsets.insert(offset)
    let bytes = [UInt8](repeating: 0, count: Int(geometry.clusterByteCount))
    _ = try enter(Block(index: index, bytes: bytes, isDirty: true))
  }

  /// The bytes of block `index`; nil where there is none.
  func block(_ index: Int) throws(ImageFault) -> [UInt8]? {
    guard table[index] != 0 else { return nil }
    return blocks[try load(index)].bytes
  }

  private func write(_ place: Int) throws(ImageFault) {
    guard blocks[place].isDirty else { return }
    try storage.write(blocks[place].bytes, at: table[blocks[place].index])
    blocks[place].isDirty = false
  }

  /// Writes what was changed and makes it durable, with all that was written before.
  func flush() throws(ImageFault) {
    for place in blocks.indices { try write(place) }
    try punchFreed()
    try storage.synchronize()
  }
}

extension LayerFile {
  /// Frees the range; a storage that cannot keeps the space.
  func punchHole(_ range: ByteRange) throws(ImageFault) {
    do throws(SystemError) {
      try file.punchHole(range)
    } catch {
      guard error.isNotSupported else { throw ImageFault(path, error) }
    }
  }
}
