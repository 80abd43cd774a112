// SPDX-License-Identifier: Apache-2.0
//
// What the user said about TLS, and whether it makes sense. This file performs no I/O.

/// How a server proves itself, in the user's words.
public struct TLSConfig: Sendable, Hashable {
  /// What an export makes of TLS.
  public enum Mode: String, Sendable, CaseIterable { case off, offered, required }

  /// A folder with ca-cert.pem, server-cert.pem, server-key.pem and perhaps ca-crl.pem.
  public var certificatesPath: String?
  /// Clients show certificates, which are checked.
  public var verifiesPeer = false
  /// A file with identities and their keys.
  public var keysPath: String?
  /// Versions and ciphers in the words of GnuTLS; nil: TLS 1.2 and 1.3 as GnuTLS likes them.
  public var priority: String?
  public init() {}

  public var hasCredentials: Bool { certificatesPath != nil || keysPath != nil }

  /// Checks what needs no file.
  func validate() throws(ControlError) {
    guard certificatesPath == nil || keysPath == nil else {
      throw ControlError(
        "--tls-psk", "a server has certificates or shared keys, not both",
        wayOut: "leave out --tls-certificates or --tls-psk")
    }
    if verifiesPeer, certificatesPath == nil {
      throw ControlError("--tls-verify-peer", "certificates need --tls-certificates")
    }
    if priority != nil, !hasCredentials {
      throw ControlError("--tls-priority", "TLS needs --tls-certificates or --tls-psk")
    }
  }
}
