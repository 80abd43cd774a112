// SPDX-License-Identifier: Apache-2.0
//
// Who owns a guest range of an image with extended L2 entries, subcluster by subcluster.
// Spec: qcow2.rst, "Extended L2 Entries". No I/O.

import BlockTypes
import LinuxIO
import Qcow2

extension IOBuffer {
  /// The extended L2 entry with this number in a page of a table.
  func extendedEntry(_ number: Int) -> ExtendedL2Entry {
    ExtendedL2Entry(
      L2Entry(rawValue: loadBigEndian64(at: number * 16)),
      SubclusterBitmap(rawValue: loadBigEndian64(at: number * 16 + 8)))
  }

  func storeExtendedEntry(_ entry: ExtendedL2Entry, _ number: Int) {
    storeBigEndian64(entry.descriptor.rawValue, at: number * 16)
    storeBigEndian64(entry.bitmap.rawValue, at: number * 16 + 8)
  }
}

extension ImageStack {
  /// Extends the first subcluster's answer over its neighbours in the page.
  mutating func scanSubclusters(
    _ cursor: UInt64, _ limit: UInt64, in index: Int, page: Int, place: PagePlace
  ) -> LayerAnswer {
    let geometry = layers[index].geometry
    let hasDataFile = layers[index].hasDataFile
    let buffer = cache.pages[page].buffer
    let clusterByteCount = geometry.clusterByteCount
    let first = buffer.extendedEntry(place.entryInPage)
    let firstSubcluster = geometry.subclusterIndex(of: GuestOffset(byteOffset: cursor))
    let run = first.run(
      from: firstSubcluster, first.clusterKind(in: geometry, hasDataFile: hasDataFile))
    let inCluster = cursor & (clusterByteCount - 1)
    var runEnd = UInt64(firstSubcluster + run.count) << UInt64(geometry.subclusterBits)
    var covered = runEnd - inCluster
    if run.kind != .compressed, run.kind != .invalid {
      var next = place.entryInPage + 1
      var host = first.descriptor.hostOffset.byteOffset + clusterByteCount
      while runEnd == clusterByteCount, covered < limit - cursor, next < place.entriesPerPage {
        let entry = buffer.extendedEntry(next)
        if run.kind == .normal, entry.descriptor.hostOffset.byteOffset != host { break }
        let more = entry.run(
          from: 0, entry.clusterKind(in: geometry, hasDataFile: hasDataFile))
        guard more.kind == run.kind else { break }
        runEnd = UInt64(more.count) << UInt64(geometry.subclusterBits)
        covered += runEnd
        host += clusterByteCount
        next += 1
      }
    }
    let byteCount = min(covered, limit - cursor)
    switch run.kind {
    case .unallocated: return .absent(byteCount: byteCount)
    case .zeroPlain:
      return .found(.zero(layer: index, byteCount: byteCount, isProvisioned: false))
    case .zeroAllocated:
      return .found(.zero(layer: index, byteCount: byteCount, isProvisioned: true))
    case .normal:
      let start = first.descriptor.hostOffset.byteOffset + inCluster
      if hasDataFile, start != cursor { return .found(.damaged) }
      return .found(.data(layer: index, host: start, byteCount: byteCount))
    case .compressed:
      return .found(.compressed(layer: index, entry: first.descriptor, byteCount: byteCount))
    case .invalid: return .found(.damaged)
    }
  }
}
