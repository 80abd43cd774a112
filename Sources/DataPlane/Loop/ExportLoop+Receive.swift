// SPDX-License-Identifier: Apache-2.0
//
// From a client's bytes to requests. Back-pressure is not reading: a client whose next request
// finds no slot or no buffer of its share keeps its bytes in the socket, and nobody else waits.
// Spec: proto.md, "Transmission phase", "Request message".

import BlockTypes
import LinuxIO
import NBDProtocol

extension ExportLoop {
  mutating func connectionEvent(_ index: Int, _ what: EventLoop.Interest) {
    guard connections.isOccupied(index) else { return }
    if what.contains(.writable) { wantTransmit(index) }
    if !what.isDisjoint(with: .failed) {
      // Reported again and again whatever is watched for, so watch no longer. What the client sent
      // before it left is still read, and carried out.
      unwatch(index)
      if case .finishing = connections[index].phase {
        breakConnection(index)
        return
      }
    }
    receive(index)
  }

  mutating func unwatch(_ index: Int) {
    guard connections[index].isWatched else { return }
    connections[index].isWatched = false
    events.remove(connections[index].socket.descriptor)
  }

  /// Receives what one call brings (all there is, once the client has gone) and acts on it.
  mutating func receive(_ index: Int) {
    repeat {
      if case .finishing = connections[index].phase { return }
      if connections[index].isStalled { return }
      let (first, second) = receivePieces(index)
      switch connections[index].socket.receive(into: first, then: second) {
      case .wouldBlock: return
      case .closed:
        connections[index].phase = .finishing
        updateInterest(index)
        closeIfDone(index)
        return
      case .bytes(let count):
        accept(index, count, payloadByteCount: first.byteCount, hasPayload: second.byteCount > 0)
        parse(index)
      }
    } while connections.isOccupied(index) && !connections[index].isWatched
  }

  /// Where the next bytes go: the rest of a payload straight into its request's buffer, the rest
  /// behind what is not understood yet.
  private mutating func receivePieces(_ index: Int) -> (DiskQueue.Piece, DiskQueue.Piece) {
    let buffer = connections[index].buffer
    let unread = unreadByteCount(index)
    if connections[index].received > 0 {
      buffer.move(0, from: connections[index].received, unread)
      connections[index].received = 0
      connections[index].receivedEnd = unread
    }
    let tail = DiskQueue.Piece(buffer, unread, buffer.byteCount - unread)
    let slot = Int(connections[index].payloadSlot)
    guard slot >= 0 else { return (tail, .none) }
    precondition(unread == 0, "bytes behind an unfinished payload were kept")
    return (payloadPiece(slot), tail)
  }

  /// The part of a request's buffer that its payload has not filled yet.
  private func payloadPiece(_ slot: Int) -> DiskQueue.Piece {
    let request = image.requests.slots[slot]
    let start = request.offset - request.bufferStart + request.receivedByteCount
    return DiskQueue.Piece(
      request.buffer, Int(start), Int(request.length - request.receivedByteCount))
  }

  private mutating func accept(
    _ index: Int, _ count: Int, payloadByteCount: Int, hasPayload: Bool
  ) {
    guard hasPayload else {
      connections[index].receivedEnd += count
      return
    }
    let payload = min(count, payloadByteCount)
    image.requests.slots[Int(connections[index].payloadSlot)].receivedByteCount += UInt64(payload)
    connections[index].receivedEnd += count - payload
  }

  /// Bytes that were received and are not understood yet.
  private func unreadByteCount(_ index: Int) -> Int {
    connections[index].receivedEnd - connections[index].received
  }

  // MARK: Parsing

  /// Acts on the bytes that are there, until more are needed or the next request has to wait.
  mutating func parse(_ index: Int) {
    while connections.isOccupied(index) {
      let goesOn: Bool
      switch connections[index].phase {
      case .handshake: goesOn = parseHandshake(index)
      case .transmission: goesOn = parseTransmission(index)
      case .finishing: goesOn = false
      }
      if !goesOn { break }
    }
    if connections.isOccupied(index) { updateInterest(index) }
  }

  private mutating func parseHandshake(_ index: Int) -> Bool {
    let buffer = connections[index].buffer
    let start = connections[index].received
    let unread = unreadByteCount(index)
    let consumed = buffer.withSpan(start, unread) {
      connections[index].handshake.receive($0)
    }
    connections[index].received += consumed
    let output = connections[index].handshake.takeOutput()
    if !output.isEmpty {
      appendBytes(index, output)
      wantTransmit(index)
    }
    switch connections[index].handshake.outcome {
    case .negotiating:
      if consumed == 0, unread == buffer.byteCount { return enlargeBuffer(index) }
      return consumed > 0
    case .ready(let negotiated):
      connections[index].rules = TransmissionRules(
        traits: description.traits, negotiated: negotiated)
      connections[index].phase = .transmission
      return enlargeBuffer(index)
    case .finished, .hangUp:
      connections[index].phase = .finishing
      closeIfDone(index)
      return false
    }
  }

  /// Moves what is not understood yet to a buffer of the size that the transmission uses.
  private mutating func enlargeBuffer(_ index: Int) -> Bool {
    guard connections[index].buffer.byteCount < Connection.receiveByteCount,
      let larger = image.buffers.acquire(byteCount: Connection.receiveByteCount)
    else {
      breakConnection(index)
      return false
    }
    let unread = unreadByteCount(index)
    larger.copy(0, from: connections[index].buffer, connections[index].received, unread)
    image.buffers.release(connections[index].buffer)
    connections[index].buffer = larger
    connections[index].received = 0
    connections[index].receivedEnd = unread
    return true
  }

  private mutating func parseTransmission(_ index: Int) -> Bool {
    if connections[index].drainByteCount > 0 { return drain(index) }
    if connections[index].payloadSlot >= 0 { return takePayload(index) }
    guard unreadByteCount(index) >= RequestHeader.byteCount else { return false }
    let header = connections[index].buffer.withSpan(
      connections[index].received, RequestHeader.byteCount
    ) { RequestHeader(decoding: $0, at: 0) }
    guard let header, let rules = connections[index].rules else {
      // The stream is out of step: nothing that follows can be understood.
      breakConnection(index)
      return false
    }
    switch rules.admit(header) {
    case .execute(let command): return execute(index, header, command)
    case .refuse(let error, let payloadByteCount):
      connections[index].received += RequestHeader.byteCount
      connections[index].drainError = error
      connections[index].drainCookie = header.cookie
      connections[index].drainCommand = header.command
      connections[index].drainByteCount = payloadByteCount
      if payloadByteCount == 0 { refuse(index) }
      return true
    case .disconnect:
      connections[index].phase = .finishing
      connections[index].received = connections[index].receivedEnd
      closeIfDone(index)
      return false
    case .hangUp:
      breakConnection(index)
      return false
    }
  }

  /// Throws away the payload of a refused request.
  private mutating func drain(_ index: Int) -> Bool {
    let unread = unreadByteCount(index)
    guard unread > 0 else { return false }
    let count = min(unread, Int(clamping: connections[index].drainByteCount))
    connections[index].received += count
    connections[index].drainByteCount -= UInt64(count)
    if connections[index].drainByteCount == 0 { refuse(index) }
    return true
  }

  // MARK: Starting

  private mutating func execute(
    _ index: Int, _ header: RequestHeader, _ command: Command
  ) -> Bool {
    let range = ByteRange(start: header.offset, end: header.offset + header.length)
      .roundedOut(to: image.alignment)
    let bufferByteCount: Int
    switch command {
    case .read, .write: bufferByteCount = header.length == 0 ? 0 : Int(range.byteCount)
    case .blockStatus: bufferByteCount = StatusExtents.bufferByteCount
    case .disconnect, .flush, .trim, .cache, .writeZeroes, .resize: bufferByteCount = 0
    }
    let charged = bufferByteCount == 0 ? 0 : BufferPool.roundedByteCount(bufferByteCount)
    guard hasShare(index, charged), let slot = image.requests.acquire() else {
      stall(index)
      return false
    }
    connections[index].received += RequestHeader.byteCount
    connections[index].requestCount += 1
    connections[index].bufferByteCount += charged
    image.requests.slots[slot].connection = Int32(index)
    image.requests.slots[slot].command = command
    image.requests.slots[slot].flags = header.flags
    image.requests.slots[slot].cookie = header.cookie
    image.requests.slots[slot].offset = header.offset
    image.requests.slots[slot].length = header.length
    image.requests.slots[slot].bufferStart = range.start
    image.requests.slots[slot].chargedByteCount = charged
    image.requests.slots[slot].stage = .receiving
    if charged > 0 {
      guard let buffer = image.buffers.acquire(byteCount: bufferByteCount) else {
        image.requests.slots[slot].error = .noMemory
        return finishWithoutWork(index, slot, header, command)
      }
      image.requests.slots[slot].buffer = buffer
    }
    if header.length == 0, command != .flush {
      return finishWithoutWork(index, slot, header, command)
    }
    if command == .write {
      connections[index].payloadSlot = Int32(slot)
      return takePayload(index)
    }
    image.requests.slots[slot].wantsHoles =
      connections[index].rules!.negotiated.structuredReplies
      && !header.flags.contains(.dontFragment)
    image.start(slot)
    return true
  }

  /// Whether the client may hold another request with a buffer of `byteCount`.
  private func hasShare(_ index: Int, _ byteCount: Int) -> Bool {
    let limits = plan.limits
    let count = connections[index].requestCount
    if count == 0 { return true }
    return count < limits.requestsPerConnectionMax
      && connections[index].bufferByteCount + byteCount <= limits.bufferBytesPerConnectionMax
  }

  /// Answers a request that has nothing to do, or no memory to do it in.
  private mutating func finishWithoutWork(
    _ index: Int, _ slot: Int, _ header: RequestHeader, _ command: Command
  ) -> Bool {
    if command == .write, header.length > 0 {
      // The payload has to be taken out of the stream first.
      connections[index].drainError = .ENOMEM
      connections[index].drainCookie = header.cookie
      connections[index].drainCommand = header.command
      connections[index].drainByteCount = header.length
      retire(slot)
      return true
    }
    image.requests.slots[slot].stage = .finished
    image.finished.append(slot, &image.requests.slots)
    return true
  }

  /// Copies what has arrived of a payload behind its header, and starts the request when it is
  /// whole.
  private mutating func takePayload(_ index: Int) -> Bool {
    let slot = Int(connections[index].payloadSlot)
    let piece = payloadPiece(slot)
    let count = min(piece.byteCount, unreadByteCount(index))
    piece.buffer.copy(
      piece.start, from: connections[index].buffer, connections[index].received, count)
    connections[index].received += count
    image.requests.slots[slot].receivedByteCount += UInt64(count)
    guard image.requests.slots[slot].receivedByteCount == image.requests.slots[slot].length else {
      return false
    }
    connections[index].payloadSlot = -1
    image.start(slot)
    return true
  }

  // MARK: Waiting

  private mutating func stall(_ index: Int) {
    guard !connections[index].isStalled else { return }
    connections[index].isStalled = true
    stalledCount += 1
  }

  /// Lets clients go on that waited for a slot or a buffer. Returns whether one did.
  mutating func resumeStalled() -> Bool {
    guard stalledCount > 0 else { return false }
    var resumed = false
    for index in 0..<connections.capacity {
      guard connections.isOccupied(index), connections[index].isStalled else { continue }
      let before = connections[index].received
      connections[index].isStalled = false
      stalledCount -= 1
      parse(index)
      guard connections.isOccupied(index) else {
        resumed = true
        continue
      }
      if !connections[index].isStalled, !connections[index].isWatched { receive(index) }
      resumed = resumed || !connections.isOccupied(index) || connections[index].received != before
    }
    return resumed
  }

  /// Watches for what the connection can use now.
  mutating func updateInterest(_ index: Int) {
    guard connections[index].isWatched else { return }
    var wanted: EventLoop.Interest = []
    switch connections[index].phase {
    case .handshake, .transmission:
      if !connections[index].isStalled { wanted.insert(.readable) }
    case .finishing: break
    }
    if connections[index].isBlockedOnSend { wanted.insert(.writable) }
    guard wanted != connections[index].interest else { return }
    connections[index].interest = wanted
    events.change(
      connections[index].socket.descriptor, wanted, token: Source.connection.token(index))
  }
}
