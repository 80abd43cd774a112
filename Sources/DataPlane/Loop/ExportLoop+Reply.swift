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
    let request = image.requests.slots[slot]
    let error = NBDErrno(request.error, for: request.command, flags: request.flags)
    let isStructured = connections[index].agreedRules.negotiated.structuredReplies
    switch request.command {
    case .read where isStructured && error != .none:
      appendErrorChunk(index, request.cookie, error, slot)
    case .read where isStructured: appendChunks(index, request, slot)
    case .read where error == .none && request.length > 0:
      let payload = DiskQueue.Piece(
        request.buffer, Int(request.offset - request.bufferStart), Int(request.length))
      append(index, payload, slot) {
        SimpleReply.encode(error: .none, cookie: request.cookie, into: &$0, at: 0)
      }
    case .blockStatus where error != .none:
      appendErrorChunk(index, request.cookie, error, slot)
    case .blockStatus: appendStatus(index, request, slot)
    case .read, .write, .disconnect, .flush, .trim, .cache, .writeZeroes, .resize:
      append(index, .none, slot) {
        SimpleReply.encode(error: error, cookie: request.cookie, into: &$0, at: 0)
      }
    }
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
  private mutating func appendChunks(_ index: Int, _ request: RequestSlot, _ slot: Int) {
    let end = request.offset + request.length
    if request.length == 0 {
      append(index, .none, slot) {
        StructuredReply.encodeNone(cookie: request.cookie, into: &$0, at: 0)
      }
      return
    }
    var cursor = request.offset
    for number in 0..<request.holeCount {
      // The scan was rounded out to the alignment; the reply is not.
      let start = max(request.holes[number].offset, request.offset)
      let holeEnd = min(request.holes[number].offset + request.holes[number].byteCount, end)
      guard start < holeEnd else { continue }
      if cursor < start { appendData(index, request, cursor, start, slot, isLast: false) }
      let isLast = holeEnd == end
      append(index, .none, isLast ? slot : -1) {
        StructuredReply.encodeHole(
          cookie: request.cookie, offset: start, byteCount: UInt32(holeEnd - start),
          isDone: isLast, into: &$0, at: 0)
      }
      cursor = holeEnd
    }
    if cursor < end { appendData(index, request, cursor, end, slot, isLast: true) }
  }

  private mutating func appendData(
    _ index: Int, _ request: RequestSlot, _ start: UInt64, _ end: UInt64, _ slot: Int,
    isLast: Bool
  ) {
    let payload = DiskQueue.Piece(
      request.buffer, Int(start - request.bufferStart), Int(end - start))
    append(index, payload, isLast ? slot : -1) {
      StructuredReply.encodeOffsetDataHeader(
        cookie: request.cookie, offset: start, dataByteCount: UInt32(end - start),
        isDone: isLast, into: &$0, at: 0)
    }
  }

  // MARK: BLOCK_STATUS

  /// One chunk for each selected context, with the extents as they stand in the slot's buffer.
  private mutating func appendStatus(_ index: Int, _ request: RequestSlot, _ slot: Int) {
    let contexts = connections[index].agreedRules.negotiated.contexts
    let extents = request.statusExtents
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
      append(index, DiskQueue.Piece(request.buffer, start, count * 8), isLast ? slot : -1) {
        StructuredReply.encodeBlockStatusHeader(
          cookie: request.cookie, contextID: context.wireID, extentCount: count, isDone: isLast,
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
    while !connections[index].replies.isEmpty {
      connections[index].gatherReplies()
      switch connections[index].socket.send() {
      case .bytes(let count):
        connections[index].replies.advance(count)
        retireSent(index)
      case .wouldBlock:
        connections[index].isBlockedOnSend = true
        updateInterest(index)
        return
      case .closed:
        breakConnection(index)
        return
      }
    }
    connections[index].isBlockedOnSend = false
    updateInterest(index)
    closeIfDone(index)
  }

  private mutating func retireSent(_ index: Int) {
    while let piece = connections[index].replies.popSent() {
      if piece.slot >= 0 { retire(Int(piece.slot)) }
    }
  }
}
