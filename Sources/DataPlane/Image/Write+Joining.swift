// SPDX-License-Identifier: Apache-2.0
//
// Writes to one cluster that come while another request is giving it a place. They join it: their
// bytes go into the same disk operation while that is not queued, and beside it afterwards, where
// it provably writes nothing. Who joined goes on when the clusters are mapped; when they are not,
// it begins anew, with its payload whole. Decision: tools/decisions/0010.

import BlockTypes
import LinuxIO

extension ImageStack {
  /// How far from the owner's bytes a joiner may be if zeroes that nobody needs have to be written
  /// between them; one that is farther is written by itself.
  private static var joinedByteCountMax: UInt64 { 64 << 10 }

  /// The part of a write that lies in what `owner` is giving a place.
  func placedPart(_ index: Int, of owner: Int) -> ByteRange {
    ByteRange(
      start: requests.slots[index].placeCursor,
      end: min(requests.slots[index].placeEnd, placedRange(owner).end))
  }

  /// Joins the request that is giving the cursor's cluster a place, or waits until it has. The
  /// disk queue has room: `place` asked.
  mutating func join(_ index: Int, _ owner: Int) -> Progress {
    let part = placedPart(index, of: owner)
    let isFree: Bool
    switch requests.slots[owner].allocation.step {
    case .taking: isFree = false
    case .gathering: isFree = !placedPart(owner, of: owner).overlaps(part)
    case .writing:
      isFree = !requests.slots[owner].allocation.written.overlaps(part)
      if isFree, !writeBeside(index, owner, part) { return fail(index, .noMemory) }
    }
    guard isFree else {
      allocationWaiters.append(index, &requests.slots)
      return .waits
    }
    var joiners = requests.slots[owner].allocation.joiners
    joiners.append(index, &requests.slots)
    requests.slots[owner].allocation.joiners = joiners
    return .waits
  }

  /// Writes a part of clusters that are not mapped yet, of which the owner's write leaves it out;
  /// false when there is no memory for that.
  private mutating func writeBeside(_ index: Int, _ owner: Int, _ part: ByteRange) -> Bool {
    let allocation = requests.slots[owner].allocation
    let piece = DiskQueue.Piece(
      requests.slots[index].buffer, Int(part.start - requests.slots[index].bufferStart),
      Int(part.byteCount))
    guard
      disks.queueWrite(
        file: layers[0].dataFile, at: allocation.host + (part.start - allocation.guestStart),
        from: [piece, .none, .none], isDurable: false, cipher: layers[0].cipher,
        tag: IOTag(.write, index).rawValue)
    else { return false }
    requests.slots[index].writeCount += 1
    return true
  }

  /// Lets the requests of this tick that have not been looked at yet join, if there is room.
  mutating func waitForJoiners(_ index: Int) -> Progress {
    requests.slots[index].stage = .gathering
    if placedPart(index, of: index) == placedRange(index) { return .more }
    wake(index)
    return .waits
  }

  // MARK: Merging

  /// Decides what the write of the clusters covers, and puts what joined into the fill; false when
  /// there is no memory for that.
  mutating func mergeJoiners(_ index: Int) -> Bool {
    let run = placedRange(index)
    let payload = placedPart(index, of: index)
    let allocation = requests.slots[index].allocation
    // Fresh clusters read as zeroes where nothing was written.
    let isFresh = allocation.isFresh
    var written = ByteRange(
      start: isFresh && allocation.headIsZero ? payload.start : run.start,
      end: isFresh && allocation.tailIsZero ? payload.end : run.end)
    // A data file ends where the disk does, or with the block of its storage in which that is.
    if layers[0].hasDataFile {
      let end = max(payload.end, min(written.end, layers[0].diskByteCount))
      written = ByteRange(start: written.start, end: end)
    }
    if !allocation.joiners.isEmpty {
      written = chooseJoiners(index, payload, written)
      guard makeFill(index, payload, written) else { return false }
      copyJoiners(index, payload, written)
    }
    requests.slots[index].allocation.written = written
    requests.slots[index].allocation.step = .writing
    return true
  }

  /// Returns `written` extended over the joiners that are near; the others write for themselves.
  private mutating func chooseJoiners(
    _ index: Int, _ payload: ByteRange, _ written: ByteRange
  ) -> ByteRange {
    var written = written
    var candidates = requests.slots[index].allocation.joiners
    var chosen = SlotList()
    while let joiner = candidates.popFirst(&requests.slots) {
      let part = placedPart(joiner, of: index)
      let isCovered = part.start >= written.start && part.end <= written.end
      let reach =
        part.end <= payload.start ? payload.start - part.start : part.end - payload.end
      guard isCovered || reach <= ImageStack.joinedByteCountMax else {
        wake(joiner)
        continue
      }
      written = ByteRange(
        start: min(written.start, part.start), end: max(written.end, part.end))
      chosen.append(joiner, &requests.slots)
    }
    requests.slots[index].allocation.joiners = chosen
    return written
  }

  /// Gives the joiners a buffer to lie in where the fill was to be zeroes.
  private mutating func makeFill(
    _ index: Int, _ payload: ByteRange, _ written: ByteRange
  ) -> Bool {
    var joiner = Int(requests.slots[index].allocation.joiners.first)
    while joiner >= 0 {
      let isHead = placedPart(joiner, of: index).end <= payload.start
      let allocation = requests.slots[index].allocation
      if isHead ? allocation.headIsZero : allocation.tailIsZero {
        let byteCount = isHead ? payload.start - written.start : written.end - payload.end
        guard let buffer = buffers.acquire(byteCount: Int(byteCount)) else { return false }
        buffer.zero(0, Int(byteCount))
        if isHead {
          requests.slots[index].allocation.headFill = buffer
          requests.slots[index].allocation.headIsZero = false
        } else {
          requests.slots[index].allocation.tailFill = buffer
          requests.slots[index].allocation.tailIsZero = false
        }
      }
      joiner = Int(requests.slots[joiner].next)
    }
    return true
  }

  private func copyJoiners(_ index: Int, _ payload: ByteRange, _ written: ByteRange) {
    let allocation = requests.slots[index].allocation
    var joiner = Int(allocation.joiners.first)
    while joiner >= 0 {
      let part = placedPart(joiner, of: index)
      // The head's buffer begins where the write does, the tail's where the payload ends.
      let isInHead = allocation.fillIsWhole || part.end <= payload.start
      let start = Int(part.start - (isInHead ? written.start : payload.end))
      (isInHead ? allocation.headFill : allocation.tailFill).copy(
        start, from: requests.slots[joiner].buffer,
        Int(part.start - requests.slots[joiner].bufferStart), Int(part.byteCount))
      joiner = Int(requests.slots[joiner].next)
    }
  }

  // MARK: The end

  /// Lets the joiners go on: behind the clusters when these are mapped, else from where they were.
  mutating func releaseJoiners(_ index: Int, isMapped: Bool) {
    var joiners = requests.slots[index].allocation.joiners
    while let joiner = joiners.popFirst(&requests.slots) {
      if isMapped {
        requests.slots[joiner].placeCursor = placedPart(joiner, of: index).end
        // Its bytes are reachable by a table in memory only.
        if requests.slots[joiner].flags.contains(.fua) {
          requests.slots[joiner].needsFlush = true
        }
      }
      wake(joiner)
    }
  }
}
