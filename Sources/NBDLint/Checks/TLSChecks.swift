// SPDX-License-Identifier: Apache-2.0
//
// Rules of TLS, in front of it and inside it. Spec: proto.md, "TLS support".
// The probe performs the I/O.

enum TLSChecks {
  static let all = [
    LintCheck(
      "starttls.notls", .must,
      "A server without TLS refuses STARTTLS by a permitted error, and the talk goes on.",
      Source.text("TLS support"), run: notTLS),
    LintCheck(
      "tls.starttls", .must, "A server with TLS answers STARTTLS with ACK and nothing else.",
      Source.text("TLS support"), run: startTLS),
    LintCheck(
      "tls.starttls-data", .must, "STARTTLS with data gets an error.",
      Source.text("Option types"), run: startTLSData),
    LintCheck(
      "tls.forced", .must,
      "Where TLS is forced, options get ERR_TLS_REQD, EXPORT_NAME ends, ABORT is allowed.",
      Source.text("FORCEDTLS mode"), run: forced),
    LintCheck(
      "tls.plain-inject", .quality,
      "Plain text in the same segment behind STARTTLS is never obeyed.",
      Source.text("TLS support"), run: plainInject),
    LintCheck(
      "tls.second-starttls", .must, "A second STARTTLS, inside TLS, gets ERR_INVALID.",
      Source.text("Option types"), run: secondStartTLS),
    LintCheck(
      "tls.state-dropped", .must, "Whatever was negotiated before STARTTLS is forgotten.",
      Source.text("TLS support"), run: stateDropped),
  ]

  /// Ends the check without a verdict unless it can go inside TLS.
  private static func needSession(_ server: LintServer) throws(LintStop) {
    try need(
      server.tls != nil, "inside TLS: say nbds: and with what this client proves itself")
  }

  private static func notTLS(_ server: LintServer) throws(LintStop) {
    let probe = try server.greetedInClear()
    let answer = try probe.ask(Option.startTLS)
    try need(!answer.isAck, "the server offers TLS")
    try answer.demandType(
      Reply.policy, Reply.unsup, Reply.platform, Reply.invalid, to: "STARTTLS")
    try probe.demandEntry(server.export)
  }

  /// Ends the check without a verdict when STARTTLS is refused.
  private static func needTLS(_ server: LintServer) throws(LintStop) {
    let answer = try server.greetedInClear().ask(Option.startTLS)
    try need(answer.isAck, "the server does not offer TLS")
  }

  private static func startTLS(_ server: LintServer) throws(LintStop) {
    let probe = try server.greetedInClear()
    let answer = try probe.ask(Option.startTLS)
    try need(answer.isAck, "the server does not offer TLS")
    try demand(answer.parts.isEmpty, "ACK alone", got: "\(answer.parts.count) replies before it")
    try demand(
      try !probe.socket.hasInput(withinMilliseconds: 100), "silence until the client's handshake",
      got: "bytes, or the end of the connection")
  }

  private static func startTLSData(_ server: LintServer) throws(LintStop) {
    let probe = try server.greetedInClear()
    let answer = try probe.ask(Option.startTLS, [1, 2, 3, 4])
    try demand(answer.end.isError, "an error to STARTTLS with data", got: answer.text)
    try answer.demandType(
      Reply.invalid, Reply.unsup, Reply.policy, Reply.platform, to: "STARTTLS with data")
  }

  private static func forced(_ server: LintServer) throws(LintStop) {
    try needTLS(server)
    let probe = try server.greetedInClear()
    let first = try probe.ask(Option.list)
    try need(first.type == Reply.tlsRequired, "the server does not force TLS")
    for number in [Option.info, Option.go, Option.structuredReply, Option.unknown] {
      try probe.ask(number, number < 8 ? Probe.infoData(server.export) : [])
        .demandType(Reply.tlsRequired, to: "option \(number) before TLS")
    }
    try probe.ask(Option.abort).demandAck("ABORT before TLS")
    let other = try server.greetedInClear()
    try other.sendOption(Option.exportName, Array(server.export.utf8))
    try other.demandEnd(after: "EXPORT_NAME before TLS")
  }

  private static func plainInject(_ server: LintServer) throws(LintStop) {
    try needTLS(server)
    let probe = try server.greetedInClear()
    try probe.socket.send(Probe.option(Option.startTLS) + Probe.option(Option.list))
    try probe.receiveAnswer(to: Option.startTLS).demandAck("STARTTLS")
    do throws(LintStop) {
      let bytes = try probe.socket.receive(8, "silence")
      try demand(
        bytes != wire(ProbeMagic.optionReply), "no answer in plain text after STARTTLS",
        got: "an option reply")
    } catch {
      switch error {
      case .ended, .timedOut: break  // waiting for a handshake is right, too
      case .broken, .skipped, .unreachable, .notRestored: throw error
      }
    }
    try server.demandGreeting()
  }
}

extension TLSChecks {
  private static func secondStartTLS(_ server: LintServer) throws(LintStop) {
    try needSession(server)
    let probe = try server.greeted()
    try probe.ask(Option.startTLS).demandType(Reply.invalid, to: "STARTTLS inside TLS")
    try probe.demandEntry(server.export)
    try probe.demandInStep(after: "a second STARTTLS")
  }

  /// Negotiates in clear what a server lets it, begins TLS, and looks for what is left of that.
  private static func stateDropped(_ server: LintServer) throws(LintStop) {
    try needSession(server)
    let probe = try server.greetedInClear()
    // A server that forces TLS refuses all of it, and has nothing to forget.
    try probe.ask(Option.structuredReply)
    try probe.ask(Option.setMeta, Probe.metaData(server.export, [MetaChecks.base]))
    try probe.ask(Option.extendedHeaders)
    try probe.startTLS(server.tls)
    // The probe's own style is simple, and it refuses a structured reply.
    try probe.enter(server.export)
    try probe.demandInStep(after: "STARTTLS, which forgets structured replies")
    let status = try probe.call(
      Command.blockStatus, length: UInt64(probe.blockByteCount))
    try demand(
      status.error != 0, "an error to BLOCK_STATUS, whose context was forgotten", got: "success")
    // DF and the payload filter belong to what was forgotten.
    try demand(
      !probe.has(ExportFlag.sendDF) && !probe.has(ExportFlag.payload),
      "no flags of structured replies", got: "0x\(String(probe.flags, radix: 16))")
  }
}

extension LintServer {
  /// Ends the check unless a new client is greeted.
  func demandGreeting() throws(LintStop) {
    do throws(LintStop) { _ = try greetedInClear() } catch {
      let text = LintOutcome(error, deadlineSeconds: deadlineSeconds).text
      throw .broken(expected: "the server to greet the next client", got: text)
    }
  }
}
