// SPDX-License-Identifier: Apache-2.0
//
// Copy on write by the subcluster, in images with extended L2 entries. A first write to a cluster
// takes a host cluster and fills the subclusters that it touches, to their borders; a write to
// others of them goes to the same host cluster. Their bits are set when their bytes have been
// written, so that a bit never leads to bytes that are not there (Flush.swift makes both durable in
// that order). A cluster that is shared, or compressed, is copied as far as it has data.
// Spec: qcow2.rst, "Extended L2 Entries".

import BlockTypes
import LinuxIO
import Qcow2

/// Subclusters of neighbouring clusters that need a place.
struct SubclusterRun {
  /// Where the first cluster lies; nil when host clusters have to be taken.
  var host: UInt64?
  /// Guest offset of the first cluster.
  var guestStart: UInt64
  /// The bytes to be filled and mapped: whole subclusters.
  var placedStart: UInt64
  var placedEnd: UInt64
}

extension ImageStack {
  /// Finds the place of the first bytes of the aligned range `cursor ..< end`, whose L2 entry is in
  /// `page`.
  mutating func placeSubclusters(
    _ cursor: UInt64, _ end: UInt64, page: Int, place: PagePlace
  ) -> Place {
    let geometry = layers[0].geometry
    let entry = cache.pages[page].buffer.extendedEntry(place.entryInPage)
    let kind = entry.clusterKind(in: geometry, hasDataFile: layers[0].hasDataFile)
    switch kind {
    case .invalid, .zeroPlain, .zeroAllocated: return .damaged
    case .unallocated, .compressed: return placeAnew(cursor, end, page, place)
    case .normal:
      guard entry.descriptor.isCopied else { return placeAnew(cursor, end, page, place) }
      if layers[0].hasDataFile,
        entry.descriptor.hostOffset.byteOffset != cursor.alignedDown(to: geometry.clusterByteCount)
      {
        return .damaged
      }
      let first = geometry.subclusterIndex(of: GuestOffset(byteOffset: cursor))
      return entry.bitmap.allocated >> UInt32(first) & 1 == 1
        ? placeInside(cursor, end, page, place) : placeBeside(cursor, end, page, place)
    }
  }

  /// The bytes of allocated subclusters are overwritten.
  private mutating func placeInside(
    _ cursor: UInt64, _ end: UInt64, _ page: Int, _ place: PagePlace
  ) -> Place {
    let geometry = layers[0].geometry
    let hasDataFile = layers[0].hasDataFile
    let buffer = cache.pages[page].buffer
    let clusterByteCount = geometry.clusterByteCount
    let host = buffer.extendedEntry(place.entryInPage).descriptor.hostOffset.byteOffset
    var subcluster = geometry.subclusterIndex(of: GuestOffset(byteOffset: cursor))
    var clusterStart = cursor.alignedDown(to: clusterByteCount)
    var reach = cursor
    for number in place.entryInPage..<place.entriesPerPage {
      let entry = buffer.extendedEntry(number)
      let distance = UInt64(number - place.entryInPage) * clusterByteCount
      guard entry.clusterKind(in: geometry, hasDataFile: hasDataFile) == .normal,
        entry.descriptor.isCopied,
        entry.descriptor.hostOffset.byteOffset == host + distance
      else { break }
      let run = (~(entry.bitmap.allocated >> UInt32(subcluster))).trailingZeroBitCount
      let last = min(subcluster + run, SubclusterBitmap.subclusterCount)
      reach = max(reach, clusterStart + UInt64(last) << UInt64(geometry.subclusterBits))
      guard last == SubclusterBitmap.subclusterCount, reach < end else { break }
      clusterStart += clusterByteCount
      subcluster = 0
    }
    return .inPlace(
      host: host + (cursor & (clusterByteCount - 1)), byteCount: min(reach, end) - cursor,
      isSettled: isSettled(page))
  }

  /// Subclusters get their bytes in the host cluster that is there, as far as none of them has any.
  private mutating func placeBeside(
    _ cursor: UInt64, _ end: UInt64, _ page: Int, _ place: PagePlace
  ) -> Place {
    let geometry = layers[0].geometry
    let hasDataFile = layers[0].hasDataFile
    let buffer = cache.pages[page].buffer
    let clusterByteCount = geometry.clusterByteCount
    let first = geometry.subclusterIndex(of: GuestOffset(byteOffset: cursor))
    let guestStart = cursor.alignedDown(to: clusterByteCount)
    let wantedEnd = end.alignedUp(to: geometry.subclusterByteCount)
    let entry = buffer.extendedEntry(place.entryInPage)
    let host = entry.descriptor.hostOffset.byteOffset
    let free = (entry.bitmap.allocated >> UInt32(first)).trailingZeroBitCount
    let last = min(first + free, SubclusterBitmap.subclusterCount)
    var reach = min(wantedEnd, guestStart + UInt64(last) << UInt64(geometry.subclusterBits))
    var next = place.entryInPage + 1
    var clusterStart = guestStart + clusterByteCount
    while reach == clusterStart, reach < wantedEnd, next < place.entriesPerPage {
      let entry = buffer.extendedEntry(next)
      let count = min(wantedEnd - clusterStart, clusterByteCount) >> UInt64(geometry.subclusterBits)
      guard entry.clusterKind(in: geometry, hasDataFile: hasDataFile) == .normal,
        entry.descriptor.isCopied,
        entry.descriptor.hostOffset.byteOffset == host + (clusterStart - guestStart),
        entry.bitmap.allocated & SubclusterBitmap.mask(0..<Int(count)) == 0
      else { break }
      reach = min(wantedEnd, clusterStart + clusterByteCount)
      clusterStart += clusterByteCount
      next += 1
    }
    return .unplacedSubclusters(
      SubclusterRun(
        host: host, guestStart: guestStart,
        placedStart: cursor.alignedDown(to: geometry.subclusterByteCount), placedEnd: reach))
  }

  /// Clusters get a new host cluster: for what is written, and for what they have already where
  /// that may not be changed in place.
  private mutating func placeAnew(
    _ cursor: UInt64, _ end: UInt64, _ page: Int, _ place: PagePlace
  ) -> Place {
    let geometry = layers[0].geometry
    let hasDataFile = layers[0].hasDataFile
    let buffer = cache.pages[page].buffer
    let clusterByteCount = geometry.clusterByteCount
    let guestStart = cursor.alignedDown(to: clusterByteCount)
    let bits = UInt64(geometry.subclusterBits)
    let first = buffer.extendedEntry(place.entryInPage)
    var kept = first.subclustersToCopy(in: geometry, hasDataFile: hasDataFile) ?? 0
    var placedStart = cursor.alignedDown(to: geometry.subclusterByteCount)
    if kept != 0 {
      placedStart = min(placedStart, guestStart + UInt64(kept.trailingZeroBitCount) << bits)
    }
    var clusterStart = guestStart
    var next = place.entryInPage + 1
    while clusterStart + clusterByteCount < end, next < place.entriesPerPage,
      let more = buffer.extendedEntry(next)
        .subclustersToCopy(in: geometry, hasDataFile: hasDataFile)
    {
      kept = more
      clusterStart += clusterByteCount
      next += 1
    }
    let keptCount = SubclusterBitmap.subclusterCount - kept.leadingZeroBitCount
    let reach = min(
      end.alignedUp(to: geometry.subclusterByteCount), clusterStart + clusterByteCount)
    return .unplacedSubclusters(
      SubclusterRun(
        host: nil, guestStart: guestStart, placedStart: placedStart,
        placedEnd: max(reach, clusterStart + UInt64(keptCount) << bits)))
  }

  /// How many clusters a run touches.
  func clusterCount(of run: SubclusterRun) -> Int {
    let geometry = layers[0].geometry
    return Int(
      (run.placedEnd - run.guestStart + geometry.clusterByteCount - 1)
        >> UInt64(geometry.clusterBits))
  }

  /// Leaves the clusters of a run behind the first `clusterCount` out, which are written to their
  /// end if there are others.
  func shorten(_ run: inout SubclusterRun, to clusterCount: Int) {
    run.placedEnd = min(
      run.placedEnd, run.guestStart + UInt64(clusterCount) * layers[0].geometry.clusterByteCount)
  }

  // MARK: Allocating

  /// Begins giving subclusters a place. Joins the request that is at the first of them if it fills
  /// it, waits if it does not, and leaves those further on to who is at them.
  ///
  /// Requests that add to a cluster that is there are in each other's way only where they touch the
  /// same subclusters; one that takes a host cluster has the cluster for itself.
  mutating func beginAllocation(_ index: Int, _ run: SubclusterRun) -> Progress {
    let geometry = layers[0].geometry
    let clusterByteCount = geometry.clusterByteCount
    let cursor = requests.slots[index].placeCursor
    var end = run.placedEnd
    let wanted =
      run.host == nil
      ? ByteRange(start: run.guestStart, end: run.guestStart + clusterByteCount)
      : ByteRange(start: run.placedStart, end: run.placedStart + geometry.subclusterByteCount)
    for other in allocations.indices {
      let other = Int(other)
      let owned =
        requests.slots[other].allocation.reusesHost ? placedRange(other) : allocationRange(other)
      if owned.overlaps(wanted) {
        let placed = placedRange(other)
        if placed.start <= cursor, cursor < placed.end { return join(index, other) }
        allocationWaiters.append(index, &requests.slots)
        return .waits
      }
      if owned.start >= wanted.end {
        end = min(
          end, run.host == nil ? owned.start.alignedDown(to: clusterByteCount) : owned.start)
      }
    }
    let clusters = (end - run.guestStart + clusterByteCount - 1) >> UInt64(geometry.clusterBits)
    registerAllocation(
      index, guestStart: run.guestStart, clusterCount: Int(clusters), host: run.host)
    requests.slots[index].allocation.placedStart = run.placedStart
    requests.slots[index].allocation.placedEnd = end
    requests.slots[index].stage = .allocating
    return .more
  }

  /// Points the L2 entries of an allocation at its place and sets the bits of what is there now. An
  /// entry and its bitmap lie in one sector: no power cut comes between them.
  mutating func mapSubclusters(_ index: Int, _ page: Int, _ place: PagePlace, isZero: Bool) {
    let allocation = requests.slots[index].allocation
    let geometry = layers[0].geometry
    let buffer = cache.pages[page].buffer
    let placed = placedRange(index)
    for number in 0..<allocation.clusterCount {
      let old = buffer.extendedEntry(place.entryInPage + number)
      let distance = UInt64(number) * geometry.clusterByteCount
      let start = allocation.guestStart + distance
      let end = start + geometry.clusterByteCount
      let mask = geometry.subclusterMask(
        ByteRange(start: max(start, placed.start), end: min(end, placed.end)))
      var bitmap = old.bitmap.allocating(mask)
      if !allocation.reusesHost {
        freeHost(of: old.descriptor)
        // What is not copied is not in the new host cluster.
        bitmap = SubclusterBitmap(
          allocated: mask, zero: old.descriptor.isCompressed ? 0 : old.bitmap.zero & ~mask)
      }
      let host = HostOffset(byteOffset: allocation.host + distance)
      let new =
        isZero
        ? zeroEntry(index, old, mask, host) : ExtendedL2Entry(L2Entry(normalAt: host), bitmap)
      buffer.storeExtendedEntry(new, place.entryInPage + number)
      updateIndex(start, new)
    }
    cache.markDirty(page)
  }

  /// An entry of the active layer changed: the index follows. It knows clusters that are all of a
  /// kind; the layers are asked for the others.
  mutating func updateIndex(_ guestStart: UInt64, _ entry: ExtendedL2Entry) {
    if entry.bitmap.allocated == .max {
      updateIndex(guestStart, .data, host: entry.descriptor.hostOffset.byteOffset)
    } else if entry.bitmap.zero == .max {
      // The first cluster of a data file lies at 0, and has a descriptor.
      let isNowhere = entry.descriptor == .unallocated
      updateIndex(guestStart, isNowhere ? .zero : .zeroAllocated, host: 0)
    } else {
      updateIndex(guestStart, .mixed, host: 0)
    }
  }
}

extension ExtendedL2Entry {
  /// The subclusters that a new host cluster has to hold besides what is written; nil when the
  /// cluster has a place that may be written, or is damaged.
  fileprivate func subclustersToCopy(
    in geometry: ClusterGeometry, hasDataFile: Bool
  ) -> UInt32? {
    switch clusterKind(in: geometry, hasDataFile: hasDataFile) {
    case .unallocated: 0
    case .compressed: .max
    case .normal: descriptor.isCopied ? nil : bitmap.allocated
    case .invalid, .zeroPlain, .zeroAllocated: nil
    }
  }
}

extension ClusterGeometry {
  /// The bits of the subclusters of `range`, which begins and ends at borders of subclusters of one
  /// cluster.
  func subclusterMask(_ range: ByteRange) -> UInt32 {
    let clusterStart = range.start.alignedDown(to: clusterByteCount)
    let first = Int((range.start - clusterStart) >> UInt64(subclusterBits))
    return SubclusterBitmap.mask(
      first..<first + Int(range.byteCount >> UInt64(subclusterBits)))
  }
}
