// SPDX-License-Identifier: Apache-2.0
//
// The bitmaps that the image keeps: where they lie in the file, and how far the file may be
// believed. Decision 0024 says in which order it is written. Spec: qcow2.rst, "Bitmaps".
// This file performs no I/O.

import Bitmaps
import BlockTypes
import Qcow2

/// What becomes of persistent bitmaps when the process or the machine ends without notice.
public enum BitmapDurability: String, Sendable, CaseIterable {
  /// They are wider than the truth by the rest of the regions that were written: the first write
  /// to a region waits until the file says so.
  case region
  /// They are lost, as those of QEMU are; no write waits.
  case none
}

/// One entry of the directory, and where its data lies.
struct StoredBitmap {
  var entry: BitmapEntry
  /// Its number in the `BitmapSet`; nil when it is kept as it is.
  var number: Int?
  /// The revision that it came with.
  var firstRevision: UInt64 = 0
  /// Why it is kept only.
  var reason: String?
  /// The hosts of the clusters of its data; 0 where there is none yet.
  var clusters: [UInt64]

  var isLoaded: Bool { number != nil }
}

/// The persistent bitmaps of the active layer.
struct BitmapStore {
  enum State: UInt8 {
    /// The image cannot keep bitmaps, or nobody may change them.
    case none
    /// The file holds what memory does; nothing was written since.
    case resting
    /// Marked as in use; with `.region` the file covers all that memory knows.
    case active
    /// Marked as in use and no longer complete.
    case broken
  }

  /// Bytes of the smallest region, and how many regions a disk has at most.
  static let regionByteCountMin: UInt64 = 16 << 20
  static let regionsMax: UInt64 = 1 << 16
  /// Bits of the mask of complete bitmaps.
  static let maskBitsMax = 64

  var state = State.none
  /// `none` also once the image has internal snapshots: `qemu-img check -r` forgets these where it
  /// finds an autoclear bit that it does not know, as the one of bitmaps in use is.
  var durability: BitmapDurability
  var bitmaps: [StoredBitmap] = []
  /// Where the directory lies; nil when there is none.
  var directoryHost: UInt64?
  var directoryByteCount = 0
  /// Whether a bitmap records that is kept.
  var hasRecorders = false
  /// A bitmap was in use when it was read, and is complete.
  var hasRecovered = false
  /// They are broken, and the file could not be told so: it may call them valid or complete.
  var claimsStand = false
  /// What went wrong, for whoever ends the export.
  var trouble: String?

  /// Regions that the file has marked since it was last exact, and those that somebody waits for.
  var marks: DirtyBitmap
  var wanted: DirtyBitmap
  var round = MarkRound()
  /// Requests that wait until their regions are marked.
  var waiters = SlotList()
  /// Who waits for the end of a round, and keeps the next one from starting.
  var roundWaiters = SlotList()
  var isHeld = false
  var work = BitmapWork()

  init(durability: BitmapDurability, diskByteCount: UInt64) {
    self.durability = durability
    var region = BitmapStore.regionByteCountMin
    while region < DirtyBitmap.granularityRange.upperBound,
      diskByteCount >> UInt64(region.trailingZeroBitCount) > BitmapStore.regionsMax
    {
      region <<= 1
    }
    do throws(BitmapFault) {
      marks = try DirtyBitmap(diskByteCount: diskByteCount, granularityByteCount: region)
      wanted = marks
    } catch {
      preconditionFailure("a bitmap of regions cannot be made: \(error)")
    }
  }

  /// Whether a change of the range has to wait until the file covers it.
  @inline(__always)
  func mustWait(for range: ByteRange) -> Bool {
    guard hasRecorders, !range.isEmpty else { return false }
    switch state {
    case .none: return false
    case .broken: return claimsStand
    case .resting: return true
    case .active:
      guard durability == .region else { return false }
      let run = marks.run(at: range.start)
      return !run.isDirty || run.end < range.end
    }
  }

  /// Follows a disk that grows. The region that the old end lies in is marked in the file up to
  /// there and no further, or will be so by the round that runs: it counts as not marked.
  mutating func resizeRegions(toDiskByteCount newByteCount: UInt64) throws(BitmapFault) {
    try BitmapStore.grow(&marks, toDiskByteCount: newByteCount)
    try wanted.resize(toDiskByteCount: newByteCount)
    guard var regions = round.regions else { return }
    try BitmapStore.grow(&regions, toDiskByteCount: newByteCount)
    round.regions = regions
  }

  private static func grow(
    _ regions: inout DirtyBitmap, toDiskByteCount newByteCount: UInt64
  ) throws(BitmapFault) {
    let old = regions
    try regions.resize(toDiskByteCount: newByteCount)
    let wholeByteCount = old.diskByteCount.alignedDown(to: old.granularityByteCount)
    guard wholeByteCount < old.diskByteCount else { return }
    regions.clear()
    var cursor: UInt64 = 0
    while let run = old.nextDirtyRun(from: cursor), run.start < wholeByteCount {
      regions.mark(ByteRange(start: run.start, end: min(run.end, wholeByteCount)))
      cursor = run.end
    }
  }

  /// The directory as the header names it.
  var directory: BitmapsExtension? {
    directoryHost.map {
      BitmapsExtension(
        bitmapCount: bitmaps.count, directoryByteCount: UInt64(directoryByteCount),
        directoryOffset: HostOffset(byteOffset: $0))
    }
  }

  /// Which entries are complete while they are in use; nil when none is.
  func completeMask(_ bitmaps: [StoredBitmap]) -> UInt64? {
    guard durability == .region else { return nil }
    var mask: UInt64 = 0
    for index in bitmaps.indices.prefix(BitmapStore.maskBitsMax) where bitmaps[index].isLoaded {
      mask |= 1 << UInt64(index)
    }
    return mask
  }

  /// The entry of a bitmap that is kept and cannot be used.
  func unusable(named name: String) -> StoredBitmap? {
    bitmaps.first { !$0.isLoaded && $0.entry.name.utf8.elementsEqual(name.utf8) }
  }
}
