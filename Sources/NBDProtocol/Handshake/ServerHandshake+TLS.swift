// SPDX-License-Identifier: Apache-2.0
//
// STARTTLS, and what a client may do without it.
// Spec: proto.md, "NBD_OPT_STARTTLS", "TLS support". This file performs no I/O.

/// What a server makes of TLS; the same for the whole life of a connection.
public enum TLSPolicy: String, Sendable, CaseIterable {
  /// NOTLS: STARTTLS is refused.
  case off
  /// SELECTIVETLS: a client may use it, and needs it for the exports that insist on it.
  case offered
  /// FORCEDTLS: without it only STARTTLS and ABORT are answered well.
  case required
}

extension ServerHandshake {
  /// Goes on with the options, now under TLS, as if none had been sent before.
  ///
  /// - Parameters:
  ///   - access: for each export, what this client may do now that it is known; nil: all are open.
  ///   - refusal: why this client may not use any export, as the end of a sentence; it is told so
  ///     for each option.
  /// - Spec: proto.md, "NBD_OPT_STARTTLS": the server MUST NOT keep what was negotiated before.
  public mutating func continueOverTLS(access: [ExportAccess]? = nil, refusal: String? = nil) {
    precondition(outcome == .startsTLS, "TLS came up without STARTTLS")
    precondition(access == nil || access?.count == exports.count, "an export has no access rule")
    precondition(gathered.isEmpty && stage == .optionHeader, "a message was begun before TLS")
    forgetOptions()
    self.access = access ?? Array(repeating: .open, count: exports.count)
    self.refusal = refusal
    isSecure = true
    outcome = .negotiating
  }

  /// Forgets all that options have changed. The count of options stays: it limits the connection.
  /// So do the client's flags, which are no option and are not sent again.
  private mutating func forgetOptions() {
    framing = .simple
    selection = nil
  }

  /// Why this option is not for this client; nil when it is.
  func barrier(to option: Option?) -> OptionError? {
    if option == .abort { return nil }
    if tlsPolicy == .required, !isSecure, option != .startTLS {
      return OptionError(.errTLSReqd, "this server requires TLS: send STARTTLS first")
    }
    if let refusal { return OptionError(.errPolicy, "not allowed: \(refusal)") }
    return nil
  }

  /// Answers an option behind a barrier. EXPORT_NAME has no error reply, and ends the connection.
  mutating func refuse(_ header: OptionHeader, _ error: OptionError) {
    guard Option(rawValue: header.option) == .exportName else { return reply(error, to: header) }
    hangUp(refusal.map { .clientRefused(reason: $0) } ?? .exportNeedsTLS)
  }

  /// - Spec: proto.md, "NBD_OPT_STARTTLS".
  mutating func answerStartTLS(_ header: OptionHeader) {
    guard tlsPolicy != .off else {
      return reply(OptionError(.errPolicy, "TLS is not configured"), to: header)
    }
    guard !isSecure else {
      return reply(OptionError(.errInvalid, "TLS is already in use"), to: header)
    }
    reply(.ack, to: header)
    outcome = .startsTLS
  }
}
