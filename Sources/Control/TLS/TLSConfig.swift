// SPDX-License-Identifier: Apache-2.0
//
// What the user said about TLS, and whether it makes sense. This file performs no I/O.

import NBDProtocol

/// TLS of one export, in the user's words.
public struct TLSConfig: Sendable, Hashable {
  public enum Mode: String, Sendable, CaseIterable { case off, offered, required }

  /// nil: required when there are credentials, else off.
  public var mode: Mode?
  /// A folder with ca-cert.pem, server-cert.pem, server-key.pem and perhaps ca-crl.pem.
  public var certificatesPath: String?
  /// Clients show certificates, which are checked.
  public var verifiesPeer = false
  /// A file with identities and their keys.
  public var keysPath: String?
  /// Versions and ciphers in the words of GnuTLS; nil: TLS 1.2 and 1.3 as GnuTLS likes them.
  public var priority: String?
  /// Patterns for the distinguished names of clients; none: all that the authority has signed.
  public var allowedNames: [String] = []
  /// Identities of clients; none: all that have a key.
  public var allowedIdentities: [String] = []

  public init() {}

  public var hasCredentials: Bool { certificatesPath != nil || keysPath != nil }

  /// What the protocol is told.
  public var policy: TLSPolicy {
    switch mode {
    case .off: .off
    case .offered: .offered
    case .required: .required
    case nil: hasCredentials ? .required : .off
    }
  }

  /// Checks what needs no file.
  func validate() throws(ControlError) {
    if let mode, mode != .off, !hasCredentials {
      throw ControlError(
        "--tls", "there is nothing to prove this server with",
        wayOut: "say --tls-certificates FOLDER or --tls-psk FILE")
    }
    guard certificatesPath == nil || keysPath == nil else {
      throw ControlError(
        "--tls-psk", "a server has certificates or shared keys, not both",
        wayOut: "leave out --tls-certificates or --tls-psk")
    }
    if verifiesPeer, certificatesPath == nil {
      throw ControlError("--tls-verify-peer", "certificates need --tls-certificates")
    }
    if !allowedNames.isEmpty, !verifiesPeer {
      throw ControlError(
        "--tls-allow-dn", "a name that nobody checked means nothing",
        wayOut: "say --tls-verify-peer")
    }
    if !allowedIdentities.isEmpty, keysPath == nil {
      throw ControlError("--tls-allow-psk-identity", "identities need --tls-psk")
    }
    if priority != nil, !hasCredentials {
      throw ControlError("--tls-priority", "TLS needs --tls-certificates or --tls-psk")
    }
  }
}
