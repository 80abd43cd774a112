// SPDX-License-Identifier: Apache-2.0
//
// Clients that speak TLS, once it is up. A plain client pays one comparison for each receive and
// each send. Spec: proto.md, "TLS support".

import BlockTypes
import LinuxIO
import NBDProtocol
import TLS

extension ExportLoop {
  /// Receives of one readiness, so that a client whose records hold nothing holds up nobody.
  private static var receivesMax: Int { 4 }

  // MARK: In

  /// Receives what one call brings, decrypted where the client speaks TLS.
  mutating func receiveBytes(
    _ index: Int, into first: DiskQueue.Piece, then second: DiskQueue.Piece
  ) -> StreamSocket.Transfer {
    let place = Int(connections[index].securePlace)
    if place >= 0 { return receiveSecurely(index, place, first, second) }
    let transfer = connections[index].socket.receive(into: first, then: second)
    countReceive(index, transfer)
    return transfer
  }

  /// Whether decrypted bytes may be had without the socket, which then tells of none.
  mutating func hasUndecrypted(_ index: Int) -> Bool {
    let place = Int(connections[index].securePlace)
    return place >= 0 && secure.streams[place].hasUndecrypted
  }

  private mutating func receiveSecurely(
    _ index: Int, _ place: Int, _ first: DiskQueue.Piece, _ second: DiskQueue.Piece
  ) -> StreamSocket.Transfer {
    var receiveCount = 0
    while true {
      switch secure.streams[place].decrypt(into: first, then: second) {
      case .bytes(let count): return .bytes(count)
      case .wantsRead: break
      case .closed: return .closed
      case .wantsWrite, .failed: return giveUp(index, place)
      }
      // One that has gone sends nothing new, and is read to its end.
      guard receiveCount < ExportLoop.receivesMax || !connections[index].isWatched else {
        return .wouldBlock
      }
      receiveCount += 1
      let room = secure.streams[place].roomForInput()
      guard room.byteCount > 0 else { return giveUp(index, place) }
      let transfer = connections[index].socket.receive(into: room, then: .none)
      countReceive(index, transfer)
      guard case .bytes(let count) = transfer else { return transfer }
      secure.streams[place].tookInput(count)
    }
  }

  private mutating func countReceive(_ index: Int, _ transfer: StreamSocket.Transfer) {
    counters.receiveCallCount += 1
    if case .bytes(let count) = transfer {
      connections[index].counters.receivedByteCount += UInt64(count)
    }
  }

  /// The session failed: the client is told by an alert, if the socket takes it.
  private mutating func giveUp(_ index: Int, _ place: Int) -> StreamSocket.Transfer {
    secure.streams[place].tellFailure()
    if hasCiphertext(index) { _ = sendCiphertext(index) }
    connections[index].isBroken = true
    return .closed
  }

  // MARK: Out

  /// Whether encrypted bytes wait for the socket.
  mutating func hasCiphertext(_ index: Int) -> Bool {
    let place = Int(connections[index].securePlace)
    return place >= 0 && secure.streams[place].hasCiphertext
  }

  /// Encrypts and sends as much as the socket takes.
  mutating func transmitSecurely(_ index: Int) {
    while true {
      guard encryptReplies(index) else { return breakConnection(index) }
      guard hasCiphertext(index) else { return finishTransmit(index) }
      switch sendCiphertext(index) {
      case .bytes: continue
      case .wouldBlock: return blockOnSend(index)
      case .closed: return breakConnection(index)
      }
    }
  }

  /// Encrypts replies while there is room; a request is answered when its last byte is encrypted.
  /// Large payloads go from their buffers into records, small replies are gathered first.
  private mutating func encryptReplies(_ index: Int) -> Bool {
    let place = Int(connections[index].securePlace)
    let record = secure.record
    let recordMax = TLSSession.recordByteCountMax
    while !connections[index].replies.isEmpty, secure.streams[place].hasRoomForRecord {
      let run = connections[index].replies.firstRun
      if run.byteCount >= recordMax {
        let piece = DiskQueue.Piece(run.buffer, run.start, recordMax)
        guard secure.streams[place].encrypt(piece) else { return false }
        connections[index].replies.advance(recordMax)
        retireSent(index)
        continue
      }
      var count = 0
      while count < recordMax, !connections[index].replies.isEmpty {
        let run = connections[index].replies.firstRun
        let taken = min(run.byteCount, recordMax - count)
        record.copy(count, from: run.buffer, run.start, taken)
        count += taken
        connections[index].replies.advance(taken)
        retireSent(index)
      }
      guard secure.streams[place].encrypt(DiskQueue.Piece(record, 0, count)) else { return false }
    }
    return true
  }

  /// Sends ciphertext; `.bytes` when all of it went.
  private mutating func sendCiphertext(_ index: Int) -> StreamSocket.Transfer {
    let place = Int(connections[index].securePlace)
    let piece = secure.streams[place].ciphertext
    connections[index].socket.beginSend()
    connections[index].socket.gather(piece)
    counters.sendCallCount += 1
    let transfer = connections[index].socket.send()
    guard case .bytes(let count) = transfer else { return transfer }
    connections[index].counters.sentByteCount += UInt64(count)
    secure.streams[place].sentCiphertext(count)
    return count < piece.byteCount ? .wouldBlock : transfer
  }

  // MARK: The end

  /// Says goodbye to a client that got all its replies, and gives back the session. The socket is
  /// not waited for: who does not take its replies does not take a goodbye either.
  mutating func endTLS(_ index: Int) {
    let place = Int(connections[index].securePlace)
    guard place >= 0 else { return }
    if !connections[index].isBroken {
      secure.streams[place].sayGoodbye()
      if secure.streams[place].hasCiphertext { _ = sendCiphertext(index) }
    }
    secure.streams[place].close(&image.buffers)
    secure.streams.remove(place)
  }
}
