// SPDX-License-Identifier: Apache-2.0
//
// Opening the chain for the data plane: alignment, tables, the allocator of the active layer.

import Bitmaps
import BlockTypes
import Glibc
import LinuxIO
import NBDProtocol
import Qcow2

extension ImageStack {
  /// Prepares the chain of `plan`, whose files are open and locked.
  ///
  /// - Parameter pool: who does what blocks; nil makes a pool with threads.
  /// - Throws: `ImageError` when a table is damaged, `SystemError` when the kernel refuses the
  ///   engine, `BitmapFault` when a bitmap cannot be made.
  init(_ plan: ExportPlan, slotCount: Int, pool: BlockingPool? = nil) throws {
    for layer in plan.layers { try layer.requireCipher() }
    // Through the page cache, as it is opened: these reads are not aligned.
    let tables = try plan.layers.map { layer throws(ImageError) in try layer.readL1Table() }
    let allocator = try Allocator(plan)
    let overlapGuard = try OverlapGuard(plan, l1: tables[0], refcountTable: allocator.table)
    var bitmaps = BitmapSet(
      diskByteCount: plan.diskByteCount, countMax: MetaContext.dirtyBitmapsMax)
    let store = try BitmapStore.load(plan, into: &bitmaps)
    try bitmaps.perform(plan.bitmapActions)
    let block = try ImageStack.blockByteCount(plan)
    let direct = plan.engine == .aio ? ImageStack.chooseAlignment(plan, block) : nil
    var disks = try DiskQueue(engine: plan.engine == .aio ? .aio : .sync)
    // The data files come behind the layers, so that a layer and its file have one number.
    let dataStorages = plan.layers.compactMap(\.dataStorage)
    for storage in plan.layers.map(\.storage) + dataStorages {
      if storage.file.remote != nil {
        _ = try disks.addRemote(storage)
      } else {
        _ = disks.add(storage, direct: direct != nil, byteCount: try storage.file.byteCount())
      }
    }
    let ciphers = plan.layers.map { $0.cipher.map { disks.add($0) } ?? -1 }
    let pool = try pool ?? BlockingPool(threadCount: 2)
    var buffers = BufferPool()
    guard let zeroes = buffers.acquire(byteCount: ImageStack.largestCluster(plan)) else {
      throw SystemError(errno: ENOMEM, call: "mmap")
    }

    requests = RequestTable(slotCount: slotCount)
    var dataFile = tables.count - 1
    layers = FixedArray(count: tables.count) {
      if plan.layers[$0].dataStorage != nil { dataFile += 1 }
      return Layer(
        plan.layers[$0], file: $0, dataFile: plan.layers[$0].dataStorage == nil ? $0 : dataFile,
        cipher: ciphers[$0], l1: tables[$0])
    }
    cache = TableCache(byteCount: plan.metadataCacheByteCount)
    self.allocator = allocator
    self.overlapGuard = overlapGuard
    snapshots = plan.layers[0].readSnapshots()
    self.bitmaps = bitmaps
    self.store = store
    self.disks = disks
    self.pool = pool
    self.buffers = buffers
    self.zeroes = zeroes  // fresh from the kernel, hence zero, and never written
    storages = plan.layers.map(\.storage) + dataStorages
    isReadOnly = plan.isReadOnly
    packsWrites = plan.packsWrites && !plan.isReadOnly
    diskByteCount = plan.diskByteCount
    alignment = direct ?? block
    index = IndexGeometry(unitBits: ImageStack.smallestClusterBits(plan))
    usesIndex = plan.layers.count > 1 && plan.layers.count < IndexEntry.layersMax
    if let work = requests.acquire() {
      precondition(work == ReleaseQueue.slot, "the image's own slot is not the first")
      requests.slots[work].stage = .releasing
    }
  }

  /// Gives all memory for payloads and tables back, of a chain that nobody uses again.
  mutating func unmapAll() { buffers.unmapAll() }

  /// What all I/O is a multiple of in any case: the sectors of encrypted layers, and, where there
  /// are writes, the blocks of a remote active layer. Reads of remote backing files need no
  /// alignment (`RemoteStorage`).
  private static func blockByteCount(_ plan: ExportPlan) throws(ImageError) -> UInt64 {
    let block = plan.layers[0].storage.file.blockByteCount
    if case .qcow2(let header) = plan.layers[0].format,
      header.geometry.subclusterByteCount < block, !plan.isReadOnly
    {
      let name = header.geometry.hasSubclusters ? "subclusters" : "clusters"
      throw ImageError(
        .unsupported,
        "its \(name) of \(header.geometry.subclusterByteCount) bytes are smaller than the blocks"
          + " of \(block) bytes of the storage")
    }
    let sector = plan.layers.contains { $0.cipher != nil } ? UInt64(CipherSector.byteCount) : 1
    return max(plan.isReadOnly ? 1 : block, sector)
  }

  /// The alignment in bytes for direct I/O on all local files of the chain, a multiple of `block`;
  /// nil to use the page cache.
  ///
  /// All or nothing: a segment may begin at any border of a (sub)cluster or end of a disk of any
  /// layer, so one that does not keep the strictest file's alignment would make reads of the others
  /// unaligned (decision 0003).
  private static func chooseAlignment(_ plan: ExportPlan, _ block: UInt64) -> UInt64? {
    var alignment = block
    let locals = plan.layers.filter { $0.storage.file.remote == nil }
    guard !locals.isEmpty else { return nil }
    for storage in locals.map(\.storage) + plan.layers.compactMap(\.dataStorage) {
      guard let needed = storage.file.enableDirect() else { return disableDirect(plan) }
      alignment = max(alignment, needed)
    }
    for (index, layer) in plan.layers.enumerated() {
      switch layer.format {
      case .raw:
        guard layer.diskByteCount.isAligned(to: alignment) else { return disableDirect(plan) }
      case .qcow2(let header):
        guard header.geometry.subclusterByteCount >= alignment,
          // Nothing is written to a data file behind the end of the disk.
          index == 0 && layer.dataStorage == nil || layer.diskByteCount.isAligned(to: alignment)
        else { return disableDirect(plan) }
      }
    }
    return alignment
  }

  private static func disableDirect(_ plan: ExportPlan) -> UInt64? {
    for layer in plan.layers {
      layer.storage.file.disableDirect()
      layer.dataStorage?.file.disableDirect()
    }
    return nil
  }

  /// log2 of the smallest cluster of the chain, in bytes; raw layers have no clusters.
  private static func smallestClusterBits(_ plan: ExportPlan) -> Int {
    var smallest = 16
    for layer in plan.layers {
      if case .qcow2(let header) = layer.format {
        smallest = min(smallest, header.geometry.clusterBits)
      }
    }
    return smallest
  }

  /// Bytes of the largest cluster of the chain, at least 1 MiB.
  private static func largestCluster(_ plan: ExportPlan) -> Int {
    var largest = 1 << 20
    for layer in plan.layers {
      if case .qcow2(let header) = layer.format {
        largest = max(largest, Int(header.geometry.clusterByteCount))
      }
    }
    return largest
  }
}
