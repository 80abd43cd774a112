// SPDX-License-Identifier: Apache-2.0
//
// Clients that come from the reception, and those that go. Spec: proto.md, "Terminating the
// transmission phase".

import BlockTypes
import LinuxIO
import NBDProtocol

extension ExportLoop {
  mutating func takeArrivals() {
    counters.otherCallCount += 1
    for arrival in arrivals.takeAll() { adopt(arrival) }
  }

  /// Takes over a client. One for whom there is no memory is closed, and so is one that has
  /// selected a dirty bitmap that is gone.
  private mutating func adopt(_ arrival: Arrival) {
    let socket = arrival.takeSocket()
    let descriptor = socket.descriptor
    counters.connectionTotal += 1
    counters.otherCallCount += 1
    guard hasBitmaps(of: arrival.negotiated) else { return }
    guard let buffer = image.buffers.acquire(byteCount: Connection.receiveByteCount) else { return }
    guard let replies = ReplyQueue(&image.buffers) else {
      image.buffers.release(buffer)
      return
    }
    let rules = TransmissionRules(
      traits: notice.current.traits, negotiated: arrival.negotiated)
    let connection = Connection(
      arrival, socket: socket, rules: rules, replies: replies, buffer: buffer)
    guard let place = connections.insert(connection) else {
      preconditionFailure("a client arrived though the table is full")
    }
    bufferShare = plan.limits.bufferShare(connectionCount: connections.count)
    if let session = arrival.takeSession() {
      guard let securePlace = secure.add(session, &image.buffers) else {
        connections[place].isWatched = false
        return breakConnection(place)
      }
      connections[place].securePlace = Int32(securePlace)
    }
    do throws(SystemError) {
      try events.add(descriptor, .readable, token: Source.connection.token(place))
    } catch {
      connections[place].isWatched = false
      return breakConnection(place)
    }
    // What came behind the handshake the socket does not tell of.
    parse(place)
    if connections.isOccupied(place) { receive(place) }
    // One who comes while the export stops, and waits for nothing, learns of it now.
    closeIfDone(place)
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
    bufferShare = plan.limits.bufferShare(connectionCount: connections.count)
  }

  /// Ends a request: its buffers go back, its client has room for another.
  mutating func retire(_ slot: Int) {
    let connection = Int(image.requests.slots[slot].connection)
    connections[connection].requestCount -= 1
    connections[connection].bufferByteCount -= image.requests.slots[slot].chargedByteCount
    heldBufferByteCount -= image.requests.slots[slot].chargedByteCount
    image.retire(slot)
  }
}
