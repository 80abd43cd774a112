// SPDX-License-Identifier: Apache-2.0
//
// Who owns a guest range, and where: the one lookup that reads, fills, block status and zeroing
// share. Spec: qcow2.rst, "Cluster mapping"; backing files shorter than the image read as zeroes
// past their end. No I/O: a table that is not in memory is named, not read.

import BlockTypes
import LinuxIO
import Qcow2

/// What the first bytes of a guest range are.
enum Resolution {
  /// `byteCount` bytes lie at `host` of the file of `layer`.
  case data(layer: Int, host: UInt64, byteCount: UInt64)
  /// `byteCount` bytes read as zeroes. `layer` says so; nil when no layer has them.
  case zero(layer: Int?, byteCount: UInt64, isProvisioned: Bool)
  /// A compressed cluster of `layer` holds the next `byteCount` bytes.
  case compressed(layer: Int, entry: L2Entry, byteCount: UInt64)
  /// This page of a table of `layer` is needed first.
  case needsTable(layer: Int, pageOffset: UInt64, l1Index: Int)
  /// The page of the merged index that starts there has to be filled first.
  case needsIndex(pageStart: UInt64)
  /// A table entry contradicts the format.
  case damaged
}

extension ImageStack {
  /// Resolves the start of `cursor ..< end` as the guest sees it.
  ///
  /// The answer covers as much as one table page tells. Bytes past the end of the disk (a request
  /// rounded to the alignment) are zeroes.
  mutating func resolve(_ cursor: UInt64, _ end: UInt64) -> Resolution {
    precondition(cursor < end, "an empty range was resolved")
    return usesIndex ? resolveByIndex(cursor, end) : resolveByLayers(cursor, end)
  }

  /// Asks one layer after the other.
  mutating func resolveByLayers(_ cursor: UInt64, _ end: UInt64) -> Resolution {
    var limit = end
    for layer in 0..<layers.count {
      switch resolveInLayer(cursor, limit, layer) {
      case .absent(let byteCount): limit = cursor + byteCount
      case .found(let resolution): return resolution
      }
    }
    return .zero(layer: nil, byteCount: limit - cursor, isProvisioned: false)
  }

  enum LayerAnswer {
    /// The layer has nothing for the next `byteCount` bytes.
    case absent(byteCount: UInt64)
    case found(Resolution)
  }

  mutating func resolveInLayer(_ cursor: UInt64, _ end: UInt64, _ layer: Int) -> LayerAnswer {
    if cursor >= layers[layer].diskByteCount {
      // Past the end of a short layer: what is made up there counts as this layer's.
      return .found(.zero(layer: layer, byteCount: end - cursor, isProvisioned: false))
    }
    let limit = min(end, layers[layer].diskByteCount)
    if layers[layer].isRaw {
      return .found(.data(layer: layer, host: cursor, byteCount: limit - cursor))
    }
    return lookUp(cursor, limit, in: layer)
  }

  private mutating func lookUp(_ cursor: UInt64, _ limit: UInt64, in index: Int) -> LayerAnswer {
    let geometry = layers[index].geometry
    let offset = GuestOffset(byteOffset: cursor)
    let l1Index = geometry.l1Index(of: offset)
    let coverageEnd = (UInt64(l1Index) + 1) * geometry.l2CoverageByteCount
    let l1Entry = L1Entry(rawValue: layers[index].l1[l1Index])
    if l1Entry.isEmpty { return .absent(byteCount: min(limit, coverageEnd) - cursor) }
    guard l1Entry.isValid(in: geometry) else { return .found(.damaged) }

    let entryIndex = geometry.l2Index(of: offset)
    let place = PagePlace(
      entryIndex: entryIndex, table: l1Entry.tableOffset.byteOffset, geometry: geometry)
    guard let page = cache.find(index, place.pageOffset), cache.pages[page].state == .ready else {
      return .found(.needsTable(layer: index, pageOffset: place.pageOffset, l1Index: l1Index))
    }
    if geometry.hasSubclusters {
      return scanSubclusters(cursor, limit, in: index, page: page, place: place)
    }
    return scanRun(cursor, limit, in: index, page: page, place: place)
  }

  /// Extends the first entry's answer over its neighbours in the page.
  private func scanRun(
    _ cursor: UInt64, _ limit: UInt64, in index: Int, page: Int, place: PagePlace
  ) -> LayerAnswer {
    let geometry = layers[index].geometry
    let version = layers[index].version
    let hasDataFile = layers[index].hasDataFile
    let buffer = cache.pages[page].buffer
    let first = L2Entry(rawValue: buffer.loadBigEndian64(at: place.entryInPage * 8))
    let kind = first.kind(in: geometry, version: version, hasDataFile: hasDataFile)
    let clusterByteCount = geometry.clusterByteCount
    let inCluster = cursor & (clusterByteCount - 1)
    var covered = clusterByteCount - inCluster
    var next = place.entryInPage + 1
    var host = first.hostOffset.byteOffset + clusterByteCount
    if kind != .compressed && kind != .invalid {
      while covered < limit - cursor, next < place.entriesPerPage {
        let entry = L2Entry(rawValue: buffer.loadBigEndian64(at: next * 8))
        guard entry.kind(in: geometry, version: version, hasDataFile: hasDataFile) == kind
        else { break }
        if kind == .normal, entry.hostOffset.byteOffset != host { break }
        host += clusterByteCount
        covered += clusterByteCount
        next += 1
      }
    }
    let byteCount = min(covered, limit - cursor)
    switch kind {
    case .unallocated: return .absent(byteCount: byteCount)
    case .zeroPlain:
      return .found(.zero(layer: index, byteCount: byteCount, isProvisioned: false))
    case .zeroAllocated:
      return .found(.zero(layer: index, byteCount: byteCount, isProvisioned: true))
    case .normal:
      let start = first.hostOffset.byteOffset + inCluster
      if hasDataFile, start != cursor { return .found(.damaged) }
      return .found(.data(layer: index, host: start, byteCount: byteCount))
    case .compressed:
      return .found(.compressed(layer: index, entry: first, byteCount: byteCount))
    case .invalid: return .found(.damaged)
    }
  }
}

/// Where an L2 entry lies: its page and its index there.
struct PagePlace {
  let pageOffset: UInt64
  let entryInPage: Int
  let entriesPerPage: Int

  init(entryIndex: Int, table: UInt64, geometry: ClusterGeometry) {
    let pageByteCount = geometry.pageByteCount
    let byte = entryIndex << geometry.l2EntryBits
    pageOffset = table + UInt64(byte / pageByteCount * pageByteCount)
    entryInPage = (byte % pageByteCount) >> geometry.l2EntryBits
    entriesPerPage = pageByteCount >> geometry.l2EntryBits
  }
}

extension ClusterGeometry {
  /// Bytes of a table that are cached, read and written together.
  var pageByteCount: Int { min(Int(clusterByteCount), TableCache.pageByteCountMax) }
}
