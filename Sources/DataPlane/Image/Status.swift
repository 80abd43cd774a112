// SPDX-License-Identifier: Apache-2.0
//
// BLOCK_STATUS: `base:allocation` and `qemu:allocation-depth` from the same lookup that reads use,
// and dirty bitmaps. A request costs a bounded number of runs and of tables, however long it is.
// Spec: proto.md, "NBD_CMD_BLOCK_STATUS", "Metadata querying"; QEMU docs/interop/nbd.rst for the
// depth context.

import BlockTypes
import LinuxIO
import NBDProtocol
import Qcow2

/// The bits of `base:allocation`.
enum AllocationStatus {
  static let hole: UInt32 = 1
  static let zero: UInt32 = 2
}

extension ImageStack {
  /// Runs that one request looks at before others get a turn.
  private static var runsPerTurnMax: Int { 4096 }

  mutating func startStatus(_ index: Int) {
    requests.slots[index].zeroCursor = requests.slots[index].offset
    requests.slots[index].stage = .collectingStatus
  }

  /// Collects extents until the range or the room for them ends.
  mutating func collectStatus(_ index: Int) -> Progress {
    if requests.slots[index].poolCount > 0 { return .waits }
    guard requests.slots[index].statusExtents.needsTables else { return finishStatus(index) }
    let end = requests.slots[index].offset + requests.slots[index].length
    var turn = 0
    while requests.slots[index].zeroCursor < end {
      turn += 1
      if turn > ImageStack.runsPerTurnMax { return yield(index) }
      // An answer may be shorter than what was asked for: the client asks on from its end.
      if requests.slots[index].statusExtents.isEnough(isStopping: isStopping) { break }
      let cursor = requests.slots[index].zeroCursor
      var hasRoom = true
      switch resolve(cursor, end) {
      case .zero(let layer, let byteCount, let isProvisioned):
        let status =
          isProvisioned
          ? AllocationStatus.zero
          : AllocationStatus.zero | AllocationStatus.hole
        hasRoom = addStatus(index, byteCount, status, depth: layer.map { $0 + 1 } ?? 0)
      case .compressed(let layer, _, let byteCount):
        hasRoom = addStatus(index, byteCount, 0, depth: layer + 1)
      case .data(let layer, _, let byteCount):
        if layers[layer].isRaw {
          switch rawStatus(index, layer, cursor, byteCount) {
          case .waits: return .waits
          case .known(let status, let known):
            hasRoom = addStatus(index, known, status, depth: layer + 1)
          }
        } else {
          hasRoom = addStatus(index, byteCount, 0, depth: layer + 1)
        }
      case .needsTable(let layer, let pageOffset, let l1Index):
        requests.slots[index].statusExtents.tableCount += 1
        return waitForTable(index, layer, pageOffset, .l2, l1Index)
      case .needsIndex(let pageStart):
        if case .waits = fillIndex(index, pageStart) {
          requests.slots[index].statusExtents.tableCount += 1
          return .waits
        }
      case .damaged: return fail(index, .io)
      }
      if !hasRoom { break }
    }
    return finishStatus(index)
  }

  /// Ends the answer with the bitmaps, which need no tables: each context may end elsewhere.
  private mutating func finishStatus(_ index: Int) -> Progress {
    collectDirtiness(index)
    requests.slots[index].stage = .finished
    return .more
  }

  // MARK: Extents

  /// Adds a run to the answers; false when they are to end before it.
  private mutating func addStatus(
    _ index: Int, _ byteCount: UInt64, _ status: UInt32, depth: Int
  ) -> Bool {
    let limit = requests.slots[index].extentsMax
    let buffer = requests.slots[index].buffer
    let isAdded = requests.slots[index].statusExtents.add(
      byteCount, status, depth: UInt32(depth), limit: limit, to: buffer)
    if isAdded { requests.slots[index].zeroCursor += byteCount }
    return isAdded
  }

  // MARK: Raw layers

  private enum RawStatus {
    case known(status: UInt32, byteCount: UInt64)
    case waits
  }

  /// Asks the filesystem, on the blocking pool, whether a raw layer has data at the cursor.
  private mutating func rawStatus(
    _ index: Int, _ layer: Int, _ cursor: UInt64, _ byteCount: UInt64
  ) -> RawStatus {
    if requests.slots[index].statusExtents.rawWasAsked {
      requests.slots[index].statusExtents.rawWasAsked = false
      let answer = requests.slots[index].poolValue
      // Positive: data up to there; negative: a hole up to there; 0: the filesystem cannot tell.
      let rawEnd = answer == 0 ? cursor + byteCount : UInt64(answer.magnitude)
      requests.slots[index].statusExtents.rawLayer = layer
      requests.slots[index].statusExtents.rawIsData = answer >= 0
      requests.slots[index].statusExtents.rawEnd = max(rawEnd, cursor + 1)
    }
    let extents = requests.slots[index].statusExtents
    if extents.rawLayer == layer, cursor < extents.rawEnd {
      return .known(
        status: extents.rawIsData ? 0 : AllocationStatus.zero | AllocationStatus.hole,
        byteCount: min(byteCount, extents.rawEnd - cursor))
    }
    let storage = storages[layer]
    let diskByteCount = layers[layer].diskByteCount
    requests.slots[index].statusExtents.rawWasAsked = true
    submitToPool(index) {
      ImageStack.seekRun(storage, from: cursor, diskByteCount: diskByteCount)
    }
    return .waits
  }

  private static func seekRun(
    _ storage: LayerFile, from cursor: UInt64, diskByteCount: UInt64
  ) -> Int64 {
    do throws(SystemError) {
      guard let data = try storage.file.nextData(from: cursor) else {
        return -Int64(diskByteCount)
      }
      if data > cursor { return -Int64(min(data, diskByteCount)) }
      let hole = try storage.file.nextHole(from: cursor) ?? diskByteCount
      return Int64(min(hole, diskByteCount))
    } catch {
      return 0
    }
  }
}
