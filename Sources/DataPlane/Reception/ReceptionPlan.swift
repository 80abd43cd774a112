// SPDX-License-Identifier: Apache-2.0
//
// What the reception has to know: immutable values that Control compiles. This file performs no
// I/O.

import BlockTypes
import LinuxIO
import NBDProtocol
import TLS

/// Who stands before an export: what the kernel knows of it, and what TLS has proved.
public struct Caller: Sendable {
  public let peer: PeerIdentity
  /// nil without TLS.
  public let tls: TLSPeer?

  public init(peer: PeerIdentity, tls: TLSPeer?) {
    self.peer = peer
    self.tls = tls
  }
}

/// What a reload renews: credentials, and who may use which export.
public struct ReceptionRules {
  /// nil: TLS is off.
  public var tls: TLSPlan?
  /// For each export: whether a client may use it.
  public var access: [(Caller) -> ExportAccess]

  public init(tls: TLSPlan?, access: [(Caller) -> ExportAccess]) {
    self.tls = tls
    self.access = access
  }
}

/// The way into one export.
public struct Entrance: Sendable {
  public let notice: ExportNotice
  /// Where clients that have negotiated are left for the export's loop.
  public let arrivals: Mailbox<Arrival>
  public let stopOrder: StopOrder
  /// Clients of this export at once; further ones are refused with the reason.
  public let connectionsMax: Int
}

/// Everything that the reception needs. There are no defaults here: Control decides.
public struct ReceptionPlan {
  public var rules: ReceptionRules
  /// Clients at once, of all exports together; further ones wait.
  public var connectionsMax: Int
  /// Clients of one user or address at once, in all exports; further ones are told the reason.
  public var connectionsPerPeerMax: Int
  /// `handshakeSecondsMax` and `handshakeOptionsMax` count here.
  public var limits: RequestLimits
  /// Clients are let in without any negotiation.
  public var speaksOldstyle: Bool
  /// LIST is answered.
  public var listsExports: Bool

  public init(
    rules: ReceptionRules, connectionsMax: Int, connectionsPerPeerMax: Int,
    limits: RequestLimits, speaksOldstyle: Bool, listsExports: Bool
  ) {
    self.rules = rules
    self.connectionsMax = connectionsMax
    self.connectionsPerPeerMax = connectionsPerPeerMax
    self.limits = limits
    self.speaksOldstyle = speaksOldstyle
    self.listsExports = listsExports
  }
}
