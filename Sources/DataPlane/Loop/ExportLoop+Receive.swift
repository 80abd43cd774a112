// SPDX-License-Identifier: Apache-2.0
//
// From a client's bytes to request headers. Spec: proto.md, "Request message".

import BlockTypes
import LinuxIO
import NBDProtocol

extension ExportLoop {
  mutating func connectionEvent(_ index: Int, _ what: EventLoop.Interest) {
    guard connections.isOccupied(index) else { return }
    let hasFailed = !what.isDisjoint(with: .failed)
    if what.contains(.writable) || hasFailed {
      // Who is gone takes nothing, which the next send finds out.
      connections[index].isBlockedOnSend = false
      if !connections[index].replies.isEmpty || hasCiphertext(index) { wantTransmit(index) }
    }
    if hasFailed {
      // Reported again and again whatever is watched for, so watch no longer. What the client sent
      // before it left is still read, and carried out.
      unwatch(index)
      if case .finishing = connections[index].phase {
        breakConnection(index)
        return
      }
    }
    let before = image.requests.usedCount
    receive(index)
    // More than one request at once: the client keeps several in flight.
    if image.requests.usedCount > before + 1 { lone.watch(index) }
  }

  mutating func unwatch(_ index: Int) {
    guard connections[index].isWatched else { return }
    connections[index].isWatched = false
    counters.otherCallCount += 1
    events.remove(connections[index].socket.descriptor)
  }

  /// Receives what one call brings (all there is, once the client has gone) and acts on it.
  /// Returns whether the client had anything to say.
  @discardableResult mutating func receive(_ index: Int) -> Bool {
    var receivedAny = false
    repeat {
      if case .finishing = connections[index].phase { return receivedAny }
      if connections[index].isStalled { return receivedAny }
      let (first, second) = receivePieces(index)
      switch receiveBytes(index, into: first, then: second) {
      case .wouldBlock: return receivedAny
      case .closed:
        connections[index].phase = .finishing
        updateInterest(index)
        closeIfDone(index)
        return true
      case .bytes(let count):
        receivedAny = true
        accept(index, count, payloadByteCount: first.byteCount, hasPayload: second.byteCount > 0)
        parse(index)
      }
    } while connections.isOccupied(index)
      && (!connections[index].isWatched || hasUndecrypted(index))
    return receivedAny
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
    return (image.requests.slots[slot].payloadRest, tail)
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
  func unreadByteCount(_ index: Int) -> Int {
    connections[index].receivedEnd - connections[index].received
  }

  // MARK: Parsing

  /// Acts on the bytes that are there, until more are needed or the next request has to wait.
  mutating func parse(_ index: Int) {
    while connections.isOccupied(index) {
      let goesOn: Bool
      switch connections[index].phase {
      case .transmission: goesOn = parseTransmission(index)
      case .finishing: goesOn = false
      }
      if !goesOn { break }
    }
    if connections.isOccupied(index) { updateInterest(index) }
  }

  private mutating func parseTransmission(_ index: Int) -> Bool {
    if connections[index].drainByteCount > 0 { return drain(index) }
    if connections[index].payloadSlot >= 0 { return takePayload(index) }
    let headerByteCount = connections[index].headerByteCount
    guard unreadByteCount(index) >= headerByteCount else { return false }
    guard let header = connections[index].nextHeader() else {
      // The stream is out of step: nothing that follows can be understood.
      breakConnection(index)
      return false
    }
    switch connections[index].rules.admit(header) {
    case .execute(let command):
      if stop.isStopping {
        return refuse(
          index, header, .ESHUTDOWN, payloadByteCount: command == .write ? header.length : 0)
      }
      return execute(index, header, command, consumedByteCount: headerByteCount)
    case .filterStatus(let payloadByteCount):
      return executeFiltered(index, header, payloadByteCount)
    case .refuse(let error, let payloadByteCount):
      return refuse(index, header, error, payloadByteCount: payloadByteCount)
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

  /// Judges BLOCK_STATUS anew with the length and the contexts that its payload names, which is
  /// waited for where it is: it has a few bytes.
  private mutating func executeFiltered(
    _ index: Int, _ header: RequestHeader, _ payloadByteCount: Int
  ) -> Bool {
    let byteCount = connections[index].headerByteCount + payloadByteCount
    guard unreadByteCount(index) >= byteCount else { return false }
    guard let payload = connections[index].nextStatusPayload(payloadByteCount) else {
      return refuse(index, header, .EINVAL, payloadByteCount: UInt64(payloadByteCount))
    }
    var plain = header
    plain.flags.remove(.payloadLength)
    plain.length = payload.effectByteCount
    switch connections[index].rules.admit(plain) {
    case .execute(let command) where !stop.isStopping:
      return execute(
        index, plain, command, consumedByteCount: byteCount, contexts: payload.contexts)
    case .execute:
      return refuse(index, header, .ESHUTDOWN, payloadByteCount: UInt64(payloadByteCount))
    case .refuse(let error, _):
      return refuse(index, header, error, payloadByteCount: UInt64(payloadByteCount))
    case .filterStatus, .disconnect, .hangUp:
      preconditionFailure("a BLOCK_STATUS without payload got a verdict of another request")
    }
  }

  /// Takes the header of a request that is refused out of the stream.
  private mutating func refuse(
    _ index: Int, _ header: RequestHeader, _ error: NBDErrno, payloadByteCount: UInt64
  ) -> Bool {
    connections[index].received += connections[index].headerByteCount
    beginRefusal(index, header, error, payloadByteCount: payloadByteCount)
    return true
  }

  /// Answers a request with an error once the payload behind it has been thrown away.
  mutating func beginRefusal(
    _ index: Int, _ header: RequestHeader, _ error: NBDErrno, payloadByteCount: UInt64
  ) {
    connections[index].drainError = error
    connections[index].drainIdentity = RequestIdentity(
      cookie: header.cookie, offset: header.offset)
    connections[index].drainCommand = header.command
    connections[index].drainByteCount = payloadByteCount
    if payloadByteCount == 0 { appendRefusal(index) }
  }

  /// Throws away the payload of a refused request.
  private mutating func drain(_ index: Int) -> Bool {
    let unread = unreadByteCount(index)
    guard unread > 0 else { return false }
    let count = min(unread, Int(clamping: connections[index].drainByteCount))
    connections[index].received += count
    connections[index].drainByteCount -= UInt64(count)
    if connections[index].drainByteCount == 0 { appendRefusal(index) }
    return true
  }
}
