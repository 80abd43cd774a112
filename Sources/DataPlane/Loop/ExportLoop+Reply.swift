// SPDX-License-Identifier: Apache-2.0
//
// From finished requests to a client's bytes. Spec: proto.md, "Simple reply message",
// "Structured reply chunk message", "Reply chunk types".

import BlockTypes
import LinuxIO
import NBDProtocol

extension ExportLoop {
  /// Queues the reply of a finished request; the last piece retires its slot.
  mutating func appendReply(_ index: Int, _ slot: Int) {
    let cookie = image.requests.slots[slot].cookie
    let command = image.requests.slots[slot].command
    let error = NBDErrno(
      image.requests.slots[slot].error, for: command, flags: image.requests.slots[slot].flags)
    let isStructured = connections[index].agreedRules.negotiated.structuredReplies
    switch command {
    case .read where isStructured && error != .none: appendErrorChunk(index, cookie, error, slot)
    case .read where isStructured: appendChunks(index, slot)
    case .read where error == .none && image.requests.slots[slot].length > 0:
      let start = image.requests.slots[slot].offset
      let payload = payload(slot, start, start + image.requests.slots[slot].length)
      append(index, payload, slot) {
        SimpleReply.encode(error: .none, cookie: cookie, into: &$0, at: 0)
      }
    case .blockStatus where error != .none: appendErrorChunk(index, cookie, error, slot)
    case .blockStatus: appendStatus(index, slot)
    case .read, .write, .disconnect, .flush, .trim, .cache, .writeZeroes, .resize:
      append(index, .none, slot) {
        SimpleReply.encode(error: error, cookie: cookie, into: &$0, at: 0)
      }
    }
  }

  /// The bytes `start ..< end` of the disk in the buffer of a request that read them.
  private func payload(_ slot: Int, _ start: UInt64, _ end: UInt64) -> DiskQueue.Piece {
    DiskQueue.Piece(
      image.requests.slots[slot].buffer, Int(start - image.requests.slots[slot].bufferStart),
      Int(end - start))
  }

  private mutating func append(
    _ index: Int, _ payload: DiskQueue.Piece, _ slot: Int,
    _ encode: (inout MutableRawSpan) -> Int
  ) {
    connections[index].replies.append(
      payload: payload, slot: Int32(slot), &image.buffers, encode)
  }

  private mutating func appendErrorChunk(
    _ index: Int, _ cookie: UInt64, _ error: NBDErrno, _ slot: Int
  ) {
    append(index, .none, slot) {
      StructuredReply.encodeError(
        cookie: cookie, error: error, isDone: true, into: &$0, at: 0)
    }
  }

  /// Answers a request that was refused before it had a slot.
  mutating func refuse(_ index: Int) {
    let error = connections[index].drainError
    let cookie = connections[index].drainCookie
    let command = Command(rawValue: connections[index].drainCommand)
    countRefusal(index, command)
    let isStructured = connections[index].agreedRules.negotiated.structuredReplies
    if isStructured, command == .read || command == .blockStatus {
      appendErrorChunk(index, cookie, error, -1)
    } else {
      append(index, .none, -1) {
        SimpleReply.encode(error: error, cookie: cookie, into: &$0, at: 0)
      }
    }
    wantTransmit(index)
  }

  // MARK: READ in chunks

  /// A data chunk for each run of data, a hole chunk for each run of zeroes that was left out.
  private mutating func appendChunks(_ index: Int, _ slot: Int) {
    let cookie = image.requests.slots[slot].cookie
    let offset = image.requests.slots[slot].offset
    let end = offset + image.requests.slots[slot].length
    if offset == end {
      append(index, .none, slot) { StructuredReply.encodeNone(cookie: cookie, into: &$0, at: 0) }
      return
    }
    var cursor = offset
    for number in 0..<image.requests.slots[slot].holeCount {
      // The scan was rounded out to the alignment; the reply is not.
      let hole = image.requests.slots[slot].holes[number]
      let start = max(hole.offset, offset)
      let holeEnd = min(hole.offset + hole.byteCount, end)
      guard start < holeEnd else { continue }
      if cursor < start { appendData(index, slot, cookie, cursor, start, isLast: false) }
      let isLast = holeEnd == end
      append(index, .none, isLast ? slot : -1) {
        StructuredReply.encodeHole(
          cookie: cookie, offset: start, byteCount: UInt32(holeEnd - start), isDone: isLast,
          into: &$0, at: 0)
      }
      cursor = holeEnd
    }
    if cursor < end { appendData(index, slot, cookie, cursor, end, isLast: true) }
  }

  private mutating func appendData(
    _ index: Int, _ slot: Int, _ cookie: UInt64, _ start: UInt64, _ end: UInt64, isLast: Bool
  ) {
    append(index, payload(slot, start, end), isLast ? slot : -1) {
      StructuredReply.encodeOffsetDataHeader(
        cookie: cookie, offset: start, dataByteCount: UInt32(end - start), isDone: isLast,
        into: &$0, at: 0)
    }
  }

  // MARK: BLOCK_STATUS

  /// One chunk for each selected context, with the extents as they stand in the slot's buffer.
  private mutating func appendStatus(_ index: Int, _ slot: Int) {
    let contexts = connections[index].agreedRules.negotiated.contexts
    let cookie = image.requests.slots[slot].cookie
    let buffer = image.requests.slots[slot].buffer
    let extents = image.requests.slots[slot].statusExtents
    var left = contexts.count
    for context in MetaContext.allCases where contexts.contains(context) {
      left -= 1
      let isLast = left == 0
      let count: Int
      let start: Int
      switch context {
      case .baseAllocation:
        count = extents.allocationCount
        start = 0
      case .allocationDepth:
        count = extents.depthCount
        start = StatusExtents.depthStart
      }
      append(index, DiskQueue.Piece(buffer, start, count * 8), isLast ? slot : -1) {
        StructuredReply.encodeBlockStatusHeader(
          cookie: cookie, contextID: context.wireID, extentCount: count, isDone: isLast,
          into: &$0, at: 0)
      }
    }
  }

  // MARK: Sending

  /// Sends as much as the socket takes.
  mutating func transmit(_ index: Int) {
    if connections[index].isBroken {
      closeIfDone(index)
      return
    }
    if connections[index].securePlace >= 0 { return transmitSecurely(index) }
    while !connections[index].replies.isEmpty {
      connections[index].gatherReplies()
      counters.sendCallCount += 1
      switch connections[index].socket.send() {
      case .bytes(let count):
        connections[index].counters.sentByteCount += UInt64(count)
        connections[index].replies.advance(count)
        retireSent(index)
        // A part of it: the socket is full, and another try would only be told so.
        if count < connections[index].socket.gatheredByteCount { return blockOnSend(index) }
      case .wouldBlock: return blockOnSend(index)
      case .closed:
        breakConnection(index)
        return
      }
    }
    finishTransmit(index)
  }

  /// All that there was to send is in the socket.
  mutating func finishTransmit(_ index: Int) {
    connections[index].isBlockedOnSend = false
    updateInterest(index)
    closeIfDone(index)
  }

  /// Waits until the socket takes more.
  mutating func blockOnSend(_ index: Int) {
    // Nobody would tell of a socket that failed and is not watched any more.
    guard connections[index].isWatched else { return breakConnection(index) }
    connections[index].isBlockedOnSend = true
    updateInterest(index)
  }

  mutating func retireSent(_ index: Int) {
    while let piece = connections[index].replies.popSent() {
      if piece.slot >= 0 { retire(Int(piece.slot)) }
    }
  }
}
