// SPDX-License-Identifier: Apache-2.0
//
// WRITE_ZEROES and TRIM of whole clusters of an image with an external data file. A cluster's place
// there is its own for ever, so it cannot be given back later, when new bytes may lie in it: the
// space is punched out (or, with NO_HOLE, zeroed) first, while nobody gives the clusters a place,
// and the entries follow. What reads the data file as a raw image finds zeroes, too.
// Spec: qcow2.rst, "Header" (external data file, raw external data).

import BlockTypes
import LinuxIO
import NBDProtocol
import Qcow2

extension ImageStack {
  /// Largest run that one call on the blocking pool clears, so that others have their turns.
  private static var clearedByteCountMax: UInt64 { 1 << 30 }

  /// Begins with the clusters from the cursor on: as many as one page of a table maps.
  mutating func beginClearing(_ index: Int) -> Progress {
    let geometry = layers[0].geometry
    let cursor = requests.slots[index].zeroCursor
    let entriesPerPage = UInt64(geometry.pageByteCount / 8)
    let pageEnd = (cursor + 1).alignedUp(to: entriesPerPage << UInt64(geometry.clusterBits))
    let end = min(
      requests.slots[index].bodyEnd, pageEnd, cursor + ImageStack.clearedByteCountMax)
    let count = max(1, (end - cursor) >> UInt64(geometry.clusterBits))
    return beginProvision(index, Int(count), host: cursor)
  }

  /// Clears the run in the data file, whose bytes end with the disk.
  mutating func clear(_ index: Int) -> Progress {
    let start = requests.slots[index].allocation.guestStart
    requests.slots[index].allocation.host = start
    let range = ByteRange(
      start: start, end: min(allocationRange(index).end, layers[0].diskByteCount))
    let storage = storages[layers[0].dataFile]
    let keepsSpace = leavesNoHole(index)
    requests.slots[index].stage = .mappingZeroes
    submitToPool(index) {
      BlockingPool.errno { () throws(SystemError) in
        if keepsSpace {
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
        try storage.file.punchHole(ByteRange(start: old, end: min(byteCount, new)))
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
