// SPDX-License-Identifier: Apache-2.0
//
// Rules of LIST. Spec: proto.md, "Option types". The probe performs the I/O.

enum ListChecks {
  static let all = [
    LintCheck(
      "list.basic", .must, "LIST gets SERVER replies and then ACK, or an error.",
      Source.text("Option types"), run: basic),
    LintCheck(
      "list.names-work", .quality, "Each name that LIST tells is known to INFO.",
      Source.text("Option reply types"), run: namesWork),
    LintCheck(
      "list.has-export", .quality, "LIST tells at least one export, and each once.",
      Source.text("Option types"), run: hasExport),
    LintCheck(
      "list.data", .should, "LIST with data gets ERR_INVALID.",
      Source.text("Option types"), run: data),
  ]

  private static func servers(
    _ probe: Probe
  ) throws(LintStop) -> [(name: [UInt8], description: [UInt8])] {
    let answer = try probe.ask(Option.list)
    if answer.end.isError {
      try answer.demandType(
        Reply.unsup, Reply.policy, Reply.platform, Reply.tooBig, Reply.shutdown, to: "LIST")
      throw .skipped("the server lists nothing: \(answer.text)")
    }
    return try answer.servers()
  }

  private static func basic(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    do throws(LintStop) {
      for entry in try servers(probe) {
        try demand(entry.name.count <= 4096, "names of at most 4096 bytes", got: "longer ones")
        try demand(
          entry.description.count <= 4096, "descriptions of at most 4096 bytes",
          got: "\(entry.description.count) bytes")
      }
    } catch {
      guard case .skipped = error else { throw error }  // an error is an answer, too
    }
    try probe.demandEntry(server.export)
  }

  private static func namesWork(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    for entry in try servers(probe).prefix(20) {
      let answer = try probe.ask(Option.info, counted(entry.name) + wire(UInt16(0)))
      try need(answer.type != Reply.unsup, "the server does not know INFO")
      try answer.demandType(
        Reply.ack, Reply.tlsRequired, Reply.blockSizeRequired,
        to: "INFO of '\(shown(entry.name))', which LIST told")
    }
  }

  private static func hasExport(_ server: LintServer) throws(LintStop) {
    let servers = try servers(try server.greeted())
    try demand(!servers.isEmpty, "an export in the list", got: "none")
    let names = Set(servers.map(\.name))
    try demand(names.count == servers.count, "each export once", got: "one twice")
  }

  private static func data(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    let answer = try probe.ask(Option.list, [0, 0, 0, 0])
    try need(answer.type != Reply.policy, "the server lists nothing: \(answer.text)")
    try answer.demandType(Reply.invalid, Reply.unsup, to: "LIST with data")
    try probe.demandEntry(server.export)
  }
}
