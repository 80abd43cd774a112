// SPDX-License-Identifier: Apache-2.0
//
// What the user said about the process that serves, before anything is opened or checked.
// This file performs no I/O and holds no defaults: the command line has them.

import NBDProtocol

/// A process and its exports, in the user's words.
public struct ServerConfig: Sendable {
  /// At least one; the first answers to the empty name, too.
  public var exports: [ExportConfig]

  public var connectionsMax: Int
  public var connectionsPerPeerMax: Int
  public var handshakeSecondsMax: Int
  /// Let clients in without negotiation.
  public var speaksOldstyle = false
  /// Tell clients the names of the exports.
  public var listsExports = true

  public var addresses: AddressConfig
  public var tls = TLSConfig()

  /// `USER[:GROUP]` to become; nil leaves the choice to `WorkerIdentity`.
  public var user: String?
  public var readyDescriptor: Int32?
  public var pidFilePath: String?
  public var runsInBackground = false
  public var printsDrive = false

  public init(
    exports: [ExportConfig], connectionsMax: Int, connectionsPerPeerMax: Int,
    handshakeSecondsMax: Int, addresses: AddressConfig
  ) {
    self.exports = exports
    self.connectionsMax = connectionsMax
    self.connectionsPerPeerMax = connectionsPerPeerMax
    self.handshakeSecondsMax = handshakeSecondsMax
    self.addresses = addresses
  }

  /// What the protocol is told: `required` when no export can be used without TLS.
  public var tlsPolicy: TLSPolicy {
    let isRequired = exports.map { $0.access.requiresTLS(tls) }
    if isRequired.allSatisfy(\.self) { return .required }
    let isWanted = exports.contains { $0.access.tls == .offered } || isRequired.contains(true)
    return isWanted ? .offered : .off
  }
}
