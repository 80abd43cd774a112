// SPDX-License-Identifier: Apache-2.0
//
// From finished requests to a client's bytes. Spec: proto.md, "Simple reply message",
// "Structured reply chunk message", "Reply chunk types"; its branch extension-ext-header.

import BlockTypes
import LinuxIO
import NBDProtocol

extension ExportLoop {
  /// Queues the reply of a finished request; the last piece retires its slot.
  mutating func appendReply(_ index: Int, _ slot: Int) {
    let request = image.requests.slots[slot].identity
    let command = image.requests.slots[slot].command
    let error = NBDErrno(
      image.requests.slots[slot].error, for: command, flags: image.requests.slots[slot].flags)
    let framing = connections[index].framing
    switch command {
    case .read where framing.hasChunks && error != .none:
      appendReadError(index, slot, error)
    case .read where framing.hasChunks: appendChunks(index, slot)
    case .read where error == .none && image.requests.slots[slot].length > 0:
      let start = image.requests.slots[slot].offset
      let payload = payload(slot, start, start + image.requests.slots[slot].length)
      append(index, payload, slot) {
        SimpleReply.encode(error: .none, cookie: request.cookie, into: &$0, at: 0)
      }
    case .blockStatus where error == .none: appendStatus(index, slot)
    case .read, .write, .disconnect, .flush, .trim, .cache, .writeZeroes, .blockStatus, .resize:
      append(index, .none, slot) {
        framing.encodeResult(error, of: command, to: request, into: &$0, at: 0)
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

  /// Answers a request that was refused before it had a slot.
  mutating func appendRefusal(_ index: Int) {
    let error = connections[index].drainError
    let request = connections[index].drainIdentity
    let command = Command(rawValue: connections[index].drainCommand)
    let framing = connections[index].framing
    countRefusal(index, command)
    append(index, .none, -1) {
      framing.encodeResult(error, of: command, to: request, into: &$0, at: 0)
    }
    wantTransmit(index)
  }

  // MARK: READ in chunks

  private mutating func appendChunks(_ index: Int, _ slot: Int) {
    let request = image.requests.slots[slot].identity
    let end = request.offset + image.requests.slots[slot].length
    guard request.offset < end else {
      let framing = connections[index].framing
      append(index, .none, slot) { framing.encodeNone(to: request, into: &$0, at: 0) }
      return
    }
    appendContent(index, slot, upTo: end, isWhole: true)
  }

  /// What was read before the place that could not be, then the error and its place.
  ///
  /// - Spec: proto.md, "NBD_REPLY_TYPE_ERROR_OFFSET": the client can tell the partial success.
  private mutating func appendReadError(_ index: Int, _ slot: Int, _ error: NBDErrno) {
    let request = image.requests.slots[slot].identity
    let place = image.requests.slots[slot].errorOffset
    let framing = connections[index].framing
    guard place >= request.offset,
      place - request.offset < image.requests.slots[slot].length
    else {
      append(index, .none, slot) {
        framing.encodeResult(error, of: .read, to: request, into: &$0, at: 0)
      }
      return
    }
    appendContent(index, slot, upTo: place, isWhole: false)
    append(index, .none, slot) {
      framing.encodeErrorOffset(to: request, error: error, offset: place, into: &$0, at: 0)
    }
  }

  /// A data chunk for each run of data, a hole chunk for each run of zeroes that was left out. The
  /// last one ends the reply when this is the whole of it.
  private mutating func appendContent(
    _ index: Int, _ slot: Int, upTo end: UInt64, isWhole: Bool
  ) {
    let request = image.requests.slots[slot].identity
    let framing = connections[index].framing
    var cursor = request.offset
    for number in 0..<image.requests.slots[slot].holeCount {
      // The scan was rounded out to the alignment; the reply is not.
      let hole = image.requests.slots[slot].holes[number]
      let start = max(hole.offset, request.offset)
      let holeEnd = min(hole.offset + hole.byteCount, end)
      guard start < holeEnd else { continue }
      if cursor < start { appendData(index, slot, cursor, start, isLast: false) }
      let isLast = isWhole && holeEnd == end
      append(index, .none, isLast ? slot : -1) {
        framing.encodeHole(
          to: request, offset: start, byteCount: UInt32(holeEnd - start), isDone: isLast,
          into: &$0, at: 0)
      }
      cursor = holeEnd
    }
    if cursor < end { appendData(index, slot, cursor, end, isLast: isWhole) }
  }

  private mutating func appendData(
    _ index: Int, _ slot: Int, _ start: UInt64, _ end: UInt64, isLast: Bool
  ) {
    let request = image.requests.slots[slot].identity
    let framing = connections[index].framing
    append(index, payload(slot, start, end), isLast ? slot : -1) {
      framing.encodeDataHeader(
        to: request, offset: start, byteCount: UInt32(end - start), isDone: isLast, into: &$0,
        at: 0)
    }
  }

  // MARK: BLOCK_STATUS

  /// One chunk for each context that was asked for, with the extents as they stand in the slot's
  /// buffer.
  private mutating func appendStatus(_ index: Int, _ slot: Int) {
    let request = image.requests.slots[slot].identity
    let framing = connections[index].framing
    let buffer = image.requests.slots[slot].buffer
    let extents = image.requests.slots[slot].statusExtents
    var contexts = extents.contexts
    while let contextID = contexts.popFirst() {
      let isLast = contexts.isEmpty
      let run = extents.run(of: contextID, in: buffer)
      let byteCount = run.count * framing.extentByteCount
      append(index, DiskQueue.Piece(buffer, run.start, byteCount), isLast ? slot : -1) {
        framing.encodeStatusHeader(
          to: request, contextID: contextID, extentCount: run.count, isDone: isLast, into: &$0,
          at: 0)
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
