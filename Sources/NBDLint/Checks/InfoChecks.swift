// SPDX-License-Identifier: Apache-2.0
//
// Rules of INFO and GO. Spec: proto.md, "Option types", "Option reply types".
// The probe performs the I/O.

enum InfoChecks {
  static let all = [
    LintCheck(
      "info.basic", .must, "INFO tells at least NBD_INFO_EXPORT and does not enter the export.",
      Source.text("Option types"), run: basic),
    LintCheck(
      "info.same-as-go", .must, "GO right after INFO tells the same.",
      Source.text("Option types"), run: sameAsGo),
    LintCheck(
      "info.unknown-type", .must, "Requests of unknown information are ignored.",
      Source.text("Option types"), run: unknownType),
    LintCheck(
      "info.name", .must, "NBD_INFO_NAME tells a name that LIST would tell.",
      Source.text("Option reply types"), run: name),
    LintCheck(
      "info.description", .must, "NBD_INFO_DESCRIPTION tells the text that LIST shows.",
      Source.text("Option reply types"), run: description),
    LintCheck(
      "info.block-size", .must,
      "Block sizes: minimum a power of 2 up to 65,536, preferred one of 512 or more, maximum not"
        + " below it.", Source.text("Option reply types"), run: blockSize),
    LintCheck(
      "info.unknown-export", .must, "INFO and GO of an unknown export get ERR_UNKNOWN.",
      Source.text("Option reply types"), run: unknownExport),
    LintCheck(
      "info.trailing-junk", .should, "Bytes behind the last information request: ERR_INVALID.",
      Source.text("Option reply types"), run: trailingJunk),
    LintCheck(
      "info.short", .should, "INFO with less than 6 bytes gets ERR_INVALID.",
      Source.text("Option reply types"), run: short),
    LintCheck(
      "info.name-overrun", .must, "A name longer than the option gets ERR_INVALID.",
      Source.text("Option types"), run: nameOverrun),
    LintCheck(
      "info.count-overrun", .should, "More information requests counted than sent: ERR_INVALID.",
      Source.text("Option reply types"), run: countOverrun),
    LintCheck(
      "info.overlong-name", .must, "A name of more than 4096 bytes is refused or ends the session.",
      Source.text("Conventions"), run: overlongName),
    LintCheck(
      "go.no-padding", .must, "Nothing follows the ACK of GO, whatever was agreed on zeroes.",
      Source.text("Option types"), run: noPadding),
  ]

  /// Sends INFO; ends the check without a verdict where the server does not know it.
  private static func info(
    _ probe: Probe, _ data: [UInt8]
  ) throws(LintStop) -> OptionAnswer {
    let answer = try probe.ask(Option.info, data)
    try need(answer.type != Reply.unsup, "the server does not know INFO")
    return answer
  }

  private static func facts(
    _ probe: Probe, _ server: LintServer, _ requests: [UInt16]
  ) throws(LintStop) -> ExportFacts {
    let answer = try info(probe, Probe.infoData(server.export, requests))
    try answer.demandAck("INFO of '\(server.export)'")
    return try answer.facts()
  }

  private static func basic(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    let facts = try facts(probe, server, [Info.blockSize])
    try demand(facts.size <= UInt64(Int64.max), "a size below 2^63", got: "\(facts.size)")
    try probe.ask(Option.unknown).demandType(Reply.unsup, to: "an option after INFO")
    try probe.demandEntry(server.export)
  }

  private static func sameAsGo(_ server: LintServer) throws(LintStop) {
    for requests in [[Info.blockSize], [0, 1, 2, 3], [9, 3]] as [[UInt16]] {
      let probe = try server.greeted()
      let data = Probe.infoData(server.export, requests)
      let told = try info(probe, data)
      try told.demandAck("INFO")
      let entered = try probe.ask(Option.go, data)
      try entered.demandAck("GO")
      let before = Set(told.parts.map(\.payload))
      let after = Set(entered.parts.map(\.payload))
      try demand(
        before == after, "the same information from GO as from INFO",
        got: before.symmetricDifference(after).map { hexadecimal($0) }.sorted()
          .joined(separator: " / "))
    }
  }

  private static func unknownType(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    _ = try facts(probe, server, [4, 5, 0x7fff, 0xffff, Info.blockSize])
    try probe.demandEntry(server.export)
  }

  private static func name(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    let facts = try facts(probe, server, [Info.name])
    // It may be omitted where it would only repeat the request.
    guard let name = facts.name else { return }
    let list = try probe.ask(Option.list)
    guard list.isAck else { return }
    let known = try list.servers().map(\.name) + [Array(server.export.utf8)]
    try demand(
      known.contains(name), "a name that LIST tells, or that was asked for", got: shown(name))
  }

  private static func description(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    let facts = try facts(probe, server, [Info.name, Info.description])
    let list = try probe.ask(Option.list)
    try need(list.isAck, "the server lists nothing: \(list.text)")
    let name = facts.name ?? Array(server.export.utf8)
    let entry = try list.servers().first { $0.name == name }
    guard let entry else { throw .skipped("LIST does not tell the export that was entered") }
    guard let text = facts.description else { return }  // optional
    try demand(
      text == entry.description || entry.description.isEmpty,
      "the description that LIST tells, '\(shown(entry.description))'", got: shown(text))
  }

  private static func blockSize(_ server: LintServer) throws(LintStop) {
    let facts = try facts(try server.greeted(), server, [Info.blockSize])
    guard let sizes = facts.blockSizes else { throw .skipped("the server tells no block sizes") }
    let text = "\(sizes.minimum), \(sizes.preferred), \(sizes.maximum)"
    let minimumIsRight = sizes.minimum.nonzeroBitCount == 1 && sizes.minimum <= 65_536
    try demand(minimumIsRight, "a minimum that is a power of 2 up to 65,536", got: text)
    let isPower = sizes.preferred.nonzeroBitCount == 1
    try demand(
      isPower && sizes.preferred >= max(sizes.minimum, 512),
      "a preferred size that is a power of 2 from the minimum and 512 on", got: text)
    try demand(
      sizes.maximum >= sizes.preferred, "a maximum not below the preferred size", got: text)
    try demand(
      sizes.maximum == .max || sizes.maximum % sizes.minimum == 0,
      "a maximum that is a multiple of the minimum", got: text)
  }

  private static let unlikelyName = "lint-asks-for-an-export-that-nobody-has"

  private static func unknownExport(_ server: LintServer) throws(LintStop) {
    for number in [Option.info, Option.go] {
      let probe = try server.greeted()
      let answer = try probe.ask(number, Probe.infoData(unlikelyName))
      try need(answer.type != Reply.unsup, "the server does not know INFO and GO")
      try need(!answer.isAck, "the server serves every name")
      try answer.demandType(Reply.unknown, to: "an unknown export")
      try probe.demandEntry(server.export)
    }
  }

  private static func demandInvalid(
    _ server: LintServer, _ data: [UInt8], _ what: String
  ) throws(LintStop) {
    for number in [Option.info, Option.go] {
      let probe = try server.greeted()
      let answer = try probe.ask(number, data)
      try need(answer.type != Reply.unsup, "the server does not know INFO and GO")
      try answer.demandType(Reply.invalid, to: what)
      try probe.demandEntry(server.export)
    }
  }

  private static func trailingJunk(_ server: LintServer) throws(LintStop) {
    let data = Probe.infoData(server.export, [Info.blockSize])
    try demandInvalid(server, data + [0], "INFO with a byte too many")
    try demandInvalid(server, data + [0, 3], "INFO with a request that is not counted")
  }

  private static func short(_ server: LintServer) throws(LintStop) {
    try demandInvalid(server, [], "INFO without data")
    try demandInvalid(server, [0, 0, 0, 0], "INFO with 4 bytes")
    try demandInvalid(server, [0, 0, 0, 0, 0], "INFO with 5 bytes")
  }

  private static func nameOverrun(_ server: LintServer) throws(LintStop) {
    for length in [1, 0x1000, UInt32.max] {
      let data = wire(length) + [0, 0]
      try demandInvalid(server, data, "INFO whose name would have \(length) bytes of 2")
    }
  }

  private static func countOverrun(_ server: LintServer) throws(LintStop) {
    let data = counted(server.export) + wire(UInt16(9))
    try demandInvalid(server, data, "INFO with 9 requests counted and none sent")
    try demandInvalid(server, data + [0, 3], "INFO with 9 requests counted and one sent")
  }

  private static func overlongName(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    let name = String(repeating: "n", count: 4097)
    do throws(LintStop) {
      let answer = try probe.ask(Option.go, Probe.infoData(name))
      try demand(answer.end.isError, "an error to a name of 4097 bytes", got: answer.text)
    } catch {
      guard case .ended = error else { throw error }
      return try server.demandService()
    }
    try probe.demandEntry(server.export)
  }

  private static func noPadding(_ server: LintServer) throws(LintStop) {
    for flags in [1, 3] as [UInt32] {
      let probe = try server.greeted()
      guard UInt32(probe.handshakeFlags) & flags == flags else { continue }
      let other = try server.greeted(flags: flags)
      let answer = try other.ask(
        Option.go, Probe.infoData(server.export, [Info.blockSize]))
      try need(answer.type != Reply.unsup, "the server does not know GO")
      try answer.demandAck("GO")
      try other.note(try answer.facts(), agreesOnBlockSizes: true)
      try demand(
        try !other.socket.hasInput(withinMilliseconds: 50), "nothing behind the ACK of GO",
        got: "bytes, or the end of the connection")
      try other.demandInStep(after: "GO")
    }
  }
}
