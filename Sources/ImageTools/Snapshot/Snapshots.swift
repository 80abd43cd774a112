// SPDX-License-Identifier: Apache-2.0
//
// The verbs on internal snapshots of an image at rest, or of one whose export stands still, in the
// order of writes that leaves at worst leaked clusters: counts go up before something new is named,
// and down after it is named no more.
// Spec: qcow2.rst, "Snapshots"; Qcow2.docc/Durability.md.

import BlockTypes
import LinuxIO
import Qcow2

/// Internal snapshots: taking, going back, deleting. `remote` opens images that are no files.
public enum Snapshots {
  /// Longest name, in bytes, that QEMU shows whole.
  public static let nameByteCountMax = 255

  /// Takes a snapshot of the disk as it is and returns its id.
  ///
  /// Refuses, before anything is changed, an image whose reference counts are too narrow. Several
  /// snapshots may have one name, as with QEMU.
  public static func create(
    path: String, format: ImageFormat?, name: String, remote: (any RemoteOpener)? = nil
  ) throws(ImageFault) -> String {
    try requireName(name, path)
    return try create(SnapshotEditor(path: path, format: format, remote: remote), name)
  }

  /// The same for the image of an export that stands still: nobody else uses the file meanwhile,
  /// and all that the export knows is in it.
  public static func create(
    inStandingStill storage: LayerFile, name: String
  ) throws(ImageFault) -> String {
    try requireName(name, storage.path)
    return try create(SnapshotEditor(standingStill: storage), name)
  }

  private static func requireName(_ name: String, _ path: String) throws(ImageFault) {
    guard (1...nameByteCountMax).contains(name.utf8.count) else {
      throw ImageFault(
        path, "a snapshot's name has 1 to \(nameByteCountMax) bytes", wayOut: "choose another",
        kind: .refused)
    }
  }

  private static func create(
    _ editor: SnapshotEditor, _ name: String
  ) throws(ImageFault) -> String {
    let old = editor.snapshots
    guard old.entries.count < Header.snapshotCountMax else {
      throw ImageFault(
        editor.storage.path, "it has \(old.entries.count) snapshots, as many as there can be",
        wayOut: "delete some first", kind: .refused)
    }
    guard editor.header.completeBitmapsMask == 0 else {
      // `qemu-img check -r` forgets all snapshots where it finds an autoclear bit that it does not
      // know (QEMU 7.2 to 10.0): the two never go together (decision 0024).
      throw ImageFault(
        editor.storage.path, "its bitmaps are in use since a crash, and complete",
        wayOut: "serve the image once and end that, or remove the bitmaps", kind: .refused)
    }
    try editor.requireRoom(for: editor.activeWalk)
    let header = editor.header
    let l1ByteCount = UInt64(header.l1EntryCount) * 8
    let l1Copy =
      l1ByteCount == 0
      ? HostOffset(byteOffset: 0) : try editor.counts.allocate(byteCount: l1ByteCount)
    let now = LocalTime.sinceEpoch
    let entry = SnapshotEntry(
      id: old.nextID, name: name, l1TableOffset: l1Copy, l1EntryCount: header.l1EntryCount,
      diskByteCount: header.diskByteCount,
      date: (UInt32(truncatingIfNeeded: now.seconds), UInt32(truncatingIfNeeded: now.nanoseconds)))
    let new = SnapshotTable(entries: old.entries + [entry])
    let place = try editor.place(new)
    try copyL1Table(editor, to: l1Copy, entryCount: header.l1EntryCount)
    try editor.counts.flush()
    // From here on clusters are shared, and their flags lag behind their counts.
    try editor.changeHeader { editor.markDirty(true, in: &$0) }
    try editor.activeWalk.run { (cluster, _) throws(ImageFault) in
      try editor.counts.raise(cluster)
    }
    try editor.counts.flush()
    try editor.correctFlags(in: editor.header)
    try editor.storage.synchronize()
    try editor.changeHeader {
      $0.snapshotCount = new.entries.count
      $0.snapshotTableOffset = place
      editor.markDirty(false, in: &$0)
    }
    do throws(ImageFault) {
      try editor.release(old, at: header.snapshotTableOffset)
      try editor.counts.flush()
    } catch {
      throw error.after("snapshot \(entry.id) is made all the same, and clusters may be leaked")
    }
    return entry.id
  }

  /// Copies the active L1 table, without its flags.
  private static func copyL1Table(
    _ editor: SnapshotEditor, to copy: HostOffset, entryCount: Int
  ) throws(ImageFault) {
    let words = try editor.storage.read(
      at: editor.header.l1TableOffset.byteOffset, byteCount: entryCount * 8
    ).bigEndianWords()
    try writeTable(editor, words, to: copy)
  }

  private static func writeTable(
    _ editor: SnapshotEditor, _ words: [UInt64], to offset: HostOffset
  ) throws(ImageFault) {
    guard !words.isEmpty else { return }
    var bytes: [UInt8] = []
    bytes.reserveCapacity(words.count * 8)
    for word in words { bytes.appendBigEndian(word & ~L1Entry.copiedFlag) }
    try editor.write(bytes, at: offset)
  }

  /// Makes the disk what it was when the snapshot was taken; what was written since is lost.
  ///
  /// The disk gets the size that it had then. A machine's state stays with the snapshot.
  public static func apply(
    path: String, format: ImageFormat?, idOrName: String, remote: (any RemoteOpener)? = nil
  ) throws(ImageFault) {
    let editor = try SnapshotEditor(path: path, format: format, remote: remote)
    let entry = editor.snapshots.entries[try editor.index(of: idOrName)]
    let header = editor.header
    let diskByteCount = entry.diskByteCount ?? header.diskByteCount
    try requireApplicable(editor, diskByteCount)
    let entryCount = header.geometry.l1EntryCount(forDiskOf: diskByteCount)
    let walk = editor.walk(of: entry, entryCountMax: entryCount)
    try editor.requireRoom(for: walk)
    // The snapshot's own table may be shorter, and has entries of a machine's state behind.
    var words = try editor.storage.read(
      at: entry.l1TableOffset.byteOffset, byteCount: walk.l1EntryCount * 8
    ).bigEndianWords()
    words += [UInt64](repeating: 0, count: entryCount - words.count)
    let table =
      words.isEmpty
      ? HostOffset(byteOffset: 0) : try editor.counts.allocate(byteCount: UInt64(words.count) * 8)
    try writeTable(editor, words, to: table)
    try editor.counts.flush()
    try walk.run { (cluster, _) throws(ImageFault) in try editor.counts.raise(cluster) }
    try editor.counts.flush()
    // All clusters of the new table are shared now. Flags that are still set would let a writer
    // overwrite the snapshot.
    var new = editor.header
    new.l1TableOffset = table
    new.l1EntryCount = words.count
    new.diskByteCount = diskByteCount
    try editor.correctFlags(in: new)
    try editor.storage.synchronize()
    let oldWalk = editor.activeWalk
    try editor.changeHeader { $0 = new }
    try oldWalk.run { (cluster, _) throws(ImageFault) in try editor.counts.lower(cluster) }
    try editor.counts.lower(
      from: header.l1TableOffset, byteCount: UInt64(header.l1EntryCount) * 8)
    try editor.counts.flush()
  }

  private static func requireApplicable(
    _ editor: SnapshotEditor, _ diskByteCount: UInt64
  ) throws(ImageFault) {
    let header = editor.header
    if header.version < 3, diskByteCount != header.diskByteCount {
      throw ImageFault(
        editor.storage.path,
        "the disk had another size then, and an image of version 2 with snapshots keeps its size",
        wayOut: "upgrade it (qemu-img amend -o compat=1.1)", kind: .unsupported)
    }
    if header.hasPersistentBitmaps {
      throw ImageFault(
        editor.storage.path, "its persistent bitmaps would not tell what this changes",
        wayOut: "remove them first (strata bitmap remove)", kind: .refused)
    }
    guard diskByteCount <= Header.fileByteCountMax,
      header.geometry.l1EntryCount(forDiskOf: diskByteCount) <= Header.l1TableByteCountMax / 8
    else { throw editor.counts.damaged("the snapshot's disk has \(diskByteCount) bytes") }
  }

  /// Deletes a snapshot and gives the space back that nothing else uses.
  public static func delete(
    path: String, format: ImageFormat?, idOrName: String, remote: (any RemoteOpener)? = nil
  ) throws(ImageFault) {
    _ = try delete(SnapshotEditor(path: path, format: format, remote: remote), idOrName)
  }

  /// The same for the image of an export that stands still. Returns the snapshot's id.
  public static func delete(
    inStandingStill storage: LayerFile, idOrName: String
  ) throws(ImageFault) -> String {
    try delete(SnapshotEditor(standingStill: storage), idOrName)
  }

  private static func delete(
    _ editor: SnapshotEditor, _ idOrName: String
  ) throws(ImageFault) -> String {
    let old = editor.snapshots
    let index = try editor.index(of: idOrName)
    let entry = old.entries[index]
    let walk = editor.walk(of: entry)
    // Nothing is changed when the snapshot's tables cannot be followed.
    try walk.run { (_, _) throws(ImageFault) in }
    var rest = old.entries
    rest.remove(at: index)
    let new = SnapshotTable(entries: rest)
    let place = try editor.place(new)
    try editor.counts.flush()
    let header = editor.header
    // From here on counts go down, and the flags of the disk's own tables lag behind them.
    try editor.changeHeader {
      $0.snapshotCount = new.entries.count
      $0.snapshotTableOffset = place
      editor.markDirty(true, in: &$0)
    }
    do throws(ImageFault) {
      try walk.run { (cluster, _) throws(ImageFault) in try editor.counts.lower(cluster) }
      try editor.counts.lower(
        from: entry.l1TableOffset, byteCount: UInt64(entry.l1EntryCount) * 8)
      try editor.release(old, at: header.snapshotTableOffset)
      try editor.counts.flush()
      try editor.correctFlags(in: editor.header)
      try editor.storage.synchronize()
      try editor.changeHeader { editor.markDirty(false, in: &$0) }
    } catch {
      throw error.after("snapshot \(entry.id) is gone all the same, and clusters may be leaked")
    }
    return entry.id
  }
}
