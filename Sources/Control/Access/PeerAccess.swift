// SPDX-License-Identifier: Apache-2.0
//
// Policy: which client may use an export, by what the kernel knows of it and by what TLS has
// proved. This file performs no I/O.

import DataPlane
import LinuxIO
import NBDProtocol
import TLS

/// The rules for one export. A client has to pass all of them; empty lists let everybody pass.
public struct PeerAccess: Sendable, Hashable {
  public var requiresTLS = false
  /// Patterns for distinguished names; nil: every good certificate.
  public var allowedNames: [String]?
  /// Identities of shared keys; none: every one that has a key.
  public var allowedIdentities: [String] = []
  /// Processes of this machine: those whose user or group is listed.
  public var allowedUserIDs: Set<UInt32> = []
  public var allowedGroupIDs: Set<UInt32> = []

  public init() {}

  /// What the client may do, and why not in words for the client.
  public func access(of caller: Caller) -> ExportAccess {
    if let reason = refusal(of: caller.peer) { return .refused(reason: reason) }
    guard let tls = caller.tls else {
      let isProofWanted = requiresTLS || allowedNames != nil || !allowedIdentities.isEmpty
      return isProofWanted ? .needsTLS : .open
    }
    return refusal(of: tls).map { .refused(reason: $0) } ?? .open
  }

  /// Numbers are compared as numbers: user 10 is not user 100 (CVE-2013-6410).
  private func refusal(of peer: PeerIdentity) -> String? {
    guard !allowedUserIDs.isEmpty || !allowedGroupIDs.isEmpty else { return nil }
    guard case .unix(let userID, let groupID, _) = peer else {
      return "the export is for users of this machine, by its UNIX socket"
    }
    let isAllowed = allowedUserIDs.contains(userID) || allowedGroupIDs.contains(groupID)
    return isAllowed ? nil : "user \(userID), group \(groupID) may not use the export"
  }

  private func refusal(of peer: TLSPeer) -> String? {
    switch peer {
    case .preSharedKey(let identity):
      if allowedIdentities.isEmpty { return nil }
      // Bytes, not characters: Unicode's equivalence does not count here.
      let isAllowed = allowedIdentities.contains { $0.utf8.elementsEqual(identity.utf8) }
      return isAllowed ? nil : "this identity may not use the export"
    case .certificate(let name):
      guard let allowedNames else { return nil }
      let isAllowed = allowedNames.contains { Glob.matches(name, pattern: $0) }
      return isAllowed ? nil : "the name in this certificate may not use the export"
    case .refusedCertificate(let reason): return reason
    case .anonymous:
      // Configurations that ask for a name always verify; this is the second lock.
      guard allowedNames == nil, allowedIdentities.isEmpty else { return "nobody is known here" }
      return nil
    }
  }
}
