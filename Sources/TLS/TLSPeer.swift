// SPDX-License-Identifier: Apache-2.0
//
// Whom a finished handshake showed at the other end. This file performs no I/O.

/// The other end of a session, as far as TLS proves it.
public enum TLSPeer: Hashable, Sendable {
  /// It knows the key of this identity.
  case preSharedKey(identity: String)
  /// Its certificate is from our authority, in force and not revoked.
  case certificate(distinguishedName: String)
  /// It showed a certificate that is not good, or none though one was asked for.
  case refusedCertificate(reason: String)
  /// Nobody asked who it is.
  case anonymous
}
