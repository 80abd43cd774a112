// SPDX-License-Identifier: Apache-2.0
//
// What a server has to know of TLS. This file performs no I/O.

import NBDProtocol
import TLS

/// TLS as Control wants it.
public struct TLSPlan {
  /// Not `off`.
  public var policy: TLSPolicy
  public var credentials: TLSCredentials

  public init(policy: TLSPolicy, credentials: TLSCredentials) {
    precondition(policy != .off, "a plan for TLS turns it off")
    self.policy = policy
    self.credentials = credentials
  }
}
