// SPDX-License-Identifier: Apache-2.0
//
// The chain of layers and all requests on it: the owner of every table, buffer and operation of
// one export. One thread calls it. `advance` moves a request as far as it can go; whatever the
// request then waits for calls `wake`.

import Bitmaps
import BlockTypes
import LinuxIO
import NBDProtocol
import Qcow2

/// Who an I/O completion is for: the kind in the top byte, an index below.
struct IOTag {
  enum Kind: UInt8 {
    case read = 1
    case write
    case clusterWrite
    case tableWrite
    case tableLoad
    case flushWrite
    case flushSync
    case poolForSlot
    case poolForGrowth
    case markWrite
    case markSync
  }

  let rawValue: UInt64
  init(_ kind: Kind, _ index: Int) { rawValue = UInt64(kind.rawValue) << 56 | UInt64(index) }
  init(rawValue: UInt64) { self.rawValue = rawValue }
  var kind: Kind? { Kind(rawValue: UInt8(rawValue >> 56)) }
  var index: Int { Int(rawValue & (1 << 56 - 1)) }

  // A read for a request says in 24 bits which of the 512-byte blocks of the scan it begins at, so
  // that a failure has a place: the largest scan has 2^17 of them.

  static let blockBits: UInt64 = 9

  init(readFor slot: Int, block: UInt64) {
    rawValue = UInt64(Kind.read.rawValue) << 56 | (block & 0xff_ffff) << 32 | UInt64(slot)
  }
  /// The slot and the block of a read.
  var slot: Int { Int(rawValue & 0xffff_ffff) }
  var block: UInt64 { rawValue >> 32 & 0xff_ffff }
}

/// The layers of one export and what is going on in them.
struct ImageStack: ~Copyable {
  var requests: RequestTable
  var layers: FixedArray<Layer>
  var cache: TableCache
  var disks: DiskQueue
  let pool: BlockingPool
  var buffers: BufferPool
  /// A cluster (at least 1 MiB) of zeroes, for fills.
  let zeroes: IOBuffer
  let storages: [LayerFile]

  let isReadOnly: Bool
  /// Whole clusters that get a place are compressed, as far as they shrink.
  var packsWrites: Bool
  /// Larger than what clients know while the disk grows.
  var diskByteCount: UInt64
  /// The alignment that all I/O of the chain keeps: 1 when it goes through the page cache.
  let alignment: UInt64

  /// Requests that may advance now, and those that gave way to others until the next tick.
  var ready = SlotList()
  var deferred = SlotList()
  /// Requests whose reply can be made.
  var finished = SlotList()

  /// Requests that wait for room in the disk queue, in the cache, for a claim or an allocation.
  var queueWaiters = SlotList()
  var cacheWaiters = SlotList()
  var claimWaiters = SlotList()
  var allocationWaiters = SlotList()

  /// Requests that hold packed bytes, and those that wait because they are too many.
  var packingCount = 0
  var packingWaiters = SlotList()

  /// Dense lists of the requests that hold a claim or an allocation.
  var claims = DenseList()
  var serialisingClaimCount = 0
  var allocations = DenseList()
  /// The slot that is making an L2 table; -1 when none is.
  var tableMaker: Int32 = -1

  /// The shape of the merged index, and whether the chain has one: a single layer needs none.
  let index: IndexGeometry
  let usesIndex: Bool

  var allocator: Allocator
  var overlapGuard: OverlapGuard
  /// What was written since when, as clients may ask.
  var bitmaps: BitmapSet
  /// Those of them that the image keeps.
  var store: BitmapStore
  var flush = FlushState()
  var releases = ReleaseQueue()
  var resize = ResizeState()
  var standstill = Standstill()
  /// The internal snapshots of the active layer; nil where they cannot be read.
  var snapshots: SnapshotTable?

  /// Bytes reached the files since the last successful synchronisation began.
  var hasUnsyncedWrites = false
  /// A synchronisation failed: what the page cache or the disk dropped is unknown, so no later
  /// flush may succeed (fsync(2), EIO).
  var lostWrites = false
  /// The server stops: what would take long is given up with ESHUTDOWN.
  var isStopping = false
  /// For `status`.
  var counters = ImageCounters()
}

/// The indices of some slots, in no order; each slot knows its position.
struct DenseList {
  private(set) var indices: [Int32] = []

  init() { indices.reserveCapacity(256) }

  mutating func append(_ index: Int) -> Int32 {
    indices.append(Int32(index))
    return Int32(indices.count - 1)
  }

  /// Removes the index at `position` and returns the one that moved there, if any did.
  mutating func remove(at position: Int32) -> Int32? {
    let last = indices.removeLast()
    guard Int(position) < indices.count else { return nil }
    indices[Int(position)] = last
    return last
  }
}
