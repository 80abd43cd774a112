// SPDX-License-Identifier: Apache-2.0
//
// What a client needs for its sessions: what it shows, what it believes, whom it expects. Made of
// bytes in memory, so that it can cross threads, which credentials cannot. This file performs no
// I/O.

/// Makes sessions of one client with one server.
public struct TLSClientPlan: Sendable {
  public enum Proof: Sendable {
    case certificates(TLSCredentials.CertificateFiles, verifiesPeer: Bool)
    /// The first entry of the table.
    case keys(PSKTable)
  }

  public let proof: Proof
  /// The name, or the IP address, that has to be in the server's certificate.
  public let host: String?
  /// Versions and ciphers in the words of GnuTLS.
  public let priority: String?

  public init(_ proof: Proof, host: String?, priority: String? = nil) {
    self.proof = proof
    self.host = host
    self.priority = priority
  }

  /// A new session, with credentials of its own: for the thread of the caller.
  public func makeSession() throws(TLSFault) -> TLSSession {
    let credentials: TLSCredentials
    switch proof {
    case .certificates(let files, let verifiesPeer):
      guard !verifiesPeer || host != nil else {
        throw TLSFault("tls-hostname", "there is no name to look for in the server's certificate")
      }
      credentials = try TLSCredentials(
        files, role: .client, verifiesPeer: verifiesPeer, priority: priority)
    case .keys(let table):
      credentials = try TLSCredentials(keys: table, role: .client, priority: priority)
    }
    return try TLSSession(credentials, host: host)
  }
}
