// SPDX-License-Identifier: Apache-2.0
//
// A client on its way from the reception to the loop of its export. This file performs no I/O.

import LinuxIO
import NBDProtocol

/// A client that has negotiated, with all that is its own. It is left once and taken once; one
/// that nobody takes is closed.
///
/// SAFETY: the thread that makes it gives it away by a mailbox, whose lock orders the two threads,
/// and keeps nothing of it.
@safe public final class Arrival: @unchecked Sendable {
  let number: UInt64
  let peer: PeerIdentity
  let startNanoseconds: UInt64
  let negotiated: Negotiated
  /// What the client sent behind its handshake, in clear.
  let leftover: [UInt8]
  let counters: ConnectionCounters
  private var socket: StreamSocket?
  private var seat: Seat?
  private var session: PackedStream?
  let isSecure: Bool

  init(
    number: UInt64, peer: PeerIdentity, startNanoseconds: UInt64, negotiated: Negotiated,
    leftover: [UInt8], counters: ConnectionCounters, socket: consuming StreamSocket,
    seat: consuming Seat, session: consuming PackedStream?
  ) {
    self.number = number
    self.peer = peer
    self.startNanoseconds = startNanoseconds
    self.negotiated = negotiated
    self.leftover = leftover
    self.counters = counters
    isSecure = session != nil
    self.socket = consume socket
    self.seat = consume seat
    self.session = session
  }

  func takeSocket() -> StreamSocket {
    guard let socket = socket.take() else { preconditionFailure("an arrival was taken twice") }
    return socket
  }

  func takeSeat() -> Seat {
    guard let seat = seat.take() else { preconditionFailure("an arrival was taken twice") }
    return seat
  }

  /// nil for a client without TLS.
  func takeSession() -> PackedStream? { session.take() }
}
