// SPDX-License-Identifier: Apache-2.0
//
// Clients that come and go. Spec: proto.md, "Newstyle negotiation", "Terminating the
// transmission phase".

import BlockTypes
import LinuxIO
import NBDProtocol

extension ExportLoop {
  mutating func acceptAll(_ listener: Int32) {
    while !stop.isStopping {
      guard connections.count < connections.capacity else {
        setListening(false)
        return
      }
      counters.otherCallCount += 1
      do throws(SystemError) {
        guard let socket = try StreamSocket.accept(from: listener) else { return }
        open(socket)
      } catch {
        // Out of descriptors, say: those who wait stay in the backlog until somebody leaves.
        setListening(false)
        return
      }
    }
  }

  private mutating func setListening(_ listens: Bool) {
    guard listens != isListening else { return }
    isListening = listens
    counters.otherCallCount += UInt64(listeners.count)
    for (index, listener) in listeners.enumerated() {
      events.change(listener, listens ? .readable : [], token: Source.listener.token(index))
    }
  }

  private mutating func open(_ socket: consuming StreamSocket) {
    guard let buffer = image.buffers.acquire(byteCount: BufferPool.smallestByteCount) else {
      return
    }
    guard let replies = ReplyQueue(&image.buffers) else {
      image.buffers.release(buffer)
      return
    }
    var handshake = ServerHandshake(
      exports: [description], limits: plan.limits, tls: plan.tls?.policy ?? .off)
    let greeting = plan.speaksOldstyle ? handshake.startOldstyle() : handshake.start()
    let descriptor = socket.descriptor
    counters.connectionTotal += 1
    // What a client is known by, and its socket options: some calls once in its life.
    counters.otherCallCount += 4
    let connection = Connection(
      number: counters.connectionTotal, socket: socket, handshake: handshake, replies: replies,
      buffer: buffer, handshakeSecondsMax: plan.limits.handshakeSecondsMax)
    guard let place = connections.insert(connection) else {
      preconditionFailure("a connection was accepted though the table is full")
    }
    do throws(SystemError) {
      try events.add(descriptor, .readable, token: Source.connection.token(place))
    } catch {
      connections[place].isWatched = false
      breakConnection(place)
      return
    }
    appendBytes(place, greeting)
    wantTransmit(place)
    // The client has nothing to say before its first request, which has another buffer.
    if plan.speaksOldstyle { parse(place) }
  }

  /// Queues bytes of the handshake.
  mutating func appendBytes(_ index: Int, _ bytes: [UInt8]) {
    var start = 0
    while start < bytes.count {
      let count = min(bytes.count - start, ReplyQueue.headerByteCountMax)
      connections[index].replies.append(&image.buffers) { span in
        for offset in 0..<count { span.storeBigEndian(bytes[start + offset], at: offset) }
        return count
      }
      start += count
    }
  }

  // MARK: The end

  /// The client is to get nothing any more: what it asked for ends unanswered.
  mutating func breakConnection(_ index: Int) {
    guard !connections[index].isBroken else { return }
    connections[index].isBroken = true
    connections[index].phase = .finishing
    closeIfDone(index)
  }

  /// Closes a connection that has nothing left to answer.
  mutating func closeIfDone(_ index: Int) {
    guard connections.isOccupied(index) else { return }
    if stop.isStopping, connections[index].hasNothingUnderWay {
      connections[index].phase = .finishing
    }
    guard case .finishing = connections[index].phase else { return }
    abandonPayload(index)
    if connections[index].isBroken { dropReplies(index) }
    guard connections[index].requestCount == 0, connections[index].replies.isEmpty,
      !connections[index].isInTransmitList,
      connections[index].isBroken || !hasCiphertext(index)
    else { return }
    close(index)
  }

  /// A WRITE whose payload will never be whole is forgotten.
  private mutating func abandonPayload(_ index: Int) {
    let slot = Int(connections[index].payloadSlot)
    guard slot >= 0 else { return }
    connections[index].payloadSlot = -1
    retire(slot)
  }

  private mutating func dropReplies(_ index: Int) {
    while let piece = connections[index].replies.popFirst() {
      if piece.slot >= 0 { retire(Int(piece.slot)) }
    }
  }

  private mutating func close(_ index: Int) {
    unwatch(index)
    counters.otherCallCount += 1
    if connections[index].isStalled { stalledCount -= 1 }
    image.buffers.release(connections[index].buffer)
    connections[index].replies.close(&image.buffers)
    endTLS(index)
    connections.remove(index)
    if !stop.isStopping { setListening(true) }
  }

  /// Ends a request: its buffers go back, its client has room for another.
  mutating func retire(_ slot: Int) {
    let connection = Int(image.requests.slots[slot].connection)
    connections[connection].requestCount -= 1
    connections[connection].bufferByteCount -= image.requests.slots[slot].chargedByteCount
    image.retire(slot)
  }
}
