// SPDX-License-Identifier: Apache-2.0
//
// Replies of one connection on their way out: headers inline, payloads by reference, sent many at
// a time. Spec: proto.md, "Simple reply message", "Structured reply chunk message".

import BlockTypes
import LinuxIO

/// A header of up to 64 bytes, the payload behind it, and the slot that ends with it.
struct ReplyPiece {
  /// Start of the header in the queue's header memory.
  var headerByteCount = 0
  var payload: DiskQueue.Piece = .none
  /// The slot to retire once this piece is sent; -1 for none.
  var slot: Int32 = -1

  var byteCount: Int { headerByteCount + payload.byteCount }
}

/// A ring of pieces. It grows by doubling up to what the requests in flight can produce, and
/// keeps its size.
struct ReplyQueue: ~Copyable {
  /// Room for one header: the largest chunk header with its fixed fields.
  static let headerByteCountMax = 64
  private static let initialCount = 64

  private var pieces: FixedArray<ReplyPiece>
  private var headers: IOBuffer
  private var first = 0
  private(set) var count = 0
  /// Bytes of the first piece that are sent already.
  private(set) var sentByteCount = 0

  init?(_ buffers: inout BufferPool) {
    guard
      let headers = buffers.acquire(
        byteCount: ReplyQueue.initialCount * ReplyQueue.headerByteCountMax)
    else { return nil }
    self.headers = headers
    pieces = FixedArray(count: ReplyQueue.initialCount) { _ in ReplyPiece() }
  }

  var isEmpty: Bool { count == 0 }

  /// Appends a piece whose header `encode` writes; `encode` returns the header's length.
  mutating func append(
    payload: DiskQueue.Piece = .none, slot: Int32 = -1, _ buffers: inout BufferPool,
    _ encode: (inout MutableRawSpan) -> Int
  ) {
    if count == pieces.count { grow(&buffers) }
    let place = (first + count) % pieces.count
    let headerByteCount = headers.withMutableSpan(
      place * ReplyQueue.headerByteCountMax, ReplyQueue.headerByteCountMax, encode)
    pieces[place] = ReplyPiece(
      headerByteCount: headerByteCount, payload: payload, slot: slot)
    count += 1
  }

  private mutating func grow(_ buffers: inout BufferPool) {
    let doubled = pieces.count * 2
    guard let larger = buffers.acquire(byteCount: doubled * ReplyQueue.headerByteCountMax) else {
      preconditionFailure("there is no memory for reply headers")
    }
    var moved = FixedArray(count: doubled) { _ in ReplyPiece() }
    for index in 0..<count {
      let old = (first + index) % pieces.count
      moved[index] = pieces[old]
      larger.copy(
        index * ReplyQueue.headerByteCountMax, from: headers,
        old * ReplyQueue.headerByteCountMax, ReplyQueue.headerByteCountMax)
    }
    buffers.release(headers)
    headers = larger
    pieces = moved
    first = 0
  }

  /// Gathers the front of the queue into the socket's next send.
  func gather(into socket: inout StreamSocket) {
    socket.beginSend()
    var skip = sentByteCount
    for index in 0..<count {
      let place = (first + index) % pieces.count
      let piece = pieces[place]
      if piece.headerByteCount > skip {
        guard socket.canGather else { return }
        socket.gather(
          DiskQueue.Piece(
            headers, place * ReplyQueue.headerByteCountMax + skip, piece.headerByteCount - skip))
        skip = 0
      } else {
        skip -= piece.headerByteCount
      }
      if piece.payload.byteCount > skip {
        guard socket.canGather else { return }
        socket.gather(
          DiskQueue.Piece(
            piece.payload.buffer, piece.payload.start + skip, piece.payload.byteCount - skip))
        skip = 0
      } else {
        skip -= piece.payload.byteCount
      }
    }
  }

  /// The first bytes that are not sent yet and lie together; none when all are sent.
  var firstRun: DiskQueue.Piece {
    guard count > 0 else { return .none }
    let piece = pieces[first]
    guard sentByteCount >= piece.headerByteCount else {
      return DiskQueue.Piece(
        headers, first * ReplyQueue.headerByteCountMax + sentByteCount,
        piece.headerByteCount - sentByteCount)
    }
    let sent = sentByteCount - piece.headerByteCount
    return DiskQueue.Piece(
      piece.payload.buffer, piece.payload.start + sent, piece.payload.byteCount - sent)
  }

  /// Counts `byteCount` more bytes as sent and hands out the slots that ended with them, one at a
  /// time: call until it returns nil.
  mutating func advance(_ byteCount: Int) { sentByteCount += byteCount }

  mutating func popSent() -> ReplyPiece? {
    guard count > 0, sentByteCount >= pieces[first].byteCount else { return nil }
    return popFirst()
  }

  /// Takes the first piece, sent or not; for a connection that is gone.
  mutating func popFirst() -> ReplyPiece? {
    guard count > 0 else { return nil }
    let piece = pieces[first]
    sentByteCount = max(sentByteCount - piece.byteCount, 0)
    first = (first + 1) % pieces.count
    count -= 1
    return piece
  }

  /// Gives back the header memory. The queue must not be used afterwards.
  mutating func close(_ buffers: inout BufferPool) {
    precondition(isEmpty, "a reply queue was closed with replies in it")
    buffers.release(headers)
    headers = .empty
  }
}
