// SPDX-License-Identifier: Apache-2.0
//
// What the user said about who may use an export. This file performs no I/O.

/// The rules for one export, in the user's words. An empty list lets everybody pass; of those that
/// are not empty a client has to pass all that can be about it.
public struct AccessConfig: Sendable, Hashable {
  /// nil: required when the server has credentials, else off.
  public var tls: TLSConfig.Mode?
  /// Patterns for the distinguished names of clients.
  public var allowedNames: [String] = []
  /// Files with such patterns, one a line.
  public var allowedNamesPaths: [String] = []
  /// Identities of clients with shared keys.
  public var allowedIdentities: [String] = []
  /// Users and groups of processes on this machine, by name or number.
  public var allowedUsers: [String] = []
  public var allowedGroups: [String] = []

  public init() {}

  var asksForNames: Bool { !allowedNames.isEmpty || !allowedNamesPaths.isEmpty }

  /// Whether clients without TLS see nothing of the export.
  func requiresTLS(_ server: TLSConfig) -> Bool {
    switch tls {
    case .required: true
    case .off, .offered: false
    case nil: server.hasCredentials
    }
  }

  /// Checks what needs no file.
  func validate(_ server: TLSConfig) throws(ControlError) {
    if let tls, tls != .off, !server.hasCredentials {
      throw ControlError(
        "--tls", "there is nothing to prove this server with",
        wayOut: "say --tls-certificates FOLDER or --tls-psk FILE")
    }
    if asksForNames, !server.verifiesPeer {
      throw ControlError(
        "--tls-allow-dn", "a name that nobody checked means nothing",
        wayOut: "say --tls-verify-peer")
    }
    if !allowedIdentities.isEmpty, server.keysPath == nil {
      throw ControlError("--tls-allow-psk-identity", "identities need --tls-psk")
    }
    if asksForNames || !allowedIdentities.isEmpty, tls == .off {
      throw ControlError(
        "--tls", "without TLS nobody can prove the name that the export asks for",
        wayOut: "say --tls required or --tls offered")
    }
  }
}
