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

  /// Asks the filesystem, on the blocking pool, or the remote storage whether a raw layer has data
  /// at the cursor.
  private mutating func rawStatus(
    _ index: Int, _ layer: Int, _ cursor: UInt64, _ byteCount: UInt64
  ) -> RawStatus {
    if requests.slots[index].statusExtents.rawWasAsked {
      requests.slots[index].statusExtents.rawWasAsked = false
      let answer = PackedRun(rawValue: requests.slots[index].poolValue)
      requests.slots[index].statusExtents.rawLayer = layer
      requests.slots[index].statusExtents.rawStatus = answer?.status ?? 0
      requests.slots[index].statusExtents.rawEnd = cursor + (answer?.byteCount ?? byteCount)
    }
    let extents = requests.slots[index].statusExtents
    if extents.rawLayer == layer, cursor < extents.rawEnd {
      return .known(
        status: extents.rawStatus, byteCount: min(byteCount, extents.rawEnd - cursor))
    }
    requests.slots[index].statusExtents.rawWasAsked = true
    let storage = storages[layer]
    let rest = ByteRange(start: cursor, end: layers[layer].diskByteCount)
    if let remote = storage.file.remote {
      // No further than the request goes: a server may look for each byte of it.
      let range = ByteRange(start: cursor, end: cursor + byteCount)
      guard remote.tellsStatus else {
        submitToPool(index) { PackedRun.unknown }
        return .waits
      }
      submitToRemote(index, remote, .status(range)) { answer in
        guard case .success(.run(let run)) = answer else { return PackedRun.unknown }
        return PackedRun(run).rawValue
      }
      return .waits
    }
    submitToPool(index) {
      do throws(SystemError) {
        return try storage.file.firstRun(of: rest).map { PackedRun($0).rawValue }
          ?? PackedRun.unknown
      } catch {
        return PackedRun.unknown
      }
    }
    return .waits
  }
}

/// A run and its status in one number, as the blocking pool delivers results.
struct PackedRun {
  /// Nobody can tell: all counts as data.
  static let unknown: Int64 = 0

  /// At least 1.
  let byteCount: UInt64
  /// The bits of `base:allocation`.
  let status: UInt32

  init(_ run: StatusRun) {
    // A longer run is told in parts.
    byteCount = min(run.byteCount, 1 << 60)
    status =
      (run.isHole ? AllocationStatus.hole : 0) | (run.isZero ? AllocationStatus.zero : 0)
  }

  /// nil for `unknown`.
  init?(rawValue: Int64) {
    guard rawValue != PackedRun.unknown else { return nil }
    byteCount = UInt64(rawValue >> 2)
    status = UInt32(rawValue & 3)
  }

  var rawValue: Int64 { Int64(byteCount << 2) | Int64(status) }
}
