// SPDX-License-Identifier: Apache-2.0
//
// Whether a client may use an export, as the server decided for it.
// Spec: proto.md, "SELECTIVETLS", "NBD_REP_ERR_POLICY". This file performs no I/O.

/// What stands between one client and one export.
public enum ExportAccess: Hashable, Sendable {
  case open
  /// It may be there for clients that use TLS: this one sees nothing of it.
  case needsTLS
  /// It is not for this client, which is told why: the reason is the end of a sentence.
  case refused(reason: String)
}
