// SPDX-License-Identifier: Apache-2.0
//
// Reading the persistent bitmaps of the active layer when it is opened. Spec: qcow2.rst, "Bitmaps".

import Bitmaps
import BlockTypes
import LinuxIO
import Qcow2

extension BitmapStore {
  /// Reads the bitmaps of the active layer into `bitmaps`. What cannot be used stays as it is; the
  /// image opens all the same.
  ///
  /// - Throws: `ImageError` when the directory is damaged, `SystemError` when it cannot be read.
  static func load(_ plan: ExportPlan, into bitmaps: inout BitmapSet) throws -> BitmapStore {
    var store = BitmapStore(
      durability: plan.bitmapDurability, diskByteCount: plan.diskByteCount)
    guard case .qcow2(let header) = plan.layers[0].format else { return store }
    if !plan.isReadOnly, header.version >= 3 { store.state = .resting }
    if header.snapshotCount > 0 { store.durability = .none }
    guard header.hasPersistentBitmaps, let location = try header.bitmaps() else { return store }
    let file = plan.layers[0].storage
    let byteCount = Int(location.directoryByteCount)
    let directory = try file.file.read(
      at: location.directoryOffset.byteOffset, byteCount: byteCount)
    store.directoryHost = location.directoryOffset.byteOffset
    store.directoryByteCount = byteCount
    let entries = try BitmapEntry.list(decoding: directory, count: location.bitmapCount)
    for (index, entry) in entries.enumerated() {
      let isComplete = index < maskBitsMax && header.completeBitmapsMask >> UInt64(index) & 1 == 1
      store.bitmaps.append(
        try store.load(entry, header, file, isComplete: isComplete, plan, &bitmaps))
    }
    store.noteRecorders(bitmaps)
    try store.disclaimUnusable(plan, file)
    return store
  }

  /// Reads one bitmap.
  private mutating func load(
    _ entry: BitmapEntry, _ header: Header, _ file: LayerFile, isComplete: Bool, _ plan: ExportPlan,
    _ bitmaps: inout BitmapSet
  ) throws(SystemError) -> StoredBitmap {
    let geometry = header.geometry
    var stored = StoredBitmap(entry: entry, clusters: [])
    let fault = entry.unusableReason(in: geometry, diskByteCount: plan.diskByteCount)
    let name = entry.name
    let isKnown = self.bitmaps.contains { $0.entry.name.utf8.elementsEqual(name.utf8) }
    let tableByteCount = entry.tableEntryCount * 8
    guard tableByteCount <= BitmapEntry.dataByteCountMax / geometry.clusterByteCount * 8,
      entry.tableOffset.byteOffset < 1 << 56
    else {
      stored.reason = fault ?? "its table is too large"
      return stored
    }
    let table = try file.file.read(at: entry.tableOffset.byteOffset, byteCount: tableByteCount)
    let words = table.bigEndianWords()
    let kinds = words.map { BitmapTableEntry(rawValue: $0, geometry: geometry) }
    stored.clusters = kinds.map {
      if case .data(let host) = $0 { host.byteOffset } else { 0 }
    }
    if let fault {
      stored.reason = fault
    } else if isKnown {
      stored.reason = "another bitmap has its name"
    } else if entry.isInUse, !isComplete {
      stored.reason = "it was in use when the image was last closed, so that it may lack something"
    } else if table.count < tableByteCount || kinds.contains(.invalid) {
      stored.reason = "its table is damaged"
    }
    guard stored.reason == nil else { return stored }
    do throws(BitmapFault) {
      try NamedBitmap.validate(name: name)
      let granularity = UInt64(1) << UInt64(entry.granularityBits)
      var bits = try DirtyBitmap(
        diskByteCount: plan.diskByteCount, granularityByteCount: granularity)
      guard try BitmapStore.read(kinds, geometry, file, into: &bits) else {
        stored.reason = "its data cannot be read"
        return stored
      }
      let number = try bitmaps.restore(
        name, bits, isEnabled: entry.isAuto, isRecovered: entry.isInUse)
      stored.number = number
      stored.firstRevision = bitmaps.revision
      if entry.isInUse { hasRecovered = true }
    } catch {
      stored.reason = error.reason
    }
    return stored
  }

  /// Reads the data of a bitmap; false when the file ends before it or the disk fails.
  private static func read(
    _ table: [BitmapTableEntry], _ geometry: ClusterGeometry, _ file: LayerFile,
    into bits: inout DirtyBitmap
  ) throws(BitmapFault) -> Bool {
    let byteCount = Int(geometry.clusterByteCount)
    for (cluster, entry) in table.enumerated() {
      let firstWord = cluster * byteCount / 8
      let wordCount = min(byteCount / 8, bits.wordCount - firstWord)
      guard wordCount > 0 else { return true }
      switch entry {
      case .zeroes: continue
      case .ones: for word in 0..<wordCount { bits.mark(.max, ofWord: firstWord + word) }
      case .invalid: return false
      case .data(let host):
        let data: [UInt8]
        do throws(SystemError) {
          data = try file.file.read(at: host.byteOffset, byteCount: wordCount * 8)
        } catch {
          return false
        }
        guard data.count == wordCount * 8 else { return false }
        // Bit 0 of byte 0 is the first block, so words are little-endian.
        for (word, value) in data.bigEndianWords().enumerated() where value != 0 {
          bits.mark(value.byteSwapped, ofWord: firstWord + word)
        }
      }
    }
    return true
  }

  /// Notes which bitmaps record.
  mutating func noteRecorders(_ set: BitmapSet) {
    hasRecorders = bitmaps.contains { stored in
      stored.number.map { set[number: $0]?.isEnabled == true } ?? false
    }
  }

  /// Says of bitmaps that should record and cannot that they lack something from now on. As QEMU
  /// does, when the image is opened for writing.
  private mutating func disclaimUnusable(_ plan: ExportPlan, _ file: LayerFile) throws(SystemError)
  {
    guard state == .resting, let host = directoryHost else { return }
    var hasChanged = false
    for index in bitmaps.indices
    where !bitmaps[index].isLoaded && bitmaps[index].entry.isAuto
      && !bitmaps[index].entry.isInUse
    {
      bitmaps[index].entry.set(BitmapEntry.inUseFlag, true)
      hasChanged = true
    }
    guard hasChanged else { return }
    try file.file.write(bitmaps.flatMap(\.entry.bytes), at: host)
    try file.file.synchronize()
  }
}
