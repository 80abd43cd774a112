// SPDX-License-Identifier: Apache-2.0
//
// What happens when the active layer contradicts itself while it is served: the request fails with
// EIO, nothing is allocated or released any more, the header says `corrupt` once and durably, the
// export becomes read-only (ExportLoop+Damage.swift). Spec: qcow2.rst, "incompatible_features", bit
// 1; the event is what QEMU calls BLOCK_IMAGE_CORRUPTED.

import BlockTypes
import LinuxIO
import Qcow2

extension ImageStack {
  /// Notes that the image is damaged. Returns the error for whoever met it.
  mutating func declareDamage(_ text: String) -> BlockErrno {
    if !isReadOnly { overlapGuard.trip(text) }
    return .io
  }

  /// Fails a request that met `damaged` at a guest offset; which layer is to blame is found out.
  mutating func failDamaged(_ index: Int, at cursor: UInt64) -> Progress {
    if !isReadOnly, !layers[0].isRaw, cursor < layers[0].diskByteCount,
      let text = activeDamage(at: cursor)
    {
      overlapGuard.trip(text)
    }
    return fail(index, .io)
  }

  /// Sets the corrupt bit; called between two ticks.
  mutating func markCorrupt() {
    guard disks.hasRoom else { return }
    overlapGuard.isUnmarked = false
    // Version 2 has no such bit, and what cannot be written cannot be told.
    guard layers[0].version >= 3 else { return }
    _ = changeHeader { $0.incompatibleFeatures.insert(.corrupt) }
  }

  // MARK: Who holds a cluster

  /// Whether the cluster may hold a table that is guarded; exact where the answer is no.
  func mayHoldTables(_ cluster: UInt64, _ geometry: ClusterGeometry) -> Bool {
    holdsTables(cluster, geometry) || overlapGuard.mayHold(cluster, geometry)
  }

  /// The name of the table that lies in a cluster; nil when none does.
  ///
  /// - Parameter kind: tables that are not looked for.
  mutating func holder(
    of cluster: UInt64, _ geometry: ClusterGeometry, besides kind: TablePage.Kind? = nil
  ) -> String? {
    let host = cluster << UInt64(geometry.clusterBits)
    let range = ByteRange(start: host, end: host + geometry.clusterByteCount)
    if cluster == 0 { return "the header" }
    if range.overlaps(
      ByteRange(
        start: layers[0].l1TableOffset,
        end: layers[0].l1TableOffset + UInt64(layers[0].l1.count * 8)))
    {
      return "the L1 table"
    }
    if range.overlaps(
      ByteRange(
        start: allocator.tableOffset,
        end: allocator.tableOffset + UInt64(allocator.table.count * 8)))
    {
      return "the refcount table"
    }
    if let name = overlapGuard.fixedHolder(of: cluster, geometry) { return name }
    if kind != .refcount,
      overlapGuard.refcountBlocks.mayContain(cluster) || holdsTables(cluster, geometry)
    {
      for index in 0..<allocator.table.count where allocator.table[index] & ~511 == host {
        return "refcount block \(index)"
      }
    }
    if kind != .l2, overlapGuard.l2Tables.mayContain(cluster) {
      for index in 0..<layers[0].l1.count
      where L1Entry(rawValue: layers[0].l1[index]).tableOffset.byteOffset == host {
        return "the L2 table of L1 entry \(index)"
      }
    }
    return nil
  }

  // MARK: Entries

  /// Looks at all entries of a page of an L2 table of the active layer, before the guest's clusters
  /// that it names are overwritten in place. Until the next table finds a place, one comparison
  /// then tells that each of them may be.
  ///
  /// - Returns: whether all are harmless.
  mutating func inspect(_ page: Int) -> Bool {
    let geometry = layers[0].geometry
    let buffer = cache.pages[page].buffer
    for at in stride(from: 0, to: geometry.pageByteCount, by: geometry.l2EntryByteCount) {
      let entry = L2Entry(rawValue: buffer.loadBigEndian64(at: at))
      if !isHarmless(entry, geometry), flaw(of: entry, geometry) != nil { return false }
    }
    cache.pages[page].soundGeneration = overlapGuard.generation
    return true
  }

  /// Whether an entry leads to no table and not behind the file, as far as the filters tell.
  private func isHarmless(_ entry: L2Entry, _ geometry: ClusterGeometry) -> Bool {
    let host = entry.hostOffset.byteOffset
    if entry.rawValue & L2Entry.compressedFlag != 0 || host == 0 { return true }
    if !overlapGuard.judgesData { return true }
    return host.isAligned(to: geometry.clusterByteCount) && host < allocator.fileByteCount
      && !mayHoldTables(host >> UInt64(geometry.clusterBits), geometry)
  }

  /// What is wrong with an entry of the active layer, as the rest of a sentence; nil: nothing is.
  private mutating func flaw(of entry: L2Entry, _ geometry: ClusterGeometry) -> String? {
    let host = entry.hostOffset.byteOffset
    if entry.rawValue & L2Entry.compressedFlag != 0 {
      return entry.compressedRange(in: geometry).start >= allocator.fileByteCount
        ? ", behind the end of the file" : nil
    }
    let kind = entry.kind(
      in: geometry, version: layers[0].version, hasDataFile: layers[0].hasDataFile)
    if kind == .invalid { return "" }
    if host == 0 || !overlapGuard.judgesData { return nil }
    if host >= allocator.fileByteCount { return ", behind the end of the file" }
    return holder(of: host >> UInt64(geometry.clusterBits), geometry).map {
      ", which leads to \($0)"
    }
  }

  /// What is wrong with the entry of the active layer that maps `cursor`; nil when nothing is, or
  /// when its table is not in memory.
  mutating func activeDamage(at cursor: UInt64) -> String? {
    let geometry = layers[0].geometry
    let offset = GuestOffset(byteOffset: cursor)
    let l1Index = geometry.l1Index(of: offset)
    let l1Entry = L1Entry(rawValue: layers[0].l1[l1Index])
    guard l1Entry.isValid(in: geometry) else {
      return "L1 entry \(l1Index) is 0x\(String(l1Entry.rawValue, radix: 16))"
    }
    if l1Entry.isEmpty { return nil }
    let place = PagePlace(
      entryIndex: geometry.l2Index(of: offset), table: l1Entry.tableOffset.byteOffset,
      geometry: geometry)
    guard let page = cache.find(0, place.pageOffset), cache.pages[page].state == .ready else {
      return nil
    }
    let word = cache.pages[page].buffer.loadBigEndian64(
      at: place.entryInPage << geometry.l2EntryBits)
    return flaw(of: L2Entry(rawValue: word), geometry).map { flaw in
      "L2 entry \(geometry.l2Index(of: offset)) of the table at host offset "
        + "\(l1Entry.tableOffset.byteOffset) (guest offset \(cursor)) is "
        + "0x\(String(word, radix: 16))\(flaw)"
    }
  }

  /// What is wrong with a page of a table of the active layer that was just read, because of where
  /// it lies: writing it back would destroy something else.
  mutating func misplacement(ofPage page: Int) -> String? {
    guard !isReadOnly, cache.pages[page].layer == 0, overlapGuard.mode != .none else { return nil }
    let geometry = layers[0].geometry
    let host = cache.pages[page].hostOffset
    let cluster = host >> UInt64(geometry.clusterBits)
    guard host < allocator.fileByteCount else {
      return "a table at host offset \(host) lies behind the end of the file"
    }
    let kind = cache.pages[page].kind
    guard mayHoldTables(cluster, geometry),
      let holder = holder(of: cluster, geometry, besides: kind)
    else { return nil }
    return kind == .l2
      ? "the L2 table of L1 entry \(cache.pages[page].l1Index) lies on \(holder)"
      : "a refcount block at host offset \(host) lies on \(holder)"
  }
}
