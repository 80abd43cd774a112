// SPDX-License-Identifier: Apache-2.0
//
// Policy: which of the clients that TLS has proved may use the export. This file performs no I/O.

import TLS

/// The rules for one export.
public struct PeerAccess: Sendable, Hashable {
  /// Patterns for distinguished names; none: every good certificate.
  public var allowedNames: [String]
  /// Identities of shared keys; none: every one that has a key.
  public var allowedIdentities: [String]

  public init(allowedNames: [String] = [], allowedIdentities: [String] = []) {
    self.allowedNames = allowedNames
    self.allowedIdentities = allowedIdentities
  }

  /// Why the client may not use the export, in words for the client; nil when it may.
  public func refusal(of peer: TLSPeer) -> String? {
    switch peer {
    case .preSharedKey(let identity):
      if allowedIdentities.isEmpty { return nil }
      // Bytes, not characters: Unicode's equivalence does not count here.
      let isAllowed = allowedIdentities.contains { $0.utf8.elementsEqual(identity.utf8) }
      return isAllowed ? nil : "this identity may not use the export"
    case .certificate(let name):
      if allowedNames.isEmpty { return nil }
      let isAllowed = allowedNames.contains { Glob.matches(name, pattern: $0) }
      return isAllowed ? nil : "the name in this certificate may not use the export"
    case .refusedCertificate(let reason): return reason
    case .anonymous:
      // Configurations that ask for a name always verify; this is the second lock.
      guard allowedNames.isEmpty, allowedIdentities.isEmpty else { return "nobody is known here" }
      return nil
    }
  }
}
