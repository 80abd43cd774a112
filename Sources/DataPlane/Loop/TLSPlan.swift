// SPDX-License-Identifier: Apache-2.0
//
// What an export has to know of TLS. This file performs no I/O.

import NBDProtocol
import TLS

/// TLS as Control wants it.
public struct TLSPlan {
  /// Not `off`.
  public var policy: TLSPolicy
  public var credentials: TLSCredentials
  /// Why a client may not use the export, in words that it is told; nil when it may.
  public var refusal: (TLSPeer) -> String?

  public init(
    policy: TLSPolicy, credentials: TLSCredentials, refusal: @escaping (TLSPeer) -> String?
  ) {
    precondition(policy != .off, "a plan for TLS turns it off")
    self.policy = policy
    self.credentials = credentials
    self.refusal = refusal
  }
}
