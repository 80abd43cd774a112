// SPDX-License-Identifier: Apache-2.0
//
// What a write leaves of its new clusters: read from below, or zeroes. Head and tail are read one
// after the other, or in one read where the write between them is small.
// Spec: qcow2.rst, "Cluster mapping".

import BlockTypes
import LinuxIO

extension ImageStack {
  /// Bytes between head and tail that are read, and not needed, so that one read brings both.
  private static var skippedByteCountMax: UInt64 { 16 << 10 }

  /// Gets the bytes of the new clusters that lie before (or behind) the write.
  mutating func fill(_ index: Int) -> Progress {
    if requests.slots[index].scan.end == 0 {
      if case .waits = beginFill(index) { return .waits }
      if requests.slots[index].error != .none { return .more }
    }
    if requests.slots[index].scan.end != 0 {
      if case .waits = continueScan(index) { return .waits }
      if requests.slots[index].error != .none { return .more }
    }
    requests.slots[index].scan = Scan()
    let isHead = requests.slots[index].stage == .fillingHead
    if isHead, !requests.slots[index].allocation.fillIsWhole {
      requests.slots[index].stage = .fillingTail
      return .more
    }
    return waitForJoiners(index)
  }

  /// Begins to read the head or the tail, or both at once, if they are not zeroes.
  private mutating func beginFill(_ index: Int) -> Progress {
    let isHead = requests.slots[index].stage == .fillingHead
    let range = fillRange(index, isHead: isHead)
    switch fillSource(index, range) {
    case .waits: return .waits
    case .zeroes:
      setFillIsZero(index, isHead: isHead)
      return .more
    case .failed: return fail(index, .io)
    case .data: break
    }
    if isHead, placedPart(index, of: index).byteCount <= ImageStack.skippedByteCountMax {
      switch fillSource(index, fillRange(index, isHead: false)) {
      case .waits: return .waits
      case .zeroes: break
      case .failed: return fail(index, .io)
      case .data: requests.slots[index].allocation.fillIsWhole = true
      }
    }
    let isWhole = requests.slots[index].allocation.fillIsWhole
    return readFill(index, isWhole ? placedRange(index) : range, isHead: isHead)
  }

  private mutating func readFill(_ index: Int, _ range: ByteRange, isHead: Bool) -> Progress {
    guard let buffer = buffers.acquire(byteCount: Int(range.byteCount)) else {
      return fail(index, .noMemory)
    }
    if isHead {
      requests.slots[index].allocation.headFill = buffer
    } else {
      requests.slots[index].allocation.tailFill = buffer
    }
    beginScan(index, range, into: buffer, stage: requests.slots[index].stage, then: .placing)
    return .more
  }

  private mutating func setFillIsZero(_ index: Int, isHead: Bool) {
    if isHead {
      requests.slots[index].allocation.headIsZero = true
    } else {
      requests.slots[index].allocation.tailIsZero = true
    }
  }

  /// The part of the new clusters before, or behind, the aligned range of the write.
  private func fillRange(_ index: Int, isHead: Bool) -> ByteRange {
    let run = placedRange(index)
    if isHead { return ByteRange(start: run.start, end: requests.slots[index].placeCursor) }
    let end = min(requests.slots[index].placeEnd, run.end)
    return ByteRange(start: end, end: run.end)
  }

  private enum FillSource { case zeroes, data, waits, failed }

  /// Whether the fill is all zeroes, which needs neither a buffer nor, on fresh clusters, a write.
  private mutating func fillSource(_ index: Int, _ range: ByteRange) -> FillSource {
    // A subcluster that has a place here may show what is below.
    if requests.slots[index].allocation.reusesHost, !layers[0].geometry.hasSubclusters {
      return .zeroes
    }
    var cursor = range.start
    while cursor < range.end {
      switch resolve(cursor, range.end) {
      case .zero(_, let byteCount, _): cursor += byteCount
      case .data, .compressed: return .data
      case .needsIndex(let pageStart):
        if case .waits = fillIndex(index, pageStart) { return .waits }
      case .damaged: return .failed
      case .needsTable(let layer, let pageOffset, let l1Index):
        _ = waitForTable(index, layer, pageOffset, .l2, l1Index)
        return .waits
      }
    }
    return .zeroes
  }
}
