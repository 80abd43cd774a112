// SPDX-License-Identifier: Apache-2.0
//
// WRITE_ZEROES with NO_HOLE: whole clusters become zero clusters that own a host cluster, for which
// the filesystem has taken space, so that no later write there can find the disk full. Their bytes
// are not written. A run of clusters that one table page holds is done at a time, with a call on
// the blocking pool in it, so that other requests get their turns.
// Spec: proto.md, "NBD_CMD_FLAG_NO_HOLE"; qcow2.rst, "Standard Cluster Descriptor" (zero flag).

import BlockTypes
import LinuxIO
import NBDProtocol
import Qcow2

extension ImageStack {
  /// Picks the next run of clusters: those that have a place of their own keep it.
  mutating func provisionNext(_ index: Int) -> Progress {
    let cursor = requests.slots[index].zeroCursor
    let geometry = layers[0].geometry
    let cluster = ByteRange(start: cursor, end: cursor + geometry.clusterByteCount)
    if isBeingAllocated(cluster) {
      allocationWaiters.append(index, &requests.slots)
      return .waits
    }
    let l1Index = geometry.l1Index(of: GuestOffset(byteOffset: cursor))
    let l1Entry = L1Entry(rawValue: layers[0].l1[l1Index])
    if l1Entry.isEmpty || !l1Entry.isCopied { return makeTableForZeroes(index, l1Index) }
    if geometry.hasSubclusters { return provisionExtended(index, l1Index, l1Entry) }
    switch findPlace(cursor, requests.slots[index].bodyEnd) {
    case .inPlace(let host, let byteCount, _):
      return beginProvision(index, Int(byteCount >> UInt64(geometry.clusterBits)), host: host)
    case .preallocated(let host, let clusterCount):
      return beginProvision(index, clusterCount, host: host)
    case .unplaced(let clusterCount): return beginProvision(index, clusterCount, host: nil)
    case .unplacedSubclusters: preconditionFailure("an image without subclusters has some")
    case .needsL2Table(let l1Index): return makeTableForZeroes(index, l1Index)
    case .needsTable(let pageOffset, let l1Index):
      return waitForTable(index, 0, pageOffset, .l2, l1Index)
    case .damaged: return failDamaged(index, at: cursor)
    }
  }

  private mutating func makeTableForZeroes(_ index: Int, _ l1Index: Int) -> Progress {
    requests.slots[index].tableIndex = l1Index
    requests.slots[index].afterTable = .zeroingClusters
    requests.slots[index].stage = .makingTable
    return .more
  }

  mutating func beginProvision(
    _ index: Int, _ clusterCount: Int, host: UInt64?
  ) -> Progress {
    let start = requests.slots[index].zeroCursor
      .alignedDown(to: layers[0].geometry.clusterByteCount)
    registerAllocation(
      index, guestStart: start, clusterCount: uncontendedCount(start, clusterCount), host: host)
    requests.slots[index].stage = .provisioning
    return .more
  }

  /// Takes clusters for a run without a place, then space in the file for all of them.
  mutating func provision(_ index: Int) -> Progress {
    if layers[0].hasDataFile { return clear(index) }
    if !requests.slots[index].allocation.reusesHost {
      switch takeClusters(index, requests.slots[index].allocation.clusterCount) {
      case .waits: return .waits
      case .failed(let error): return fail(index, error)
      case .taken(let host, let count, _):
        requests.slots[index].allocation.host = host
        requests.slots[index].allocation.clusterCount = count
      }
    }
    let start = requests.slots[index].allocation.host
    let range = ByteRange(start: start, end: start + allocationRange(index).byteCount)
    let storage = storages[0]
    requests.slots[index].stage = .mappingZeroes
    submitToPool(index) {
      BlockingPool.errno { () throws(SystemError) in try storage.file.provision(range) }
    }
    return .waits
  }

  /// Maps the clusters as zero, now that there is space for them.
  mutating func mapZeroes(_ index: Int) -> Progress {
    if requests.slots[index].poolCount > 0 { return .waits }
    let error = clearingError(
      index, BlockErrno(systemErrno: Int32(requests.slots[index].poolValue)))
    if error == .notSupported, !requests.slots[index].flags.contains(.fastZero) {
      return writeZeroesInstead(index)
    }
    if error != .none { return fail(index, error) }
    // The space that was taken becomes durable with the next synchronisation.
    hasUnsyncedWrites = true
    if case .waits = mapAllocation(index, isZero: true) { return .waits }
    requests.slots[index].zeroCursor = placedRange(index).end
    endAllocation(index, isMapped: true)
    if cache.isMostlyDirty { wantFlush() }
    requests.slots[index].stage = .zeroingClusters
    return .more
  }

  /// The filesystem takes no space ahead: only bytes that are written are sure to have it.
  private mutating func writeZeroesInstead(_ index: Int) -> Progress {
    abandonAllocation(index)
    let end = requests.slots[index].offset + requests.slots[index].length
    requests.slots[index].bodyStart = end
    requests.slots[index].bodyEnd = end
    requests.slots[index].stage = .nextZeroPiece
    return .more
  }
}
