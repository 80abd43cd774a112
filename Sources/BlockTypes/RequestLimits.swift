// SPDX-License-Identifier: Apache-2.0
//
// The limits that bound what one client can ask for. This file performs no I/O.

/// Bounds on requests and connections. Every queue of the server is sized by one of these.
@frozen public struct RequestLimits: Sendable, Hashable {
  /// Largest payload of one READ or WRITE, in bytes (proto.md, "Size constraints": at least 2^25).
  public var payloadBytesMax: UInt32
  /// Requests of one connection that may be in flight; further ones wait in the socket.
  public var requestsPerConnectionMax: Int
  /// Bytes of buffers that one connection may hold; further requests wait in the socket.
  public var bufferBytesPerConnectionMax: Int
  /// Bytes of buffers that all connections of an export may hold together: where they are many,
  /// each one's share is smaller. A single request is served whatever it takes.
  public var bufferBytesMax: Int
  /// Connections at once; further ones wait in the listener's backlog.
  public var connectionsMax: Int
  /// Seconds from accept to the end of the handshake.
  public var handshakeSecondsMax: Int
  /// Options that one handshake may send.
  public var handshakeOptionsMax: Int

  @inlinable public init(
    payloadBytesMax: UInt32 = 32 << 20,
    requestsPerConnectionMax: Int = 128,
    bufferBytesPerConnectionMax: Int = 64 << 20,
    bufferBytesMax: Int = 512 << 20,
    connectionsMax: Int = 100,
    handshakeSecondsMax: Int = 10,
    handshakeOptionsMax: Int = 32
  ) {
    self.payloadBytesMax = payloadBytesMax
    self.requestsPerConnectionMax = requestsPerConnectionMax
    self.bufferBytesPerConnectionMax = bufferBytesPerConnectionMax
    self.bufferBytesMax = bufferBytesMax
    self.connectionsMax = connectionsMax
    self.handshakeSecondsMax = handshakeSecondsMax
    self.handshakeOptionsMax = handshakeOptionsMax
  }

  /// Bytes of buffers that each of `connectionCount` connections may hold.
  public func bufferShare(connectionCount: Int) -> Int {
    min(bufferBytesPerConnectionMax, bufferBytesMax / max(connectionCount, 1))
  }
}
