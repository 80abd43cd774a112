// SPDX-License-Identifier: Apache-2.0
//
// The server under judgement: where it is, and how checks get to it.
// This file makes connections.

import LinuxIO
import TLS

/// What a check knows of the server. Each check makes its own connections.
public struct LintServer: Sendable {
  public let place: LintPlace
  /// Seconds that any answer may take.
  public let deadlineSeconds: Int
  /// Seconds after which the server promises to drop a client that says nothing; nil: no promise.
  public let handshakeSecondsMax: Int?
  /// What TLS needs; nil: everything is said in clear.
  public let tls: TLSClientPlan?
  /// The file behind the export, for what only it shows; nil: not known.
  public let rawFilePath: String?
  /// A second export of the server; nil: the list of exports tells one.
  public let otherExport: String?
  /// Whether a second client is served while there is a first one; found out before the checks.
  var servesSecondClient = true

  public init(
    place: LintPlace, deadlineSeconds: Int = 5, handshakeSecondsMax: Int? = nil,
    tls: TLSClientPlan? = nil, rawFilePath: String? = nil, otherExport: String? = nil
  ) {
    self.place = place
    self.deadlineSeconds = deadlineSeconds
    self.handshakeSecondsMax = handshakeSecondsMax
    self.tls = tls
    self.rawFilePath = rawFilePath
    self.otherExport = otherExport
  }

  var export: String { place.export }

  /// A connection on which nothing has been said.
  func connect() throws(LintStop) -> Probe { Probe(try ProbeSocket(to: self)) }

  /// A connection after the greeting, with nothing encrypted yet.
  func greetedInClear(flags: UInt32? = nil) throws(LintStop) -> Probe {
    let probe = try connect()
    try probe.greet(flags: flags)
    return probe
  }

  /// A connection on which options can be sent: after the greeting, and inside TLS where that is
  /// asked for.
  func greeted(flags: UInt32? = nil) throws(LintStop) -> Probe {
    let probe = try greetedInClear(flags: flags)
    try probe.startTLS(tls)
    return probe
  }

  /// The same server with another deadline.
  func with(deadlineSeconds: Int) -> LintServer {
    var copy = LintServer(
      place: place, deadlineSeconds: deadlineSeconds, handshakeSecondsMax: handshakeSecondsMax,
      tls: tls, rawFilePath: rawFilePath, otherExport: otherExport)
    copy.servesSecondClient = servesSecondClient
    return copy
  }

  /// A connection in the transmission phase, by GO, or by EXPORT_NAME where GO is unknown.
  ///
  /// Block sizes are asked for unless told otherwise, which binds the probe to keep them.
  func entered(
    _ style: ReplyStyle = .structured, contexts: [String] = [], blockSizes: Bool = true
  ) throws(LintStop) -> Probe {
    let probe = try greeted()
    try probe.negotiate(style)
    if !contexts.isEmpty { try probe.select(contexts, of: export) }
    try probe.enter(export, blockSizes: blockSizes)
    return probe
  }

  /// The best style that the server offers, for checks that do not care.
  func enteredSomehow(blockSizes: Bool = true) throws(LintStop) -> Probe {
    let probe = try greeted()
    let answer = try probe.ask(Option.structuredReply)
    if answer.isAck { probe.style = .structured }
    try probe.enter(export, blockSizes: blockSizes)
    return probe
  }

  /// Whether it writes, and may be written to by the size of what a check needs.
  func writable(
    _ style: ReplyStyle = .simple, blockSizes: Bool = true
  ) throws(LintStop) -> Probe {
    let probe = try entered(style, blockSizes: blockSizes)
    try need(!probe.has(ExportFlag.readOnly), "the export is read-only")
    return probe
  }

  /// Ends the check unless a new client is let in and can read; or is greeted, where it is not let
  /// in by its rights. A server that serves one client at a time is believed: a check may still
  /// hold that one connection.
  func demandService() throws(LintStop) {
    guard servesSecondClient else { return }
    do throws(LintStop) {
      let probe = try entered(.simple)
      let length = min(probe.size, UInt64(probe.blockByteCount))
      try probe.expectSuccess(probe.read(0, length), "a READ")
      probe.disconnect()
    } catch {
      if case .skipped = error { return }
      let text = LintOutcome(error, deadlineSeconds: deadlineSeconds).text
      throw .broken(expected: "the server to serve the next client", got: text)
    }
  }

  /// The same some time after a client has died: what that does to a server comes late, and must
  /// not be blamed on the next check.
  func demandServiceAfterDeath() throws(LintStop) {
    MonotonicClock.sleep(milliseconds: 150)
    try demandService()
  }

  /// Ends the check without a verdict when only one client is served at a time.
  func needSecondClient() throws(LintStop) {
    try need(servesSecondClient, "the server serves one client at a time")
  }
}

extension LintOutcome {
  /// Find and expectation in one phrase, for what waits on it.
  var text: String {
    switch self {
    case .pass: "pass"
    case .fail(let expected, let got): "\(got) instead of \(expected)"
    case .skipped(let reason): reason
    case .destructiveSkipped: "it writes"
    }
  }
}
