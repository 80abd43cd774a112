// SPDX-License-Identifier: Apache-2.0
//
// Marking regions in the file before anything in them is changed. All that is wanted at one time
// is written and made durable together: a round. A region that is marked costs nothing until the
// bitmaps are exact again. Source: decision 0024.

import Bitmaps
import BlockTypes
import LinuxIO
import Qcow2

/// One round of marks on its way to the file.
struct MarkRound {
  /// Pages in flight at one time.
  static let inFlightMax = 64

  struct Page {
    /// Index of the bitmap in the store.
    var bitmap: Int
    /// Which page of its data.
    var number: Int
    var buffer = IOBuffer.empty
  }

  var isRunning = false
  /// What will be marked when it ends.
  var regions: DirtyBitmap?
  var pages: [Page] = []
  var next = 0
  var inFlightCount = 0
  var syncIsQueued = false
  var error = BlockErrno.none
}

extension ImageStack {
  /// Lets a change go on once the file covers it. Nothing of it has begun before.
  mutating func awaitMarks(_ index: Int) -> Progress {
    let start = requests.slots[index].offset
    let range = ByteRange(start: start, end: start + requests.slots[index].length)
    guard store.mustWait(for: range) else {
      requests.slots[index].stage = .claiming
      return .more
    }
    if store.state == .active { store.wanted.mark(range) }
    store.waiters.append(index, &requests.slots)
    return .waits
  }

  /// Begins what somebody waits for. Called when nothing else can move, so that a round takes all
  /// that came at one time.
  mutating func pushMarks() {
    switch store.state {
    case .none: releaseMarkWaiters()
    case .broken:
      disclaimAgain()
      releaseMarkWaiters()
    case .resting: startBitmapWork(.activate)
    case .active:
      guard !store.round.isRunning, !store.isHeld else { return }
      if store.wanted.isClean { releaseMarkWaiters() } else { beginRound() }
    }
  }

  mutating func releaseMarkWaiters() {
    ready.append(contentsOf: &store.waiters, &requests.slots)
  }

  private mutating func beginRound() {
    let regions = store.wanted
    store.wanted.clear()
    store.round = MarkRound()
    store.round.isRunning = true
    store.round.regions = regions
    let bitsPerPage = UInt64(layers[0].geometry.pageByteCount * 8)
    for index in store.bitmaps.indices {
      guard let number = store.bitmaps[index].number, bitmaps[number: number]?.isEnabled == true
      else { continue }
      let bits = UInt64(store.bitmaps[index].entry.granularityBits)
      var last = -1
      var cursor: UInt64 = 0
      while let run = regions.nextDirtyRun(from: cursor) {
        cursor = run.end
        let first = Int((run.start >> bits) / bitsPerPage)
        let end = Int(((run.end - 1) >> bits) / bitsPerPage)
        for page in max(first, last + 1)...max(end, last + 1) where page <= end {
          store.round.pages.append(MarkRound.Page(bitmap: index, number: page))
        }
        last = max(last, end)
      }
    }
    pumpMarks()
  }

  /// Gives the disk as much of the running round as it takes.
  mutating func pumpMarks() {
    guard store.round.isRunning, !store.round.syncIsQueued else { return }
    let pageByteCount = layers[0].geometry.pageByteCount
    while store.round.next < store.round.pages.count, store.round.error == .none, disks.hasRoom,
      store.round.inFlightCount < MarkRound.inFlightMax
    {
      let page = store.round.pages[store.round.next]
      guard let buffer = buffers.acquire(byteCount: pageByteCount) else {
        store.round.error = .noMemory
        break
      }
      fillBitmap(
        page.bitmap, of: store.bitmaps, from: page.number * pageByteCount, pageByteCount, buffer)
      store.round.pages[store.round.next].buffer = buffer
      disks.queueWrite(
        file: layers[0].file,
        at: store.bitmaps[page.bitmap].host(of: page.number * pageByteCount, layers[0].geometry),
        from: [DiskQueue.Piece(buffer, 0, pageByteCount), .none, .none], isDurable: false,
        tag: IOTag(.markWrite, store.round.next).rawValue)
      store.round.next += 1
      store.round.inFlightCount += 1
    }
    guard store.round.inFlightCount == 0 else { return }
    if store.round.error != .none {
      endRound()
    } else if store.round.next == store.round.pages.count, disks.hasRoom {
      disks.queueFlush(file: layers[0].file, tag: IOTag(.markSync, 0).rawValue)
      store.round.syncIsQueued = true
      store.round.inFlightCount = 1
    }
  }

  mutating func markOperationDone(_ kind: IOTag.Kind, _ page: Int, _ error: BlockErrno) {
    store.round.inFlightCount -= 1
    if error != .none, store.round.error == .none { store.round.error = error }
    if kind == .markWrite {
      buffers.release(store.round.pages[page].buffer)
      store.round.pages[page].buffer = .empty
      return
    }
    // What failed to become durable may be more than marks.
    if error != .none { lostWrites = true }
    endRound()
  }

  private mutating func endRound() {
    let error = store.round.error
    if error == .none {
      counters.markRoundCount += 1
      if let regions = store.round.regions { store.marks.merge(regions) }
    }
    store.round = MarkRound()
    if error != .none { breakStore("the regions that are written cannot be marked: \(error)") }
    releaseMarkWaiters()
    ready.append(contentsOf: &store.roundWaiters, &requests.slots)
  }

  /// Puts the bytes `start ..< start + count` of a bitmap's data in `buffer`, as they are to be in
  /// the file: what memory has, and all of the regions that are marked, or will be by this.
  mutating func fillBitmap(
    _ index: Int, of stored: [StoredBitmap], from start: Int, _ count: Int, _ buffer: IOBuffer
  ) {
    guard let number = stored[index].number, let bitmap = bitmaps[number: number] else {
      preconditionFailure("a bitmap that is not loaded was to be written")
    }
    let first = start / 8
    var words = [UInt64](repeating: 0, count: count / 8)
    for word in 0..<max(min(words.count, bitmap.wordCount - first), 0) {
      words[word] = bitmap.keptWord(first + word)
    }
    if bitmap.isEnabled {
      ImageStack.mark(store.marks, in: &words, from: first, bitmap)
      if let regions = store.round.regions {
        ImageStack.mark(regions, in: &words, from: first, bitmap)
      }
    }
    for (word, value) in words.enumerated() {
      buffer.storeWord(value.littleEndian, at: word * 8)
    }
  }

  private static func mark(
    _ regions: DirtyBitmap, in words: inout [UInt64], from firstWord: Int, _ bitmap: NamedBitmap
  ) {
    let bits = UInt64(bitmap.granularityByteCount.trailingZeroBitCount)
    let firstBit = UInt64(firstWord) * 64
    let endBit = min(firstBit + UInt64(words.count) * 64, UInt64(bitmap.blockCount))
    var cursor = firstBit << bits
    while let run = regions.nextDirtyRun(from: cursor), run.start >> bits < endBit {
      cursor = run.end
      let from = max(run.start >> bits, firstBit) - firstBit
      let through = min((run.end - 1) >> bits, endBit - 1) - firstBit
      for word in Int(from / 64)...Int(through / 64) {
        var mask = UInt64.max
        if word == Int(from / 64) { mask &= .max << (from % 64) }
        if word == Int(through / 64) { mask &= .max >> (63 - through % 64) }
        words[word] |= mask
      }
    }
  }
}

extension StoredBitmap {
  /// Where byte `offset` of the data lies.
  func host(of offset: Int, _ geometry: ClusterGeometry) -> UInt64 {
    let byteCount = Int(geometry.clusterByteCount)
    let cluster = clusters[offset / byteCount]
    precondition(cluster != 0, "data of a bitmap has no place")
    return cluster + UInt64(offset % byteCount)
  }
}
