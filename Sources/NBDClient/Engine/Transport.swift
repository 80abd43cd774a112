// SPDX-License-Identifier: Apache-2.0
//
// The bytes of one connection: in clear, and where TLS goes in. This file performs socket I/O.

import LinuxIO

/// Bytes in and out, without waiting. Belongs to the thread of its connection.
///
/// TLS is a second one of these, around the first: `TLSTransport`.
protocol Transport: AnyObject {
  /// What to wait for.
  var descriptor: Int32 { get }
  /// Whether `receive` has something of which the socket does not tell.
  var hasReceived: Bool { get }
  /// Whether bytes that were taken wait for the socket: when that takes output, `send` nothing.
  var hasUnsent: Bool { get }
  /// Why there is nothing more to receive, where more than "closed" is known.
  var endReason: String? { get }
  /// Receives to the start of `bytes`, as many as it has at most.
  func receive(into bytes: inout [UInt8]) -> StreamSocket.Transfer
  func send(_ bytes: ArraySlice<UInt8>) -> StreamSocket.Transfer
  /// Says that nothing more is sent, where there is a way to say so. The peer then says the same,
  /// and `receive` returns `closed`.
  ///
  /// - Returns: whether that is worth waiting for.
  func sayGoodbye() -> Bool
}

/// A socket as it is.
final class SocketTransport: Transport {
  private let socket: ByteSocket

  init(_ socket: consuming ByteSocket) { self.socket = socket }

  var descriptor: Int32 { socket.descriptor }
  var hasReceived: Bool { false }
  var hasUnsent: Bool { false }
  var endReason: String? { nil }

  func receive(into bytes: inout [UInt8]) -> StreamSocket.Transfer {
    socket.receive(into: &bytes)
  }

  func send(_ bytes: ArraySlice<UInt8>) -> StreamSocket.Transfer { socket.send(bytes) }

  func sayGoodbye() -> Bool { false }
}
