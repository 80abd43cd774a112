// SPDX-License-Identifier: Apache-2.0
//
// Rules of the greeting. Spec: proto.md, "Newstyle negotiation", "Handshake flags", "Client flags".
// The probe performs the I/O.

enum GreetingChecks {
  static let all = [
    LintCheck(
      "greet.magic", .must,
      "The server speaks first: NBDMAGIC, IHAVEOPT and 16 bits of flags, and then waits.",
      Source.text("Newstyle negotiation"), run: magic),
    LintCheck(
      "greet.flags", .must,
      "Bit 0, fixed newstyle, is set, and no bit is besides it and NO_ZEROES.",
      Source.text("Handshake flags"), run: flags),
    LintCheck(
      "greet.unknown-client-flag", .must,
      "A client flag that the server does not know, or did not offer, ends the connection.",
      Source.text("Client flags"), run: unknownClientFlag),
    LintCheck(
      "greet.no-fixed-newstyle", .must,
      "A client without fixed newstyle enters by EXPORT_NAME and gets 124 zeroes.",
      Source.text("Newstyle negotiation"), run: noFixedNewstyle),
  ]

  private static func magic(_ server: LintServer) throws(LintStop) {
    let probe = try server.connect()
    try probe.greet()
    try demand(
      try !probe.socket.hasInput(withinMilliseconds: 50), "silence until the client has spoken",
      got: "more bytes, or the end of the connection")
  }

  private static func flags(_ server: LintServer) throws(LintStop) {
    let probe = try server.greetedInClear()
    let text = "0x\(String(probe.handshakeFlags, radix: 16))"
    try demand(probe.handshakeFlags & 1 == 1, "fixed newstyle in the handshake flags", got: text)
    try demand(
      probe.handshakeFlags & ~3 == 0, "no handshake flag but FIXED_NEWSTYLE and NO_ZEROES",
      got: text)
  }

  private static func unknownClientFlag(_ server: LintServer) throws(LintStop) {
    for flags in [4, 7, 0x8000_0001] as [UInt32] {
      let probe = try server.greetedInClear(flags: flags)
      try probe.demandEnd(after: "client flags 0x\(String(flags, radix: 16))")
    }
    try server.demandService()
  }

  private static func noFixedNewstyle(_ server: LintServer) throws(LintStop) {
    try need(server.tls == nil, "there is no TLS without fixed newstyle")
    let probe = try server.greetedInClear(flags: 0)
    try probe.enterByName(server.export, expectsZeroes: true)
    try probe.demandInStep(after: "EXPORT_NAME")
  }
}
