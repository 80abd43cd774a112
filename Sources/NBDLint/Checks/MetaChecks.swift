// SPDX-License-Identifier: Apache-2.0
//
// Rules of STRUCTURED_REPLY and of the meta context options. Spec: proto.md, "Option types",
// "Metadata querying". The probe performs the I/O.

enum MetaChecks {
  static let all = negotiation + listing + selection

  private static let negotiation = [
    LintCheck(
      "structured.data", .should, "STRUCTURED_REPLY with data gets ERR_INVALID.",
      Source.text("Option types"), run: structuredData),
    LintCheck(
      "structured.duplicate", .must,
      "STRUCTURED_REPLY twice gets ACK or ERR_INVALID, and stays agreed.",
      Source.text("Option types"), run: structuredTwice),
    LintCheck(
      "meta.set-before-structured", .should,
      "SET_META_CONTEXT before structured replies gets ERR_INVALID.",
      Source.text("Option types"), run: setBefore),
    LintCheck(
      "meta.list-before-structured", .must,
      "LIST_META_CONTEXT before structured replies gets contexts or ERR_INVALID.",
      Source.text("Option types"), run: listBefore),
  ]

  private static let listing = [
    LintCheck(
      "meta.list-all", .must, "Without queries, every context is listed.",
      Source.text("Option types"), run: listAll),
    LintCheck(
      "meta.list-wildcard", .must, "The query `base:` lists what that namespace has.",
      Source.text("The base: metadata namespace"), run: listWildcard),
    LintCheck(
      "meta.list-exact", .must, "A query by its whole name lists that context once.",
      Source.text("Option types"), run: listExact),
    LintCheck(
      "meta.unknown-namespace", .must, "Queries of an unknown namespace are ignored.",
      Source.text("Metadata querying"), run: unknownNamespace),
    LintCheck(
      "meta.unknown-leaf", .must, "An unknown name inside `base:` is ignored.",
      Source.text("The base: metadata namespace"), run: unknownLeaf),
    LintCheck(
      "meta.no-colon", .must, "A query without a colon is ignored or gets ERR_INVALID.",
      Source.text("Option types"), run: noColon),
    LintCheck(
      "meta.query-overrun", .must, "A query that passes the option's end gets ERR_INVALID.",
      Source.text("Option types"), run: queryOverrun),
    LintCheck(
      "meta.trailing-junk", .quality, "Bytes behind the last query get ERR_INVALID.",
      Source.text("Option types"), run: trailingJunk),
    LintCheck(
      "meta.many-queries", .quality, "Thousands of queries get an answer, maybe ERR_TOO_BIG.",
      Source.text("Option types"), run: manyQueries),
    LintCheck(
      "meta.long-query", .quality, "A query longer than any string may be gets an answer.",
      Source.text("Conventions"), run: longQuery),
    LintCheck(
      "meta.non-utf8", .quality, "A query that is not UTF-8 gets an answer.",
      Source.text("Conventions"), run: notUTF8),
    LintCheck(
      "meta.unknown-export", .must, "Contexts of an unknown export: ERR_UNKNOWN.",
      Source.text("Option types"), run: unknownExport),
  ]

  private static let selection = [
    LintCheck(
      "meta.set", .must, "SET_META_CONTEXT tells each selected context with an id, then ACK.",
      Source.text("Option types"), run: set),
    LintCheck(
      "meta.set-wildcard", .must, "The query `base:` selects nothing.",
      Source.text("The base: metadata namespace"), run: setWildcard),
    LintCheck(
      "meta.set-duplicate", .must, "The same query twice selects one context with one id.",
      Source.text("Option types"), run: setDuplicate),
    LintCheck(
      "meta.set-zero", .must, "Without queries nothing is selected.",
      Source.text("Option types"), run: setZero),
    LintCheck(
      "meta.failed-set-clears", .must, "A SET_META_CONTEXT that fails unselects all contexts.",
      Source.text("Option types"), run: failedSet),
    LintCheck(
      "meta.other-export", .must, "Contexts of one export do not hold in another one.",
      Source.text("Option types"), run: otherExport),
  ]

  static let base = "base:allocation"

  private static func structuredData(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    let answer = try probe.ask(Option.structuredReply, [0, 1])
    try need(answer.type != Reply.unsup, "the server does not offer structured replies")
    try answer.demandType(Reply.invalid, to: "STRUCTURED_REPLY with data")
    try probe.demandEntry(server.export)
    try probe.demandInStep(after: "a STRUCTURED_REPLY that was refused")
  }

  private static func structuredTwice(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    try probe.negotiate(.structured)
    try probe.ask(Option.structuredReply)
      .demandType(Reply.ack, Reply.invalid, to: "a second STRUCTURED_REPLY")
    try probe.demandEntry(server.export)
    try probe.demandInStep(after: "a second STRUCTURED_REPLY")
  }

  private static func setBefore(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    let answer = try probe.ask(Option.setMeta, Probe.metaData(server.export, [base]))
    try need(answer.type != Reply.unsup, "the server knows no meta contexts")
    try answer.demandType(
      Reply.invalid, Reply.extendedHeadersRequired, to: "SET_META_CONTEXT with simple replies")
    try probe.demandEntry(server.export)
  }

  private static func listBefore(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    let answer = try probe.ask(Option.listMeta, Probe.metaData(server.export, []))
    try need(answer.type != Reply.unsup, "the server knows no meta contexts")
    try answer.demandType(
      Reply.ack, Reply.invalid, Reply.extendedHeadersRequired,
      to: "LIST_META_CONTEXT with simple replies")
    try probe.demandEntry(server.export)
  }

  /// A connection with structured replies whose server knows meta contexts.
  private static func structured(_ server: LintServer) throws(LintStop) -> Probe {
    let probe = try server.greeted()
    try probe.negotiate(.structured)
    return probe
  }

  private static func list(
    _ probe: Probe, _ server: LintServer, _ queries: [String]
  ) throws(LintStop) -> [String] {
    let answer = try probe.ask(Option.listMeta, Probe.metaData(server.export, queries))
    try need(answer.type != Reply.unsup, "the server knows no meta contexts")
    try answer.demandAck("LIST_META_CONTEXT \(queries)")
    return try answer.contexts().map(\.name)
  }

  private static func listAll(_ server: LintServer) throws(LintStop) {
    let probe = try structured(server)
    let all = try list(probe, server, [])
    try demand(
      all.count == Set(all).count, "each context once", got: all.joined(separator: ", "))
    for name in all {
      let one = try list(probe, server, [name])
      try demand(one == [name], "'\(name)' alone, which was listed before", got: "\(one)")
    }
    let named = try list(probe, server, [base])
    try demand(
      all.contains(base) == !named.isEmpty, "every context when nothing is asked for",
      got: "\(all) without and \(named) with a query")
  }

  private static func listWildcard(_ server: LintServer) throws(LintStop) {
    let probe = try structured(server)
    let all = try list(probe, server, [])
    let some = try list(probe, server, ["base:"])
    let expected = all.filter { $0.hasPrefix("base:") }
    try demand(Set(some) == Set(expected), "\(expected) for `base:`", got: "\(some)")
  }

  private static func listExact(_ server: LintServer) throws(LintStop) {
    let probe = try structured(server)
    let names = try list(probe, server, [base])
    try need(!names.isEmpty, "the server does not offer \(base)")
    try demand(names == [base], "\(base) once", got: "\(names)")
  }

  private static func demandNothing(
    _ server: LintServer, _ queries: [String]
  ) throws(LintStop) {
    let probe = try structured(server)
    let listed = try list(probe, server, queries)
    try demand(listed.isEmpty, "nothing listed for \(queries)", got: "\(listed)")
    let selected = try probe.setContexts(queries, of: server.export)
    try demand(selected.isEmpty, "nothing selected for \(queries)", got: "\(selected)")
    try probe.demandEntry(server.export)
  }

  private static func unknownNamespace(_ server: LintServer) throws(LintStop) {
    try demandNothing(server, ["x-lint-none:anything"])
  }

  private static func unknownLeaf(_ server: LintServer) throws(LintStop) {
    try demandNothing(server, ["base:lint-none"])
  }

  private static func noColon(_ server: LintServer) throws(LintStop) {
    let probe = try structured(server)
    let answer = try probe.ask(Option.listMeta, Probe.metaData(server.export, ["nocolon"]))
    try need(answer.type != Reply.unsup, "the server knows no meta contexts")
    try answer.demandType(Reply.ack, Reply.invalid, to: "a query without a colon")
    try probe.demandEntry(server.export)
  }

  /// Ends the check unless these data get ERR_INVALID from both options.
  private static func demandInvalid(
    _ server: LintServer, _ data: [UInt8], _ what: String
  ) throws(LintStop) {
    for number in [Option.listMeta, Option.setMeta] {
      let probe = try structured(server)
      let answer = try probe.ask(number, data)
      try need(answer.type != Reply.unsup, "the server knows no meta contexts")
      try answer.demandType(Reply.invalid, to: what)
      try probe.demandEntry(server.export)
    }
  }

  private static func queryOverrun(_ server: LintServer) throws(LintStop) {
    let name = counted(server.export)
    try demandInvalid(
      server, name + wire(UInt32(1), UInt32.max) + [1], "a query of 4 GiB in 1 byte")
    try demandInvalid(
      server, name + wire(UInt32(2)) + counted(base), "one query where two were counted")
    try demandInvalid(
      server, name + wire(UInt32(1), UInt32(20)) + Array(base.utf8), "a query cut short")
    try demandInvalid(server, [0, 0], "less than a name and a count")
  }

  private static func trailingJunk(_ server: LintServer) throws(LintStop) {
    let sound = Probe.metaData(server.export, [base])
    try demandInvalid(server, sound + [0], "a byte behind the last query")
  }

  private static func manyQueries(_ server: LintServer) throws(LintStop) {
    let queries = [String](repeating: "x-lint:y", count: 1000)
    for number in [Option.listMeta, Option.setMeta] {
      let probe = try structured(server)
      do throws(LintStop) {
        let answer = try probe.ask(number, Probe.metaData(server.export, queries))
        try need(answer.type != Reply.unsup, "the server knows no meta contexts")
        try answer.demandType(Reply.ack, Reply.tooBig, Reply.invalid, to: "1000 queries")
        try probe.demandEntry(server.export)
      } catch {
        guard case .ended = error else { throw error }
      }
    }
    try server.demandService()
  }

  private static func longQuery(_ server: LintServer) throws(LintStop) {
    try demandAnswer(
      server, counted("base:" + String(repeating: "q", count: 8000)), "a query of 8005 bytes")
  }

  private static func notUTF8(_ server: LintServer) throws(LintStop) {
    try demandAnswer(server, counted([0x62, 0x3a, 0xff, 0xc0]), "a query that is not UTF-8")
  }

  private static func demandAnswer(
    _ server: LintServer, _ query: [UInt8], _ what: String
  ) throws(LintStop) {
    let probe = try structured(server)
    let data = counted(server.export) + wire(UInt32(1)) + query
    do throws(LintStop) {
      let answer = try probe.ask(Option.listMeta, data)
      try need(answer.type != Reply.unsup, "the server knows no meta contexts")
      try answer.demandType(Reply.ack, Reply.invalid, Reply.tooBig, to: what)
      try demand(answer.parts.isEmpty, "no context for \(what)", got: "\(answer.parts.count)")
      try probe.demandEntry(server.export)
    } catch {
      guard case .ended = error else { throw error }
    }
    try server.demandService()
  }

  private static func unknownExport(_ server: LintServer) throws(LintStop) {
    let name = "lint-asks-for-an-export-that-nobody-has"
    let other = try server.greeted().ask(Option.info, Probe.infoData(name))
    try need(!other.isAck, "the server serves every name")
    for number in [Option.listMeta, Option.setMeta] {
      let probe = try structured(server)
      let answer = try probe.ask(number, Probe.metaData(name, [base]))
      try need(answer.type != Reply.unsup, "the server knows no meta contexts")
      try answer.demandType(Reply.unknown, to: "contexts of an unknown export")
      try probe.demandEntry(server.export)
    }
  }

  private static func set(_ server: LintServer) throws(LintStop) {
    let probe = try structured(server)
    let all = try list(probe, server, [])
    let selected = try probe.setContexts(all, of: server.export)
    try demand(Set(selected) == Set(all), "\(all), which were listed", got: "\(selected)")
    try probe.demandEntry(server.export)
  }

  private static func setWildcard(_ server: LintServer) throws(LintStop) {
    let probe = try structured(server)
    let selected = try probe.setContexts(["base:"], of: server.export)
    try demand(selected.isEmpty, "nothing selected by `base:`", got: "\(selected)")
  }

  private static func setDuplicate(_ server: LintServer) throws(LintStop) {
    let probe = try structured(server)
    let names = try list(probe, server, [base])
    try need(names == [base], "the server does not offer \(base)")
    // The probe refuses a name or an id that comes twice.
    try probe.setContexts([base, base], of: server.export)
    try probe.demandEntry(server.export)
    let outcome = try probe.call(
      Command.blockStatus, length: UInt64(probe.blockByteCount))
    try probe.expectSuccess(outcome, "BLOCK_STATUS")
  }

  /// Ends the check unless BLOCK_STATUS is refused because nothing is selected.
  private static func demandNoContext(
    _ probe: Probe, _ server: LintServer, after what: String
  ) throws(LintStop) {
    try probe.demandEntry(server.export)
    let length = UInt64(probe.blockByteCount)
    try probe.send(Command.blockStatus, length: length)
    // With contexts, the reply would hold ids that the probe has forgotten.
    let answer = try probe.waitForAny()
    try demand(
      answer.outcome.error != 0, "an error for BLOCK_STATUS after \(what)", got: "success")
  }

  private static func setZero(_ server: LintServer) throws(LintStop) {
    let probe = try structured(server)
    try probe.select([base], of: server.export)
    let selected = try probe.setContexts([], of: server.export)
    try demand(selected.isEmpty, "nothing selected without queries", got: "\(selected)")
    try demandNoContext(probe, server, after: "SET_META_CONTEXT without queries")
  }

  private static func failedSet(_ server: LintServer) throws(LintStop) {
    let ways: [(what: String, data: [UInt8])] = [
      ("without data", []),
      ("of an unknown export", Probe.metaData("lint-asks-for-what-nobody-has", [base])),
      ("with a query cut short", counted(server.export) + wire(UInt32(1), UInt32.max)),
    ]
    var failedCount = 0
    for way in ways {
      let probe = try structured(server)
      try probe.select([base], of: server.export)
      guard try probe.ask(Option.setMeta, way.data).end.isError else { continue }
      failedCount += 1
      try demandNoContext(probe, server, after: "SET_META_CONTEXT \(way.what), which failed")
    }
    try need(failedCount > 0, "no way was found to make SET_META_CONTEXT fail")
  }

  private static func otherExport(_ server: LintServer) throws(LintStop) {
    let other: String
    if let name = server.otherExport { other = name } else { other = try secondExport(server) }
    let probe = try structured(server)
    try probe.select([base], of: other)
    try demandNoContext(probe, server, after: "SET_META_CONTEXT of another export")
  }

  /// The name of an export besides the one under judgement, as the server lists it.
  private static func secondExport(_ server: LintServer) throws(LintStop) -> String {
    let probe = try structured(server)
    let list = try probe.ask(Option.list)
    try need(list.isAck, "the server lists nothing: \(list.text)")
    let entered = try probe.ask(Option.info, Probe.infoData(server.export, [Info.name]))
    let own = [Array(server.export.utf8), try entered.facts().name ?? []]
    let other = try list.servers().first { !own.contains($0.name) }
    guard let other, !server.export.isEmpty else {
      throw .skipped("the server lists no second export: say --other-export, where it has one")
    }
    return String(decoding: other.name, as: UTF8.self)
  }
}
