// SPDX-License-Identifier: Apache-2.0
//
// Rules of options whatever their number. Spec: proto.md, "Fixed newstyle negotiation", "Option
// types". The probe performs the I/O.

enum OptionChecks {
  static let all = [
    LintCheck(
      "opt.bad-magic", .quality, "An option that does not start with IHAVEOPT ends the connection.",
      Source.text("Newstyle negotiation"), run: badMagic),
    LintCheck(
      "opt.unknown", .must, "An unknown option gets ERR_UNSUP, and the next one is understood.",
      Source.text("Option types"), run: unknown),
    LintCheck(
      "opt.unknown-payload", .must, "The data of an unknown option is skipped by its length.",
      Source.text("Option types"), run: unknownPayload),
    LintCheck(
      "opt.unknown-20", .quality, "Twenty unknown options in a row are all answered.",
      Source.text("Fixed newstyle negotiation"), run: unknown20),
    LintCheck(
      "opt.peek-export", .must, "Option 4 was withdrawn and gets ERR_UNSUP.",
      Source.text("Option types"), run: peekExport),
    LintCheck(
      "opt.oversize", .quality,
      "An option that claims gigabytes gets an error or the end, at once and without the data.",
      Source.text("Option reply types"), run: oversize),
    LintCheck(
      "opt.truncated-eof", .quality, "A client that closes inside an option hurts nobody.",
      Source.text("Termination of the session during option haggling"), run: truncated),
    LintCheck(
      "opt.abort", .must, "ABORT gets ACK, and then the connection ends.",
      Source.text("Termination of the session during option haggling"), run: abort),
    LintCheck(
      "opt.abort-data", .should, "Data of an ABORT is ignored.",
      Source.text("Option types"), run: abortData),
  ]

  private static func badMagic(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    try probe.sendHostile(Array("IHAVEOPX".utf8) + wire(Option.list, UInt32(0)))
    try probe.demandEnd(after: "an option with a wrong magic")
    try server.demandService()
  }

  private static func unknown(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    for number in [Option.unknown, 99, 0x7fff_ffff, 0xffff_ffff] {
      try probe.ask(number).demandType(Reply.unsup, to: "option \(number)")
    }
    try probe.demandEntry(server.export)
  }

  private static func unknownPayload(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    for count in [1, 4096, 65_536] {
      try probe.ask(Option.unknown, zeroes(count))
        .demandType(Reply.unsup, to: "an unknown option with \(count) bytes")
    }
    try probe.demandEntry(server.export)
  }

  private static func unknown20(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    for index in 1...20 {
      try probe.ask(Option.unknown).demandType(Reply.unsup, to: "unknown option \(index) of 20")
    }
    try probe.demandEntry(server.export)
  }

  private static func peekExport(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    try probe.ask(Option.peekExport).demandType(Reply.unsup, to: "PEEK_EXPORT")
    try probe.demandEntry(server.export)
  }

  private static func oversize(_ server: LintServer) throws(LintStop) {
    for number in [Option.list, Option.go, Option.setMeta, Option.unknown] {
      let probe = try server.greeted()
      try probe.sendHostile(wire(ProbeMagic.option, number, UInt32.max))
      do throws(LintStop) {
        let part = try probe.receiveOptionReply()
        try demand(
          part.isError, "an error or the end for an option of 4 GiB", got: Reply.name(part.type))
      } catch {
        // The end of the connection is as good as an error.
        guard case .ended = error else { throw error }
      }
    }
    try server.demandService()
  }

  private static func truncated(_ server: LintServer) throws(LintStop) {
    let bytes = Probe.option(Option.go, Probe.infoData(server.export, [Info.blockSize]))
    for count in stride(from: 1, to: bytes.count, by: 5) {
      let probe = try server.greeted()
      try probe.sendHostile(Array(bytes[..<count]))
      probe.socket.abandon()
    }
    try server.demandService()
  }

  private static func abort(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    try probe.ask(Option.abort).demandAck("ABORT")
    try probe.demandEnd(after: "ABORT")
  }

  private static func abortData(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    try probe.ask(Option.abort, [1, 2, 3]).demandAck("ABORT with data")
    try probe.demandEnd(after: "ABORT with data")
  }
}
