// SPDX-License-Identifier: Apache-2.0
//
// Making ready a change of what the image keeps: places for data, tables and the directory are
// taken, and their counts made durable, before anything names them.
//
//     begin ─► takingClusters ─► securingCounts ─► awaitingRound ─► ready
//
// What follows is done at one moment (BitmapCommit.swift). Source: decision 0024.

import Bitmaps
import BlockTypes
import LinuxIO
import Qcow2

/// The one change that is being made ready, if any is.
struct BitmapWork {
  enum Purpose {
    /// Mark the bitmaps as in use, and give all their data a place.
    case activate
    case change([BitmapAction])
    case resize(newByteCount: UInt64)
  }

  enum Step: UInt8 {
    case begin
    case takingClusters
    case securingCounts
    case awaitingRound
    case ready
  }

  /// Clusters that are needed.
  enum Want {
    case data(bitmap: Int, cluster: Int)
    case table(bitmap: Int, clusterCount: Int)
    case directory(clusterCount: Int)
  }

  /// The slot that works; -1 when none does.
  var slot: Int32 = -1
  var purpose = Purpose.activate
  var step = Step.begin
  /// What the directory is to hold.
  var next: [StoredBitmap] = []
  var wants: [Want] = []
  var satisfiedCount = 0
  /// Bitmaps with a new table.
  var newTables: Set<Int> = []
  var newData: [(bitmap: Int, cluster: Int)] = []
  var newDirectory: UInt64?
  /// What was taken, for giving it back.
  var taken: [(host: UInt64, count: Int)] = []
  /// A run that is not long enough yet.
  var runHost: UInt64 = 0
  var runCount = 0
  /// Why it cannot be done.
  var fault: BitmapFault?

  var isRunning: Bool { slot >= 0 }
  /// Control ordered it, and its moment is up to the loop.
  var isOrdered: Bool {
    if case .change = purpose { true } else { false }
  }
}

extension ImageStack {
  /// Attempts to find clusters in one piece where such pieces were used before.
  private static var runsMax: Int { 64 }

  /// Begins work in a slot of its own; false when other work goes on, a change has to wait for the
  /// end of a resize, or no slot is free.
  @discardableResult
  mutating func startBitmapWork(_ purpose: BitmapWork.Purpose) -> Bool {
    // What a growing disk needs is decided by its resize, and a change would take it back.
    if case .change = purpose, resize.slot >= 0 { return false }
    guard !store.work.isRunning, let slot = requests.acquire() else { return false }
    requests.slots[slot].command = .cache  // changes nothing that a guest sees
    requests.slots[slot].stage = .storingBitmaps
    claimBitmapWork(slot, purpose)
    wake(slot)
    return true
  }

  /// Makes a slot the one that works.
  mutating func claimBitmapWork(_ index: Int, _ purpose: BitmapWork.Purpose) {
    precondition(!store.work.isRunning, "two changes of the kept bitmaps run at once")
    store.work = BitmapWork()
    store.work.slot = Int32(index)
    store.work.purpose = purpose
  }

  /// The stage of such a slot.
  mutating func storeBitmaps(_ index: Int) -> Progress {
    let progress = prepareBitmapWork(index)
    guard store.work.step == .ready, requests.slots[index].error == .none else { return progress }
    if case .activate = store.work.purpose {
      let failure = commitLayout()
      if failure != .none { breakStore("they cannot be marked as in use: \(failure)") }
      endBitmapWork()
    }
    requests.slots[index].stage = .finished
    return .more
  }

  /// Goes on with what comes before the moment of the change.
  mutating func prepareBitmapWork(_ index: Int) -> Progress {
    while true {
      switch store.work.step {
      case .begin:
        do throws(BitmapFault) {
          try planLayout()
        } catch {
          store.work.fault = error
          return fail(index, .invalid)
        }
        store.work.step = .takingClusters
      case .takingClusters:
        if case .waits = takeWanted(index) { return .waits }
        if requests.slots[index].error != .none { return .more }
      case .securingCounts:
        if case .waits = secureCounts(index) { return .waits }
        if requests.slots[index].error != .none { return .more }
      case .awaitingRound:
        // From here on no mark is on its way that would be overtaken.
        if store.round.isRunning {
          store.roundWaiters.append(index, &requests.slots)
          return .waits
        }
        store.isHeld = true
        store.work.step = .ready
      case .ready: return .more
      }
    }
  }

  // MARK: Clusters

  private mutating func takeWanted(_ index: Int) -> Progress {
    while store.work.satisfiedCount < store.work.wants.count {
      let want = store.work.wants[store.work.satisfiedCount]
      let host: UInt64
      switch takeRun(index, want.clusterCount) {
      case .waits: return .waits
      case .failed(let error): return fail(index, error)
      case .taken(let taken, _, _): host = taken
      }
      store.work.satisfiedCount += 1
      switch want {
      case .data(let bitmap, let cluster): store.work.next[bitmap].clusters[cluster] = host
      case .table(let bitmap, _):
        store.work.next[bitmap].entry.tableOffset = HostOffset(byteOffset: host)
      case .directory: store.work.newDirectory = host
      }
    }
    store.work.step = store.work.taken.isEmpty ? .awaitingRound : .securingCounts
    return .more
  }

  /// Takes `count` clusters in one piece.
  private mutating func takeRun(_ index: Int, _ count: Int) -> Taken {
    let geometry = layers[0].geometry
    let attempts = UInt64(count) < geometry.refcountBlockEntryCount ? ImageStack.runsMax : 0
    for _ in 0..<attempts {
      switch takeClusters(index, count - store.work.runCount) {
      case .waits: return .waits
      case .failed(let error): return .failed(error)
      case .taken(let host, let taken, _):
        store.work.taken.append((host, taken))
        let end = store.work.runHost + UInt64(store.work.runCount) * geometry.clusterByteCount
        if store.work.runCount == 0 || host != end {
          // The pieces before it are of no use; they are given back at the end.
          store.work.runHost = host
          store.work.runCount = 0
        }
        store.work.runCount += taken
      }
      if store.work.runCount == count {
        let host = store.work.runHost
        store.work.runCount = 0
        return .taken(host: host, count: count, isFresh: false)
      }
    }
    // No free piece between two refcount blocks is long enough.
    store.work.runCount = 0
    let taken = takeLongRun(index, count)
    if case .taken(let host, let count, _) = taken { store.work.taken.append((host, count)) }
    return taken
  }

  /// Waits for a flush that begins now or later, and fails with it.
  private mutating func secureCounts(_ index: Int) -> Progress {
    switch secureTables(index) {
    case .waits: return .waits
    case .failed(let error): return fail(index, error)
    case .durable:
      store.work.step = .awaitingRound
      return .more
    }
  }

  // MARK: The layout

  /// Decides what the directory is to hold, and what is needed for it.
  private mutating func planLayout() throws(BitmapFault) {
    store.work.next = store.bitmaps
    var diskByteCount = bitmaps.diskByteCount
    var changesDirectory = false
    switch store.work.purpose {
    case .activate: break
    case .resize(let newByteCount): diskByteCount = newByteCount
    case .change(let actions): changesDirectory = try planChange(actions)
    }
    let geometry = layers[0].geometry
    for index in store.work.next.indices {
      guard store.work.next[index].isLoaded || store.work.next[index].reason == nil else {
        continue
      }
      let bits = store.work.next[index].entry.granularityBits
      let needed = geometry.bitmapTableEntryCount(diskByteCount, granularityBits: bits)
      var clusters = store.work.next[index].clusters
      if clusters.count > needed { clusters.removeLast(clusters.count - needed) }
      clusters += [UInt64](repeating: 0, count: needed - clusters.count)
      store.work.next[index].clusters = clusters
      if store.work.next[index].entry.tableEntryCount != needed
        || store.work.next[index].entry.tableOffset.byteOffset == 0
      {
        store.work.next[index].entry.tableEntryCount = needed
        store.work.newTables.insert(index)
        let clusterCount = Int(geometry.clusterCount(for: UInt64(needed * 8)))
        store.work.wants.append(.table(bitmap: index, clusterCount: clusterCount))
        changesDirectory = true
      }
      for cluster in clusters.indices where clusters[cluster] == 0 {
        store.work.wants.append(.data(bitmap: index, cluster: cluster))
        store.work.newData.append((index, cluster))
      }
    }
    let byteCount = store.work.next.reduce(0) { $0 + $1.entry.bytes.count }
    guard changesDirectory, byteCount > 0 else { return }
    guard UInt64(byteCount) <= BitmapsExtension.directoryByteCountMax else {
      throw BitmapFault("the image's bitmap directory is full")
    }
    store.work.wants.append(
      .directory(clusterCount: Int(geometry.clusterCount(for: UInt64(byteCount)))))
  }

  /// The same for what was ordered: tried on a copy, since the bitmaps may be others by the time
  /// all is ready. Returns whether bitmaps come or go.
  private mutating func planChange(_ actions: [BitmapAction]) throws(BitmapFault) -> Bool {
    guard store.state != .broken else {
      throw BitmapFault("the image keeps no bitmaps any more: \(store.trouble ?? "")")
    }
    guard store.state != .none else {
      throw BitmapFault(
        isReadOnly
          ? "the export is read-only"
          : "the image keeps no bitmaps; a qcow2 image of version 3 does")
    }
    let removed = unusableRemovals(actions)
    var trial = bitmaps
    try trial.perform(ordinary(actions))
    for stored in removed {
      store.work.next.removeAll { $0.entry.name.utf8.elementsEqual(stored.utf8) }
    }
    store.work.next.removeAll { stored in
      guard let number = stored.number else { return false }
      return trial[number: number]?.firstRevision != stored.firstRevision
    }
    let count = store.work.next.count
    for bitmap in trial.all where bitmap.isPersistent && bitmap.firstRevision > bitmaps.revision {
      if let kept = store.unusable(named: bitmap.name), !removed.contains(bitmap.name) {
        throw BitmapFault(
          "the image has a bitmap \"\(bitmap.name)\" that cannot be used"
            + " (\(kept.reason ?? "")); remove it first")
      }
      guard bitmaps.diskByteCount > 0 else {
        throw BitmapFault("a disk of 0 bytes has nothing to record")
      }
      store.work.next.append(
        StoredBitmap(
          entry: BitmapEntry(
            name: bitmap.name,
            granularityBits: bitmap.granularityByteCount.trailingZeroBitCount,
            tableOffset: HostOffset(byteOffset: 0), tableEntryCount: 0, flags: 0),
          number: nil, firstRevision: 0, reason: nil, clusters: []))
    }
    return count != store.work.next.count || count != store.bitmaps.count
  }

  /// The names of bitmaps that only the file has, and that are to go.
  func unusableRemovals(_ actions: [BitmapAction]) -> [String] {
    actions.compactMap {
      guard case .remove(let name) = $0, store.unusable(named: name) != nil else { return nil }
      return name
    }
  }

  /// The actions on bitmaps that memory has.
  func ordinary(_ actions: [BitmapAction]) -> [BitmapAction] {
    actions.filter {
      guard case .remove(let name) = $0 else { return true }
      return store.unusable(named: name) == nil
    }
  }

  // MARK: The end

  /// Gives back what was taken for a change that is not to be, and what it needed for none.
  mutating func endBitmapWork() {
    store.work.slot = -1
    store.isHeld = false
    releaseMarkWaiters()
  }

  /// The same for work that failed before its moment.
  mutating func abandonBitmapWork(_ index: Int) {
    let error = requests.slots[index].error
    let bits = UInt64(layers[0].geometry.clusterBits)
    for run in store.work.taken {
      releases.addUnmapped(cluster: run.host >> bits, count: UInt64(run.count))
    }
    wakeReleases()
    if case .activate = store.work.purpose { breakStore("there is no room for them: \(error)") }
    endBitmapWork()
  }
}

extension BitmapWork.Want {
  var clusterCount: Int {
    switch self {
    case .data: 1
    case .table(_, let clusterCount), .directory(let clusterCount): clusterCount
    }
  }
}
