// SPDX-License-Identifier: Apache-2.0
//
// The moment of a change of what the image keeps, all at once between two requests. It blocks the
// loop, for as long as some writes and three or four synchronisations take; it is rare. Order:
//
//     1  data, new tables, the new directory          synchronised
//     2  entries of tables that stay                  synchronised
//     3  the header says what is complete             synchronised
//     4  the directory says what is in use            synchronised
//     5  the header names the new directory           synchronised
//     6  what is named no more is given back
//
// Source: decision 0024.

import Bitmaps
import BlockTypes
import LinuxIO
import Qcow2

extension ImageStack {
  /// Puts in force what was made ready.
  ///
  /// - Parameter rewritten: bitmaps whose data is written anew as a whole.
  mutating func commitLayout(rewriting rewritten: Set<Int> = []) -> BlockErrno {
    let failure = writeLayout(rewritten)
    guard failure == .none else { return failure }
    giveBackUnnamed()
    store.bitmaps = store.work.next
    if let host = store.work.newDirectory {
      store.directoryHost = host
    } else if store.bitmaps.isEmpty {
      store.directoryHost = nil
    }
    store.directoryByteCount = store.bitmaps.reduce(0) { $0 + $1.entry.bytes.count }
    store.state = .active
    store.noteRecorders(bitmaps)
    return .none
  }

  private mutating func writeLayout(_ rewritten: Set<Int>) -> BlockErrno {
    let pageByteCount = layers[0].geometry.pageByteCount
    guard disks.hasRoom, let page = buffers.acquire(byteCount: pageByteCount) else {
      return .noMemory
    }
    defer { buffers.release(page) }
    for index in store.work.next.indices where store.work.next[index].isLoaded {
      setFlags(index)
    }
    for (bitmap, cluster) in store.work.newData where !rewritten.contains(bitmap) {
      let failure = writeData(bitmap, of: store.work.next, cluster: cluster, page)
      if failure != .none { return failure }
    }
    for bitmap in rewritten.sorted() {
      for cluster in store.work.next[bitmap].clusters.indices {
        let failure = writeData(bitmap, of: store.work.next, cluster: cluster, page)
        if failure != .none { return failure }
      }
    }
    for bitmap in store.work.newTables.sorted() {
      let failure = writeTable(store.work.next[bitmap], page)
      if failure != .none { return failure }
    }
    let directory = store.work.next.flatMap(\.entry.bytes)
    if let host = store.work.newDirectory {
      let failure = write(directory, at: host, page)
      if failure != .none { return failure }
    }
    var failure = synchronizeStore()
    if failure != .none { return failure }
    let filled = Set(store.work.newData.map(\.bitmap)).subtracting(store.work.newTables)
    for bitmap in filled.sorted() {
      failure = writeTable(store.work.next[bitmap], page)
      if failure != .none { return failure }
    }
    if !filled.isEmpty {
      failure = synchronizeStore()
      if failure != .none { return failure }
    }
    return nameLayout(directory, page)
  }

  /// Steps 3 to 5.
  private mutating func nameLayout(_ directory: [UInt8], _ page: IOBuffer) -> BlockErrno {
    if store.state == .resting || store.work.newDirectory == nil, let old = store.directory,
      !store.work.next.isEmpty
    {
      // The directory as it lies there says that it is in use before anything is changed.
      var failure = nameBitmaps(old, completeMask: store.completeMask(store.bitmaps))
      if failure != .none { return failure }
      var entries = store.bitmaps
      for index in entries.indices where entries[index].isLoaded {
        entries[index].entry.set(BitmapEntry.inUseFlag, true)
      }
      let bytes =
        store.work.newDirectory == nil ? directory : entries.flatMap(\.entry.bytes)
      failure = write(bytes, at: old.directoryOffset.byteOffset, page)
      if failure == .none { failure = synchronizeStore() }
      if failure != .none { return failure }
    }
    guard store.work.newDirectory != nil || store.work.next.isEmpty else { return .none }
    let named = store.work.newDirectory.map {
      BitmapsExtension(
        bitmapCount: store.work.next.count, directoryByteCount: UInt64(directory.count),
        directoryOffset: HostOffset(byteOffset: $0))
    }
    return nameBitmaps(named, completeMask: store.completeMask(store.work.next))
  }

  private mutating func setFlags(_ index: Int) {
    guard let number = store.work.next[index].number, let bitmap = bitmaps[number: number] else {
      preconditionFailure("a bitmap that is kept is not there")
    }
    store.work.next[index].entry.set(BitmapEntry.inUseFlag, true)
    store.work.next[index].entry.set(BitmapEntry.autoFlag, bitmap.isEnabled)
  }

  /// Gives back the old directory, and tables and data that nothing names any more.
  private mutating func giveBackUnnamed() {
    let clusterByteCount = layers[0].geometry.clusterByteCount
    let geometry = layers[0].geometry
    var kept: Set<UInt64> = []
    for stored in store.work.next { kept.formUnion(stored.clusters(geometry)) }
    if let host = store.work.newDirectory {
      kept.formUnion(ImageStack.clusters(host, store.work.next.directoryByteCount, geometry))
    } else if let host = store.directoryHost, !store.work.next.isEmpty {
      kept.formUnion(ImageStack.clusters(host, store.directoryByteCount, geometry))
    }
    var gone: Set<UInt64> = []
    for stored in store.bitmaps { gone.formUnion(stored.clusters(geometry)) }
    if let host = store.directoryHost {
      gone.formUnion(ImageStack.clusters(host, store.directoryByteCount, geometry))
    }
    for run in store.work.taken {
      for cluster in 0..<UInt64(run.count) { gone.insert(run.host + cluster * clusterByteCount) }
    }
    for host in gone.subtracting(kept).sorted() {
      releases.addUnmapped(cluster: host >> UInt64(geometry.clusterBits), count: 1)
    }
    wakeReleases()
  }

  /// The clusters of a structure in one piece.
  static func clusters(_ host: UInt64, _ byteCount: Int, _ geometry: ClusterGeometry) -> [UInt64] {
    (0..<geometry.clusterCount(for: UInt64(byteCount))).map {
      host + $0 * geometry.clusterByteCount
    }
  }

  // MARK: The orders of control

  /// Whether the image itself has to be changed for any of these.
  func changesStore(_ actions: [BitmapAction]) -> Bool {
    let isKept = store.state != .broken
    return actions.contains { action in
      switch action {
      case .add(_, _, _, let isPersistent): return isPersistent
      case .freeze: return false
      case .remove, .clear, .enable, .disable, .merge, .thaw:
        let name = action.target
        return isKept
          && (store.unusable(named: name) != nil
            || bitmaps.all.contains { $0.isPersistent && $0.name.utf8.elementsEqual(name.utf8) })
      }
    }
  }

  /// The moment of a change that control has ordered, and that was made ready in `index`. Returns
  /// why it was not done, or not as a whole.
  mutating func commitBitmapChange(_ index: Int, holder: (Int) -> UInt64?) -> BitmapFault? {
    guard case .change(let actions) = store.work.purpose else {
      preconditionFailure("a change was committed that nobody ordered")
    }
    guard requests.slots[index].error == .none else {
      let fault =
        store.work.fault ?? ImageStack.fault(requests.slots[index].error)
      abandonBitmapWork(index)
      return fault
    }
    do throws(BitmapFault) {
      try changeBitmaps(ordinary(actions), holder: holder)
      try bindNumbers()
    } catch {
      requests.slots[index].error = .invalid
      abandonBitmapWork(index)
      return error
    }
    // What the file has is exact from now on, or wider for those that are not rewritten.
    store.marks.clear()
    var rewritten: Set<Int> = []
    for action in actions {
      let name = action.target
      for (number, stored) in store.work.next.enumerated()
      where stored.isLoaded && stored.entry.name.utf8.elementsEqual(name.utf8) {
        rewritten.insert(number)
      }
    }
    let failure = commitLayout(rewriting: rewritten)
    defer { endBitmapWork() }
    guard failure != .none else { return nil }
    breakStore("they cannot be written: \(failure)")
    return BitmapFault("done, but the image does not keep it: \(failure)")
  }

  /// Finds the numbers of bitmaps that were just made.
  private mutating func bindNumbers() throws(BitmapFault) {
    for index in store.work.next.indices where store.work.next[index].reason == nil {
      let name = store.work.next[index].entry.name
      guard
        let bitmap = bitmaps.all.first(where: {
          $0.isPersistent && $0.name.utf8.elementsEqual(name.utf8)
        })
      else { throw BitmapFault("bitmap \"\(name)\" was changed meanwhile; try again") }
      store.work.next[index].number = bitmap.number
      store.work.next[index].firstRevision = bitmap.firstRevision
    }
  }

  private static func fault(_ error: BlockErrno) -> BitmapFault {
    error == .noSpace
      ? BitmapFault("there is no room for the bitmap where the image lives")
      : BitmapFault("the image cannot keep the bitmap: \(error)")
  }

  // MARK: Writing

  /// Writes a whole cluster of a bitmap's data.
  mutating func writeData(
    _ bitmap: Int, of stored: [StoredBitmap], cluster: Int, _ page: IOBuffer
  ) -> BlockErrno {
    let clusterByteCount = Int(layers[0].geometry.clusterByteCount)
    let pageByteCount = layers[0].geometry.pageByteCount
    for start in stride(from: 0, to: clusterByteCount, by: pageByteCount) {
      fillBitmap(bitmap, of: stored, from: cluster * clusterByteCount + start, pageByteCount, page)
      let failure = disks.writeNow(
        file: layers[0].file, at: stored[bitmap].clusters[cluster] + UInt64(start),
        DiskQueue.Piece(page, 0, pageByteCount))
      if failure != 0 { return BlockErrno(systemErrno: failure) }
    }
    return .none
  }

  private mutating func writeTable(_ stored: StoredBitmap, _ page: IOBuffer) -> BlockErrno {
    var table: [UInt8] = []
    table.reserveCapacity(stored.clusters.count * 8)
    for host in stored.clusters { table.appendBigEndian(host) }
    return write(table, at: stored.entry.tableOffset.byteOffset, page)
  }

  /// Writes bytes that begin at a cluster; the rest of their last page becomes zeroes.
  mutating func write(_ bytes: [UInt8], at host: UInt64, _ page: IOBuffer) -> BlockErrno {
    let pageByteCount = layers[0].geometry.pageByteCount
    for start in stride(from: 0, to: bytes.count, by: pageByteCount) {
      page.zero(0, pageByteCount)
      page.copy(0, from: Array(bytes[start..<min(start + pageByteCount, bytes.count)]))
      let failure = disks.writeNow(
        file: layers[0].file, at: host + UInt64(start), DiskQueue.Piece(page, 0, pageByteCount))
      if failure != 0 { return BlockErrno(systemErrno: failure) }
    }
    return .none
  }

  mutating func synchronizeStore() -> BlockErrno {
    do throws(SystemError) {
      try storages[0].file.synchronize()
    } catch {
      lostWrites = true
      return BlockErrno(systemErrno: error.errno)
    }
    return .none
  }

  /// Lets the header name the directory, and say which of its entries are complete while they are
  /// in use: in force from one sector on, hence all or nothing.
  mutating func nameBitmaps(_ directory: BitmapsExtension?, completeMask: UInt64?) -> BlockErrno {
    let failure = changeHeader { $0.setBitmaps(directory, completeMask: completeMask) }
    if failure != .none, !lostWrites {
      store.trouble = "the header cannot be changed, or has no room for them: \(failure)"
    }
    return failure
  }
}

extension StoredBitmap {
  /// All clusters that belong to the bitmap.
  fileprivate func clusters(_ geometry: ClusterGeometry) -> [UInt64] {
    let offset = entry.tableOffset.byteOffset
    let table =
      offset == 0 || !offset.isAligned(to: geometry.clusterByteCount)
      ? [] : ImageStack.clusters(offset, entry.tableEntryCount * 8, geometry)
    return table + clusters.filter { $0 != 0 }
  }
}

extension [StoredBitmap] {
  var directoryByteCount: Int { reduce(0) { $0 + $1.entry.bytes.count } }
}
