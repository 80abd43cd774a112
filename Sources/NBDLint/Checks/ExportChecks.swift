// SPDX-License-Identifier: Apache-2.0
//
// Rules of EXPORT_NAME and of the transmission flags. Spec: proto.md, "Option types",
// "Transmission flags". The probe performs the I/O.

enum ExportChecks {
  static let all = [
    LintCheck(
      "export-name.zeroes", .must, "EXPORT_NAME gets 124 zeroes unless agreed otherwise.",
      Source.text("Newstyle negotiation"), run: withZeroes),
    LintCheck(
      "export-name.no-zeroes", .must, "EXPORT_NAME gets no zeroes when that was agreed.",
      Source.text("Client flags"), run: withoutZeroes),
    LintCheck(
      "export-name.same-as-go", .must, "EXPORT_NAME tells the size and flags that GO tells.",
      Source.text("Option reply types"), run: sameAsGo),
    LintCheck(
      "export-name.after-structured", .must, "Structured replies stay agreed after EXPORT_NAME.",
      Source.text("Option types"), run: afterStructured),
    LintCheck(
      "export-name.unknown", .must, "EXPORT_NAME of an unknown export ends the session.",
      Source.text("Option types"), run: unknown),
    LintCheck(
      "flags.has-flags", .must, "Bit 0 of the transmission flags is set.",
      Source.text("Transmission flags"), run: hasFlags),
    LintCheck(
      "flags.no-reserved", .must, "Bits 13 to 15 of the transmission flags are clear.",
      Source.text("Transmission flags"), run: noReserved),
    LintCheck(
      "flags.df-needs-structured", .must, "SEND_DF is clear without structured replies.",
      Source.text("Transmission flags"), run: noDF),
    LintCheck(
      "flags.df-with-structured", .must, "SEND_DF is set where READ takes DF.",
      Source.text("Transmission flags"), run: withDF),
    LintCheck(
      "flags.fast-zero-needs-wz", .must, "SEND_FAST_ZERO is clear without SEND_WRITE_ZEROES.",
      Source.text("Transmission flags"), run: fastZero),
    LintCheck(
      "flags.payload-needs-ext", .must, "Bit 12 is clear without extended headers.",
      Source.draft("Transmission flags"), run: payload),
  ]

  private static func withZeroes(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted(flags: 1)
    try probe.enterByName(server.export, expectsZeroes: true)
    try probe.demandInStep(after: "EXPORT_NAME with zeroes")
  }

  private static func withoutZeroes(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    try need(probe.handshakeFlags & 2 != 0, "the server does not offer NO_ZEROES")
    try probe.enterByName(server.export)
    try demand(
      try !probe.socket.hasInput(withinMilliseconds: 50), "nothing behind size and flags",
      got: "bytes, or the end of the connection")
    try probe.demandInStep(after: "EXPORT_NAME without zeroes")
  }

  private static func byName(
    _ server: LintServer, _ style: ReplyStyle
  ) throws(LintStop) -> Probe {
    let probe = try server.greeted()
    try need(probe.handshakeFlags & 2 != 0, "the server does not offer NO_ZEROES")
    try probe.negotiate(style)
    try probe.enterByName(server.export)
    return probe
  }

  private static func sameAsGo(_ server: LintServer) throws(LintStop) {
    let byName = try byName(server, .simple)
    byName.disconnect()
    let byGo = try server.entered(.simple)
    try demand(byName.size == byGo.size, "the size \(byGo.size) of GO", got: "\(byName.size)")
    try demand(
      byName.flags == byGo.flags, "the flags 0x\(String(byGo.flags, radix: 16)) of GO",
      got: "0x\(String(byName.flags, radix: 16))")
  }

  private static func afterStructured(_ server: LintServer) throws(LintStop) {
    let probe = try byName(server, .structured)
    // The probe refuses a simple reply to READ here.
    try probe.demandInStep(after: "EXPORT_NAME with structured replies")
  }

  private static func unknown(_ server: LintServer) throws(LintStop) {
    let name = "lint-asks-for-an-export-that-nobody-has"
    let probe = try server.greeted()
    let answer = try probe.ask(Option.info, Probe.infoData(name))
    try need(!answer.isAck, "the server serves every name")
    let other = try server.greeted()
    try other.sendOption(Option.exportName, Array(name.utf8))
    try other.demandEnd(after: "EXPORT_NAME of an unknown export")
    try server.demandService()
  }

  /// The flags without and, where the server offers them, with structured replies.
  private static func flags(_ server: LintServer) throws(LintStop) -> [UInt16] {
    let simple = try server.entered(.simple)
    simple.disconnect()
    let other = try server.enteredSomehow()
    return [simple.flags, other.flags]
  }

  private static func hasFlags(_ server: LintServer) throws(LintStop) {
    for flags in try flags(server) {
      try demand(flags & ExportFlag.hasFlags != 0, "HAS_FLAGS", got: text(flags))
    }
  }

  private static func noReserved(_ server: LintServer) throws(LintStop) {
    for flags in try flags(server) {
      try demand(flags & ExportFlag.reserved == 0, "bits 13 to 15 clear", got: text(flags))
    }
  }

  private static func noDF(_ server: LintServer) throws(LintStop) {
    let probe = try server.entered(.simple)
    try demand(
      !probe.has(ExportFlag.sendDF), "SEND_DF clear with simple replies", got: text(probe.flags))
  }

  private static func withDF(_ server: LintServer) throws(LintStop) {
    let probe = try server.entered(.structured)
    guard !probe.has(ExportFlag.sendDF) else { return }
    let length = UInt64(probe.blockByteCount)
    let outcome = try probe.read(0, length, flags: CommandFlag.dontFragment)
    try demand(
      outcome.error != 0, "SEND_DF where READ takes DF", got: "flags \(text(probe.flags))")
  }

  private static func fastZero(_ server: LintServer) throws(LintStop) {
    for flags in try flags(server) {
      try demand(
        flags & ExportFlag.sendFastZero == 0 || flags & ExportFlag.sendWriteZeroes != 0,
        "SEND_FAST_ZERO only beside SEND_WRITE_ZEROES", got: text(flags))
    }
  }

  private static func payload(_ server: LintServer) throws(LintStop) {
    for flags in try flags(server) {
      try demand(
        flags & ExportFlag.payload == 0, "bit 12 clear without extended headers",
        got: text(flags))
    }
  }

  private static func text(_ flags: UInt16) -> String { "0x\(String(flags, radix: 16))" }
}
