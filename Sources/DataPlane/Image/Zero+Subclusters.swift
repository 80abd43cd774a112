// SPDX-License-Identifier: Apache-2.0
//
// WRITE_ZEROES and TRIM by the subcluster, in images with extended L2 entries: bits change, and a
// host cluster is given back when nothing of it is in use any more.
// Spec: qcow2.rst, "Extended L2 Entries"; proto.md, "NBD_CMD_WRITE_ZEROES", "NBD_CMD_TRIM".

import BlockTypes
import LinuxIO
import NBDProtocol
import Qcow2

extension ImageStack {
  /// Makes the subclusters of one cluster, from the cursor on, read as zeroes.
  ///
  /// A part of a compressed cluster has no bits: a TRIM leaves it alone, a WRITE_ZEROES writes it.
  /// An image with a data file goes another way (Zero+DataFile.swift).
  mutating func forgetSubclusters(_ index: Int, _ page: Int, _ place: PagePlace) -> Progress {
    let geometry = layers[0].geometry
    let cursor = requests.slots[index].zeroCursor
    let clusterStart = cursor.alignedDown(to: geometry.clusterByteCount)
    let partEnd = min(requests.slots[index].bodyEnd, clusterStart + geometry.clusterByteCount)
    let mask = geometry.subclusterMask(ByteRange(start: cursor, end: partEnd))
    let buffer = cache.pages[page].buffer
    let old = buffer.extendedEntry(place.entryInPage)
    let kind = old.clusterKind(in: geometry, hasDataFile: false)
    if kind == .invalid { return fail(index, .io) }
    if kind == .compressed, mask != .max {
      if requests.slots[index].command == .writeZeroes {
        let end = requests.slots[index].offset + requests.slots[index].length
        return writeZeroPiece(index, cursor, limit: min(partEnd, end))
      }
      requests.slots[index].zeroCursor = partEnd
      return .more
    }
    let new = zeroed(old, mask)
    if old != new {
      if new.descriptor == .unallocated { freeHost(of: old.descriptor) }
      buffer.storeExtendedEntry(new, place.entryInPage)
      cache.markDirty(page)
      updateIndex(clusterStart, new)
    }
    requests.slots[index].zeroCursor = partEnd
    return .more
  }

  /// The entry without the data of some subclusters. It keeps a host cluster that still has data,
  /// or had none: that one was taken for later writes.
  func zeroed(_ old: ExtendedL2Entry, _ mask: UInt32) -> ExtendedL2Entry {
    // Where no layer is below, a subcluster that is nowhere reads as zeroes.
    let isAlone = layers.count == 1
    if mask == .max { return ExtendedL2Entry(.unallocated, isAlone ? .none : .allZero) }
    let bitmap = isAlone ? old.bitmap.forgetting(mask) : old.bitmap.zeroing(mask)
    let isGivenUp = old.bitmap.allocated != 0 && bitmap.allocated == 0
    return ExtendedL2Entry(isGivenUp ? .unallocated : old.descriptor, bitmap)
  }

  // MARK: Space for zeroes

  /// Picks the next run of whole clusters that are to read as zeroes and to have space: those that
  /// have a place of their own keep it. The cursor is at the start of a cluster.
  mutating func provisionExtended(
    _ index: Int, _ l1Index: Int, _ l1Entry: L1Entry
  ) -> Progress {
    let geometry = layers[0].geometry
    guard l1Entry.isValid(in: geometry) else { return fail(index, .io) }
    let cursor = requests.slots[index].zeroCursor
    let place = PagePlace(
      entryIndex: geometry.l2Index(of: GuestOffset(byteOffset: cursor)),
      table: l1Entry.tableOffset.byteOffset, geometry: geometry)
    guard let page = cache.find(0, place.pageOffset), cache.pages[page].state == .ready else {
      return waitForTable(index, 0, place.pageOffset, .l2, l1Index)
    }
    let hasDataFile = layers[0].hasDataFile
    let buffer = cache.pages[page].buffer
    let first = buffer.extendedEntry(place.entryInPage)
    guard first.clusterKind(in: geometry, hasDataFile: hasDataFile) != .invalid else {
      return fail(index, .io)
    }
    let host = first.ownHost(in: geometry, hasDataFile: hasDataFile)
    let left = (requests.slots[index].bodyEnd - cursor) >> UInt64(geometry.clusterBits)
    let limit = min(Int(clamping: left), place.entriesPerPage - place.entryInPage)
    var count = 1
    while count < limit {
      let entry = buffer.extendedEntry(place.entryInPage + count)
      let distance = UInt64(count) * geometry.clusterByteCount
      guard entry.clusterKind(in: geometry, hasDataFile: hasDataFile) != .invalid,
        entry.ownHost(in: geometry, hasDataFile: hasDataFile) == host.map({ $0 + distance })
      else { break }
      count += 1
    }
    return beginProvision(index, count, host: host)
  }
}

extension ExtendedL2Entry {
  /// Where the cluster lies, if it has a host cluster that nobody shares.
  fileprivate func ownHost(in geometry: ClusterGeometry, hasDataFile: Bool) -> UInt64? {
    clusterKind(in: geometry, hasDataFile: hasDataFile) == .normal && descriptor.isCopied
      ? descriptor.hostOffset.byteOffset : nil
  }
}
