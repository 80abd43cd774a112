// SPDX-License-Identifier: Apache-2.0
//
// The bytes of one connection, in clear; where TLS goes in. This file performs socket I/O.

import LinuxIO

/// Bytes in and out, without waiting. Belongs to the thread of its connection.
///
/// TLS is a second one of these, around the first: it is made when the handshake's outcome is
/// `startTLS`, and finishes its own handshake within `receive` and `send`.
protocol Transport: AnyObject {
  /// What to wait for.
  var descriptor: Int32 { get }
  /// Receives to the start of `bytes`, as many as it has at most.
  func receive(into bytes: inout [UInt8]) -> StreamSocket.Transfer
  func send(_ bytes: ArraySlice<UInt8>) -> StreamSocket.Transfer
}

/// A socket as it is.
final class SocketTransport: Transport {
  private let socket: ByteSocket

  init(_ socket: consuming ByteSocket) { self.socket = socket }

  var descriptor: Int32 { socket.descriptor }

  func receive(into bytes: inout [UInt8]) -> StreamSocket.Transfer {
    socket.receive(into: &bytes)
  }

  func send(_ bytes: ArraySlice<UInt8>) -> StreamSocket.Transfer { socket.send(bytes) }

  /// Whether connecting has ended, one way or the other.
  var isDecided: Bool { socket.wait(for: .output, milliseconds: 0) }

  /// How connecting has ended; nil when it was successful.
  func connectionError() -> SystemError? { socket.connectionError() }
}
