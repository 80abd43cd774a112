// SPDX-License-Identifier: Apache-2.0
//
// Replies on their way out: order, growth, and sends that take only a part.

import Foundation
import LinuxIO
import TestSupport
import Testing

@testable import DataPlane

/// A socket that sends into another one.
private final class Line {
  var socket: StreamSocket
  let far: Int32

  init() throws {
    var ends: [Int32] = [0, 0]
    let type = Int32(SOCK_STREAM.rawValue | SOCK_NONBLOCK.rawValue)
    guard socketpair(AF_UNIX, type, 0, &ends) == 0 else {
      throw WireError.system("socketpair", errno: errno)
    }
    socket = StreamSocket(adopting: ends[0])
    far = ends[1]
  }

  deinit { close(far) }

  /// Sends what the socket takes of the queue's front and returns the byte count.
  func send(_ queue: borrowing ReplyQueue) throws -> Int {
    queue.gather(into: &socket)
    switch socket.send() {
    case .bytes(let count): return count
    case .wouldBlock: return 0
    case .closed: throw BenchError("the line is cut")
    }
  }

  func receive(atMost count: Int = 1 << 20) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    let got = recv(far, &bytes, count, Int32(MSG_DONTWAIT))
    return Array(bytes.prefix(max(got, 0)))
  }
}

/// Queues with the pool that their memory comes from.
private final class Replies {
  var buffers = BufferPool()
  var queue: ReplyQueue

  init() throws {
    guard let queue = ReplyQueue(&buffers) else { throw BenchError("no memory") }
    self.queue = queue
  }

  /// Appends a header of `headerByteCount` bytes that all are `mark`, and a payload.
  func append(_ mark: UInt8, headerByteCount: Int = 16, payload: [UInt8] = [], slot: Int32 = -1) {
    var piece = DiskQueue.Piece.none
    if !payload.isEmpty, let buffer = buffers.acquire(byteCount: payload.count) {
      buffer.withAddress(0, payload.count) {
        $0.copyMemory(from: payload, byteCount: payload.count)
      }
      piece = DiskQueue.Piece(buffer, 0, payload.count)
    }
    queue.append(payload: piece, slot: slot, &buffers) { span in
      for offset in 0..<headerByteCount {
        span.storeBytes(of: mark, toByteOffset: offset, as: UInt8.self)
      }
      return headerByteCount
    }
  }

  /// Counts bytes as sent and returns the slots that ended with them.
  func advance(_ byteCount: Int) -> [Int32] {
    queue.advance(byteCount)
    var slots: [Int32] = []
    while let piece = queue.popSent() { slots.append(piece.slot) }
    return slots
  }

  var count: Int { queue.count }
}

@Suite struct `A queue of replies` {
  @Test func `sends headers and payloads in the order of their arrival`() throws {
    let line = try Line()
    let replies = try Replies()
    replies.append(1, headerByteCount: 4, payload: [50, 51])
    replies.append(2, headerByteCount: 0, payload: [60])
    replies.append(3, headerByteCount: 2)
    #expect(try line.send(replies.queue) == 9)
    #expect(line.receive() == [1, 1, 1, 1, 50, 51, 60, 3, 3])
  }

  @Test func `ends a slot with the last byte of its piece, and not before`() throws {
    let replies = try Replies()
    replies.append(1, headerByteCount: 10, payload: [1, 2, 3, 4, 5, 6], slot: 7)
    replies.append(2, headerByteCount: 10, slot: 8)
    #expect(replies.advance(9) == [])
    #expect(replies.advance(6) == [])
    #expect(replies.advance(1) == [7])
    #expect(replies.advance(9) == [])
    #expect(replies.advance(1) == [8])
    #expect(replies.count == 0)
  }

  @Test func `shows one run of bytes after the other, for those that are encrypted`() throws {
    let replies = try Replies()
    #expect(replies.queue.firstRun.byteCount == 0)
    replies.append(1, headerByteCount: 5, payload: [10, 11, 12])
    replies.append(2, headerByteCount: 0, payload: [20])
    replies.append(3, headerByteCount: 2)
    var runs: [[UInt8]] = []
    while replies.count > 0 {
      let run = replies.queue.firstRun
      let taken = min(run.byteCount, 2)
      runs.append(
        run.buffer.withSpan(run.start, taken) { span in
          (0..<taken).map { span.unsafeLoad(fromByteOffset: $0, as: UInt8.self) }
        })
      _ = replies.advance(taken)
    }
    #expect(runs == [[1, 1], [1, 1], [1], [10, 11], [12], [20], [3, 3]])
  }

  @Test func `ends several slots with one send`() throws {
    let replies = try Replies()
    for slot in 0..<5 { replies.append(UInt8(slot), headerByteCount: 16, slot: Int32(slot)) }
    #expect(replies.advance(16 * 4 + 3) == [0, 1, 2, 3])
    #expect(replies.advance(13) == [4])
  }

  @Test(arguments: 0...12)
  func `goes on at any byte of header or payload`(cut: Int) throws {
    let line = try Line()
    let replies = try Replies()
    replies.append(1, headerByteCount: 5, payload: [10, 11, 12])
    replies.append(2, headerByteCount: 4)
    #expect(replies.advance(cut).count == (cut < 8 ? 0 : cut < 12 ? 1 : 2))
    #expect(try line.send(replies.queue) == 12 - cut)
    #expect(line.receive() == Array([1, 1, 1, 1, 1, 10, 11, 12, 2, 2, 2, 2][cut...]))
  }

  @Test func `keeps all pieces in order when it grows around its end`() throws {
    let line = try Line()
    let replies = try Replies()
    // Move the start of the ring to its middle, so that growth has to unroll it.
    for mark in 0..<40 { replies.append(UInt8(mark), headerByteCount: 1) }
    #expect(replies.advance(40).count == 40)
    for mark in 0..<200 {
      replies.append(UInt8(mark), headerByteCount: 1, slot: Int32(mark))
    }
    var received: [UInt8] = []
    var ended: [Int32] = []
    while replies.count > 0 {
      ended += replies.advance(try line.send(replies.queue))
      received += line.receive()
    }
    #expect(received == (0..<200).map { UInt8($0) })
    #expect(ended == (0..<200).map { Int32($0) })
  }

  @Test func `loses nothing to a socket that takes only a part`() throws {
    let line = try Line()
    let replies = try Replies()
    var expected: [UInt8] = []
    for slot in 0..<12 {
      let payload = pattern(300_000 + slot, seed: slot)
      replies.append(UInt8(slot), headerByteCount: 28, payload: payload, slot: Int32(slot))
      expected += [UInt8](repeating: UInt8(slot), count: 28) + payload
    }
    var received: [UInt8] = []
    var ended: [Int32] = []
    var refusals = 0
    while replies.count > 0 {
      let sent = try line.send(replies.queue)
      if sent == 0 { refusals += 1 }
      ended += replies.advance(sent)
      received += line.receive(atMost: 33_333)
      #expect(refusals < 1_000)
    }
    while case let rest = line.receive(), !rest.isEmpty { received += rest }
    #expect(refusals > 0)
    #expect(received == expected)
    #expect(ended == (0..<12).map { Int32($0) })
  }

  @Test func `gives its pieces to a connection that is gone, half sent or not`() throws {
    let replies = try Replies()
    replies.append(1, headerByteCount: 8, slot: 3)
    replies.append(2, headerByteCount: 8, slot: 4)
    #expect(replies.advance(5) == [])
    #expect(replies.queue.popFirst()?.slot == 3)
    #expect(replies.queue.popFirst()?.slot == 4)
    #expect(replies.queue.popFirst() == nil)
    let sent = replies.queue.sentByteCount
    #expect(sent == 0)
  }

  @Test func `returns its header memory when it is closed`() throws {
    var buffers = BufferPool()
    let made = ReplyQueue(&buffers)
    guard var queue = made else { throw BenchError("no memory") }
    let heldBefore = buffers.heldByteCount
    queue.close(&buffers)
    let heldAfter = buffers.heldByteCount
    #expect(heldBefore > 0)
    #expect(heldAfter == 0)
  }

  @Test func `traps when it is closed with replies in it`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      let replies = try Replies()
      replies.append(1)
      replies.queue.close(&replies.buffers)
    }
    #expect(said("a reply queue was closed with replies in it", result))
  }
}
