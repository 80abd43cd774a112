// SPDX-License-Identifier: Apache-2.0
//
// What went wrong with TLS, as one sentence. This file performs no I/O.

/// A failure of a credential or of a session.
public struct TLSFault: Error, Hashable, Sendable, CustomStringConvertible {
  /// What was tried, or about which part of the credentials it is.
  public let subject: String
  public let reason: String

  public init(_ subject: String, _ reason: String) {
    self.subject = subject
    self.reason = reason
  }

  public var description: String { "\(subject): \(reason)" }
}
