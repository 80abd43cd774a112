// SPDX-License-Identifier: Apache-2.0
//
// WRITE_ZEROES and TRIM of whole (sub)clusters of an image with an external data file. A
// cluster's place there is its own for ever, so it cannot be given back later, when new bytes may
// lie in it: the space is punched out (or, with NO_HOLE, zeroed) first, while nobody gives the
// clusters a place, and the entries follow. What reads the data file as a raw image finds zeroes,
// too. A data file that is encrypted stays as it is: where it has a hole, an entry that is still
// the old one would find noise. Decision: tools/decisions/0038.
// Spec: qcow2.rst, "Header" (external data file, raw external data), "Extended L2 Entries".

import BlockTypes
import LinuxIO
import NBDProtocol
import Qcow2

extension ImageStack {
  /// Largest run that one call on the blocking pool clears, so that others have their turns.
  private static var clearedByteCountMax: UInt64 { 1 << 30 }

  /// Begins with the clusters (or subclusters) from the cursor on: as many as one page of a table
  /// maps.
  mutating func beginClearing(_ index: Int) -> Progress {
    let geometry = layers[0].geometry
    let cursor = requests.slots[index].zeroCursor
    let start = cursor.alignedDown(to: geometry.clusterByteCount)
    let entriesPerPage = UInt64(geometry.pageByteCount >> geometry.l2EntryBits)
    let pageEnd = (cursor + 1).alignedUp(to: entriesPerPage << UInt64(geometry.clusterBits))
    let end = min(
      requests.slots[index].bodyEnd, pageEnd, start + ImageStack.clearedByteCountMax)
    let count = geometry.clusterCount(for: end - start)
    let progress = beginProvision(index, Int(count), host: start)
    requests.slots[index].allocation.placedStart = cursor
    requests.slots[index].allocation.placedEnd = end
    return progress
  }

  /// Clears the run in the data file, whose bytes end with the disk.
  mutating func clear(_ index: Int) -> Progress {
    let placed = placedRange(index)
    let range = ByteRange(start: placed.start, end: min(placed.end, layers[0].diskByteCount))
    requests.slots[index].allocation.host = requests.slots[index].allocation.guestStart
    requests.slots[index].stage = .mappingZeroes
    let storage = storages[layers[0].dataFile]
    let keepsSpace = leavesNoHole(index)
    let isEncrypted = layers[0].cipher >= 0
    guard keepsSpace || !isEncrypted else {
      requests.slots[index].poolValue = 0
      return .more
    }
    submitToPool(index) {
      BlockingPool.errno { () throws(SystemError) in
        if isEncrypted {
          try storage.file.provision(range)
        } else if keepsSpace {
          try storage.file.zeroAndProvision(range)
        } else {
          try storage.file.punchHole(range)
        }
      }
    }
    return .waits
  }

  /// What became of the clearing: where the filesystem has no holes, entries suffice unless the
  /// data file is to read as the disk, or is to have the space.
  func clearingError(_ index: Int, _ error: BlockErrno) -> BlockErrno {
    guard layers[0].hasDataFile, error == .notSupported else { return error }
    return layers[0].dataIsRaw || leavesNoHole(index) ? error : .none
  }

  /// The entry of a cluster that reads as zeroes from now on.
  func zeroEntry(_ index: Int, _ host: HostOffset) -> L2Entry {
    guard layers[0].hasDataFile else { return L2Entry(zeroAllocatedAt: host) }
    // At offset 0 no entry can tell that there is space.
    if leavesNoHole(index), host.byteOffset > 0 { return L2Entry(zeroAllocatedAt: host) }
    return layers.count == 1 ? .unallocated : .zeroPlain
  }

  /// The same for some subclusters of a cluster. What has space keeps its descriptor, which at
  /// offset 0 tells of it, too.
  func zeroEntry(
    _ index: Int, _ old: ExtendedL2Entry, _ mask: UInt32, _ host: HostOffset
  ) -> ExtendedL2Entry {
    guard layers[0].hasDataFile, !leavesNoHole(index) else {
      return ExtendedL2Entry(L2Entry(normalAt: host), .allZero)
    }
    return zeroed(old, mask)
  }

  /// The same for the merged index.
  func zeroKind(_ index: Int) -> IndexEntry.Kind {
    !layers[0].hasDataFile || leavesNoHole(index) ? .zeroAllocated : .zero
  }

  private func leavesNoHole(_ index: Int) -> Bool {
    requests.slots[index].command == .writeZeroes
      && requests.slots[index].flags.contains(.noHole)
  }

  /// Makes a data file as long as the disk is to be, with zeroes behind its old end. Blocks the
  /// loop for a call or two; it is rare.
  mutating func growDataFile(from old: UInt64, to new: UInt64) -> BlockErrno {
    guard layers[0].hasDataFile else { return .none }
    let storage = storages[layers[0].dataFile]
    do throws(SystemError) {
      let byteCount = try storage.file.byteCount()
      if byteCount > old {
        do throws(SystemError) {
          try storage.file.punchHole(ByteRange(start: old, end: min(byteCount, new)))
        } catch {
          // A file system without holes: what lies behind the disk, and is to be zero, is cut off.
          guard error.isNotSupported, byteCount <= new else { throw error }
          try storage.file.truncate(to: old)
        }
      }
      if byteCount < new { try storage.file.truncate(to: new) }
      disks.setByteCount(max(byteCount, new), ofFile: layers[0].dataFile)
    } catch {
      return BlockErrno(systemErrno: error.errno)
    }
    hasUnsyncedWrites = true
    return .none
  }
}
