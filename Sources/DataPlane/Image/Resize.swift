// SPDX-License-Identifier: Apache-2.0
//
// RESIZE: a disk that grows while it is served. Spec: proto.md of the branch extension-resize,
// "NBD_CMD_RESIZE"; qcow2.rst, "Header" (size, l1_size).
//
//     begin ─► [takingTable ─► [takingLongTable] ─► securingTable ─► switchingTable]
//           ─► [growingBitmaps] ─► awaitingEnd ─► zeroing ─► securingZeroes ─► committing
//     begin ─► growingFile ─► committing                                          (a raw file)
//
// The header names the larger L1 table before it names the larger size, and the size only when what
// the disk grows by reads as zeroes. A power cut leaves the old disk or the new one.

import BlockTypes
import LinuxIO
import NBDProtocol
import Qcow2

/// The one resize that runs, if any does.
struct ResizeState {
  enum Step: UInt8 {
    case begin
    case takingTable
    /// No free piece between two refcount blocks is long enough.
    case takingLongTable
    case securingTable
    case switchingTable
    /// The image gives its persistent bitmaps room for the new size.
    case growingBitmaps
    case awaitingEnd
    case zeroing
    case securingZeroes
    case growingFile
    case committing
  }

  /// The slot of the request; -1 when none runs.
  var slot: Int32 = -1
  var step: Step = .begin
  var oldByteCount: UInt64 = 0
  var newByteCount: UInt64 = 0
  /// A place for a larger L1 table, as far as it is taken.
  var tableHost: UInt64 = 0
  var tableClusterCount = 0
}

/// Why a disk cannot have a size.
struct ResizeRefusal: Error {
  let error: BlockErrno
  let reason: String

  init(_ error: BlockErrno, _ reason: String) {
    self.error = error
    self.reason = reason
  }
}

extension ImageStack {
  /// Checks what can be told before anything is done.
  mutating func requireResizable(to newByteCount: UInt64) throws(ResizeRefusal) {
    if isReadOnly { throw ResizeRefusal(.readOnly, "the export is read-only") }
    let old = diskByteCount
    guard newByteCount >= old else {
      throw ResizeRefusal(.readOnly, "the disk has \(old) bytes, and disks never shrink")
    }
    guard newByteCount <= Header.fileByteCountMax else {
      throw ResizeRefusal(.noSpace, "\(newByteCount) bytes are more than a disk can have")
    }
    // What ends where the disk does ends with a whole block, as all writes to it do.
    let endsWithDisk = layers[0].isRaw || layers[0].hasDataFile
    let unit = endsWithDisk ? max(alignment, 512) : 512
    guard newByteCount.isAligned(to: unit) else {
      throw ResizeRefusal(.invalid, "\(newByteCount) bytes are no multiple of \(unit)")
    }
    if layers[0].isRaw {
      guard allocator.canGrow else {
        throw ResizeRefusal(.notSupported, "a block device is not resized here")
      }
    } else if layers[0].version < 3, layers[0].hasSnapshots {
      // Their entries need not say how large the disk was.
      throw ResizeRefusal(.notSupported, "the image has version 2 and snapshots")
    } else if neededTableEntryCount(newByteCount) > Header.l1TableByteCountMax / 8 {
      throw ResizeRefusal(
        .noSpace,
        "\(newByteCount) bytes need a larger L1 table than an image can have with clusters of"
          + " \(layers[0].geometry.clusterByteCount) bytes")
    }
    if let stored = store.bitmaps.first(where: { !$0.isLoaded }), store.state != .none {
      // As QEMU has it: a bitmap that is not understood cannot follow.
      throw ResizeRefusal(
        .notSupported,
        "the image has a bitmap \"\(stored.entry.name)\" that cannot be used"
          + " (\(stored.reason ?? "")); remove it first")
    }
    var grown = bitmaps
    do { try grown.resize(toDiskByteCount: newByteCount) } catch {
      throw ResizeRefusal(.noSpace, "a dirty bitmap would be too large: \(error.reason)")
    }
  }

  func neededTableEntryCount(_ byteCount: UInt64) -> Int {
    layers[0].geometry.l1EntryCount(forDiskOf: byteCount)
  }

  /// Starts a request whose offset is the wanted size.
  mutating func startResize(_ index: Int) { requests.slots[index].stage = .resizing }

  /// Goes on with a resize as far as it can go.
  mutating func resizeOn(_ index: Int) -> Progress {
    if resize.slot != Int32(index) {
      // One at a time.
      guard resize.slot < 0 else { return yield(index) }
      return beginResize(index)
    }
    switch resize.step {
    case .begin: preconditionFailure("a resize began twice")
    case .takingTable: return takeTable(index)
    case .takingLongTable: return takeLongTable(index)
    case .securingTable: return secure(index, then: .switchingTable)
    case .switchingTable: return switchL1Table(index)
    case .growingBitmaps: return growBitmaps(index)
    case .awaitingEnd: return awaitEnd(index)
    case .zeroing:
      resize.step = .securingZeroes
      return .more
    case .securingZeroes: return secure(index, then: .committing)
    case .growingFile: return growRawFile(index)
    case .committing: return commitSize(index)
    }
  }

  private mutating func beginResize(_ index: Int) -> Progress {
    let newByteCount = requests.slots[index].offset
    if isStopping { return fail(index, .shutdown) }
    do throws(ResizeRefusal) {
      try requireResizable(to: newByteCount)
    } catch {
      return fail(index, error.error)
    }
    guard newByteCount > diskByteCount else {
      requests.slots[index].stage = .finished
      return .more
    }
    resize = ResizeState()
    resize.slot = Int32(index)
    resize.oldByteCount = diskByteCount
    resize.newByteCount = newByteCount
    if layers[0].isRaw {
      resize.step = .growingFile
    } else if neededTableEntryCount(newByteCount) > layers[0].l1.count {
      resize.step = .takingTable
    } else {
      resize.step = .growingBitmaps
    }
    return .more
  }

  /// Gives the kept bitmaps room for the new size, before the header names it.
  private mutating func growBitmaps(_ index: Int) -> Progress {
    if store.work.slot != Int32(index) {
      guard store.state == .resting || store.state == .active, !store.bitmaps.isEmpty else {
        resize.step = .awaitingEnd
        return .more
      }
      guard !store.work.isRunning else { return yield(index) }
      claimBitmapWork(index, .resize(newByteCount: resize.newByteCount))
    }
    let progress = prepareBitmapWork(index)
    guard store.work.step == .ready, requests.slots[index].error == .none else { return progress }
    let failure = commitLayout()
    if failure != .none { breakStore("they cannot follow the size of the disk: \(failure)") }
    endBitmapWork()
    resize.step = .awaitingEnd
    return .more
  }

  /// Waits for a flush that begins now or later, and fails with it.
  private mutating func secure(_ index: Int, then next: ResizeState.Step) -> Progress {
    switch secureTables(index) {
    case .waits: return .waits
    case .failed(let error): return fail(index, error)
    case .durable:
      resize.step = next
      return .more
    }
  }

  // MARK: The end of the disk

  /// Lets those end that zero up to the old end of the disk: they take the rest of its last cluster
  /// for nobody's. Then what the disk grows by is made to read as zeroes, while no client knows of
  /// it: the old last cluster may hold anything there, and a larger backing file would show.
  private mutating func awaitEnd(_ index: Int) -> Progress {
    let old = resize.oldByteCount
    guard !requests.changesUnderWay.contains(where: { $0.end == old }) else {
      return yield(index)
    }
    let failure = growDataFile(from: old, to: resize.newByteCount)
    if failure != .none { return fail(index, failure) }
    setDiskByteCount(resize.newByteCount)
    resize.step = .zeroing
    var end = old.alignedUp(to: layers[0].geometry.clusterByteCount)
    for layer in 1..<max(layers.count, 1) { end = max(end, layers[layer].diskByteCount) }
    end = min(end, resize.newByteCount)
    guard end > old else { return .more }
    requests.slots[index].command = .writeZeroes
    requests.slots[index].flags = []
    requests.slots[index].offset = old
    requests.slots[index].length = end - old
    requests.slots[index].afterZero = .resizing
    startZero(index)
    return .more
  }

  private mutating func setDiskByteCount(_ byteCount: UInt64) {
    let old = min(diskByteCount, byteCount)
    diskByteCount = byteCount
    layers[0].diskByteCount = byteCount
    guard usesIndex else { return }
    // The page of the index that holds the end was made for the other size.
    dropUnfinishedIndexPages()
    if let page = cache.find(IndexGeometry.cacheLayer, index.pageStart(of: old)) {
      cache.remove(page)
    }
  }

  // MARK: Raw files

  private mutating func growRawFile(_ index: Int) -> Progress {
    if requests.slots[index].poolCount > 0 { return .waits }
    if requests.slots[index].poolWasAsked {
      requests.slots[index].poolWasAsked = false
      let errno = Int32(requests.slots[index].poolValue)
      if errno != 0 { return fail(index, BlockErrno(systemErrno: errno)) }
      setDiskByteCount(resize.newByteCount)
      disks.setByteCount(resize.newByteCount, ofFile: layers[0].file)
      allocator.fileByteCount = resize.newByteCount
      resize.step = .committing
      return .more
    }
    requests.slots[index].poolWasAsked = true
    let storage = storages[0]
    let newByteCount = resize.newByteCount
    submitToPool(index) {
      BlockingPool.errno { () throws(SystemError) in
        try storage.file.truncate(to: newByteCount)
        try storage.file.synchronize()
      }
    }
    return .waits
  }

  // MARK: The new size

  /// Makes the new size that of the image, and of its bitmaps.
  private mutating func commitSize(_ index: Int) -> Progress {
    if !layers[0].isRaw {
      let newByteCount = resize.newByteCount
      let failure = changeHeader { $0.diskByteCount = newByteCount }
      if failure != .none { return fail(index, failure) }
    }
    do {
      try bitmaps.resize(toDiskByteCount: resize.newByteCount)
      try store.resizeRegions(toDiskByteCount: resize.newByteCount)
    } catch {
      // Bitmaps were added meanwhile. They go on with the old size, and so do the clients.
      return fail(index, .noSpace)
    }
    requests.slots[index].stage = .finished
    return .more
  }

  /// Forgets a resize that has ended, and what an unfinished one did.
  mutating func endResize(_ index: Int) {
    precondition(resize.slot == Int32(index), "a resize ended that did not run")
    requests.slots[index].command = .resize
    requests.slots[index].offset = resize.newByteCount
    requests.slots[index].length = 0
    if requests.slots[index].error != .none {
      if diskByteCount != resize.oldByteCount { setDiskByteCount(resize.oldByteCount) }
      abandonL1Table()
    }
    resize.slot = -1
  }
}
