// SPDX-License-Identifier: Apache-2.0
//
// What a client wants of TLS: how much of it, what it shows and whom it believes. A URI says some
// of it, too. Source: uri.md of the NBD project, "NBD URI query parameters related to TLS"; the
// layout of the folder is QEMU's (docs/system/tls.rst). This file performs no I/O.

import NBDProtocol

/// Wishes of one client about TLS. What is said here counts more than what a URI says.
public struct ClientTLS: Hashable, Sendable {
  public enum Use: String, Hashable, Sendable, CaseIterable {
    /// No TLS at all; an `nbds:` URI is then refused.
    case off
    /// TLS where the server has it, and plain text where it has not: whoever sits between the two
    /// can make it plain text.
    case offered
    /// No connection without it.
    case required
  }

  /// nil: required for `nbds:` and where credentials are named here, else off.
  public var use: Use?
  /// A folder with ca-cert.pem and perhaps ca-crl.pem, client-cert.pem, client-key.pem; nil: the
  /// URI's, else the authorities of this system.
  public var certificatesFolder: String?
  /// A file with keys, as psktool(1) writes it; nil: the URI's.
  public var keyFile: String?
  /// The name or IP address that the server's certificate has to have; nil: the URI's
  /// `tls-hostname`, else its host.
  public var hostname: String?
  /// Which key of the file is used; nil: the URI's user, else the user of this process, else the
  /// only one.
  public var identity: String?
  /// Whether the server's certificate is checked; nil: the URI's `tls-verify-peer`, else it is.
  public var verifiesPeer: Bool?
  /// Versions and ciphers in the words of GnuTLS; nil: TLS 1.2 and 1.3.
  public var priority: String?

  public init() {}

  var hasCredentials: Bool { certificatesFolder != nil || keyFile != nil }

  /// How much TLS a connection to `uri` has.
  public func use(for uri: NBDURI) throws(NBDClientFault) -> Use {
    switch use {
    case .required: return .required
    case .offered: return uri.requiresTLS ? .required : .offered
    case .off:
      guard !uri.requiresTLS else {
        throw .unsupported("nbds: never goes without TLS, and TLS is off")
      }
      return .off
    case nil:
      if uri.requiresTLS || hasCredentials { return .required }
      guard uri.tls == NBDURI.TLSWishes() else {
        throw .unsupported("the URI says something about TLS, but only nbds: asks for TLS")
      }
      return .off
    }
  }
}
