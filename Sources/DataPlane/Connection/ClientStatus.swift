// SPDX-License-Identifier: Apache-2.0
//
// What an export tells about a client. This file performs no I/O.

import LinuxIO
import NBDProtocol
import TLS

/// One client at the end of a tick. All totals are since it connected.
public struct ClientStatus: Sendable {
  /// Where a connection stands.
  public enum Phase: String, Sendable { case handshake, transmission, finishing }

  /// 1 for the first client of the process; never used again.
  public internal(set) var number: UInt64
  public internal(set) var peer: PeerIdentity
  public internal(set) var connectedNanoseconds: UInt64
  public internal(set) var phase: Phase
  /// The name of the export that it uses; nil until the handshake is over.
  public internal(set) var export: String?
  /// nil until the handshake is over.
  public internal(set) var negotiated: Negotiated?
  /// The contexts that BLOCK_STATUS tells it about.
  public internal(set) var contextNames: [String]
  /// nil until the handshake of TLS is over, and for clients without it.
  public internal(set) var tls: TLSStatus?
  /// Its next request waits for others of its own to be answered.
  public internal(set) var isStalled: Bool

  public internal(set) var inFlightCount: Int
  /// Bytes of its requests' buffers, and received ones that are not understood yet.
  public internal(set) var bufferedByteCount: Int
  public internal(set) var requestCount: UInt64
  public internal(set) var errorCount: UInt64
  /// Bytes from and to its socket, headers and handshake included.
  public internal(set) var receivedByteCount: UInt64
  public internal(set) var sentByteCount: UInt64
}

/// What a client's TLS agreed on.
public struct TLSStatus: Hashable, Sendable {
  /// "TLS1.3"
  public let version: String
  public let peer: TLSPeer
}
