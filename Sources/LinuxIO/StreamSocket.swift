// SPDX-License-Identifier: Apache-2.0
//
// A connected stream socket that never waits. Source: recvmsg(2), sendmsg(2), accept(2).

import BlockTypes
import CLinux
import Glibc

/// A connected socket, closed when the value goes away.
@safe public struct StreamSocket: ~Copyable {
  /// How a transfer ended.
  public enum Transfer {
    case bytes(Int)
    /// Nothing now; the event loop tells when to try again.
    case wouldBlock
    case closed
  }

  /// Pieces that one send gathers.
  public static let sendPiecesMax = 64

  public let descriptor: Int32
  private let isTCP: Bool
  private var vectors: FixedArray<iovec>

  /// Accepts the next connection of a listening descriptor; nil when none waits.
  public static func accept(from listener: Int32) throws(SystemError) -> StreamSocket? {
    let result = clinux_accept(listener)
    if result == -EAGAIN || result == -ECONNABORTED || result == -EINTR { return nil }
    return StreamSocket(adopting: try SystemError.check(result, "accept"))
  }

  public init(adopting descriptor: Int32) {
    self.descriptor = descriptor
    unsafe vectors = FixedArray(count: StreamSocket.sendPiecesMax) { _ in unsafe iovec() }
    // Only TCP has Nagle's delay to turn off; on a UNIX socket the call fails and changes nothing.
    isTCP = clinux_set_socket_option(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, 1) == 0
  }

  deinit { close(descriptor) }

  /// Receives into `first`, and what does not fit there into `second`.
  public mutating func receive(
    into first: DiskQueue.Piece, then second: DiskQueue.Piece
  ) -> Transfer {
    gatheredCount = 0
    append(first)
    append(second)
    precondition(gatheredCount > 0, "a receive has no room")
    while true {
      // SAFETY: the vectors point into buffers that the caller holds during the call.
      let result =
        gatheredCount == 1
        ? unsafe clinux_receive_plain(descriptor, vectors[0].iov_base, vectors[0].iov_len)
        : unsafe clinux_receive(descriptor, vectors.base, Int32(gatheredCount))
      if result > 0 { return .bytes(Int(result)) }
      if result == -Int64(EAGAIN) { return .wouldBlock }
      if result != -Int64(EINTR) { return .closed }
    }
  }

  private mutating func append(_ piece: DiskQueue.Piece) {
    guard piece.byteCount > 0 else { return }
    let address = unsafe piece.buffer.address(of: piece.start, piece.byteCount)
    unsafe vectors[gatheredCount] = unsafe iovec(iov_base: address, iov_len: piece.byteCount)
    gatheredCount += 1
  }

  /// Asks for room for `byteCount` bytes on their way to a slow client, of which the kernel grants
  /// up to `net.core.wmem_max`. TCP sizes its buffers itself, and is left alone.
  public func setSendRoom(_ byteCount: Int32) {
    if !isTCP { _ = clinux_set_socket_option(descriptor, SOL_SOCKET, SO_SNDBUF, byteCount) }
  }

  /// Starts a gathered send; `gather` appends pieces until there are no more or no room.
  public mutating func beginSend() {
    gatheredCount = 0
    gatheredByteCount = 0
  }
  private var gatheredCount = 0
  /// Bytes that the next send would like to send.
  public private(set) var gatheredByteCount = 0

  public var canGather: Bool { gatheredCount < StreamSocket.sendPiecesMax }

  public mutating func gather(_ piece: DiskQueue.Piece) {
    precondition(canGather, "a send gathers too many pieces")
    append(piece)
    gatheredByteCount += piece.byteCount
  }

  /// Sends what was gathered, or as much of it as the socket takes now.
  public mutating func send() -> Transfer {
    guard gatheredCount > 0 else { return .bytes(0) }
    while true {
      // SAFETY: as in `receive`.
      let result =
        gatheredCount == 1
        ? unsafe clinux_send_plain(descriptor, vectors[0].iov_base, vectors[0].iov_len)
        : unsafe clinux_send(descriptor, vectors.base, Int32(gatheredCount))
      if result >= 0 { return .bytes(Int(result)) }
      if result == -Int64(EAGAIN) { return .wouldBlock }
      if result != -Int64(EINTR) { return .closed }
    }
  }
}
