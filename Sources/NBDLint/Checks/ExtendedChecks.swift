// SPDX-License-Identifier: Apache-2.0
//
// Rules of extended headers: their negotiation, and requests in their style. Spec: the draft's
// "Option types", "Request message", "Extended reply chunk message".
// The probe performs the I/O.

enum ExtendedChecks {
  static let all = negotiation + requests

  private static let negotiation = [
    LintCheck(
      "ext.negotiate", .must, "EXTENDED_HEADERS gets ACK or ERR_UNSUP.",
      Source.draft("Option types"), run: negotiate),
    LintCheck(
      "ext.data", .should, "EXTENDED_HEADERS with data gets ERR_INVALID.",
      Source.draft("Option types"), run: data),
    LintCheck(
      "ext.after-structured", .should, "After structured replies, extended headers take over.",
      Source.draft("Option types"), run: afterStructured),
    LintCheck(
      "ext.duplicate", .must, "EXTENDED_HEADERS twice gets ACK or ERR_INVALID, and stays agreed.",
      Source.draft("Option types"), run: duplicate),
    LintCheck(
      "ext.structured-after", .must, "Structured replies after them get ERR_EXT_HEADER_REQD.",
      Source.draft("Option types"), run: structuredAfter),
    LintCheck(
      "ext.meta-without-structured", .must, "Contexts need no structured replies besides them.",
      Source.draft("Option types"), run: metaWithoutStructured),
    LintCheck(
      "ext.flag-payload", .should, "Bit 12 is clear after GO when no context was selected.",
      Source.draft("Transmission flags"), run: flagPayload),
  ]

  private static let requests = [
    LintCheck(
      "ext.read", .must, "A READ gets extended chunks with its own offset, and the right bytes.",
      Source.draft("Extended reply chunk message"), run: read),
    LintCheck(
      "ext.errors", .must, "Errors come as extended chunks, with the same numbers as before.",
      Source.draft("Extended reply chunk message"), run: errors),
    LintCheck(
      "ext.write", .must, "A WRITE with PAYLOAD_LEN is done.",
      Source.draft("Request message"), writes: true, run: write),
    LintCheck(
      "ext.block-status", .must, "The status comes as BLOCK_STATUS_EXT, however short the range.",
      Source.draft("Structured reply types"), run: blockStatus),
    LintCheck(
      "ext.block-status-64bit", .must, "A request of more than 4 GiB of status makes progress.",
      Source.draft("Request types"), run: blockStatus64),
    LintCheck(
      "ext.same-status", .must, "Compact and extended replies tell the same status.",
      Source.draft("Structured reply types"), run: sameStatus),
  ]

  private static func negotiate(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    let answer = try probe.ask(Option.extendedHeaders)
    try answer.demandType(
      Reply.ack, Reply.unsup, Reply.policy, Reply.platform, to: "EXTENDED_HEADERS")
    if answer.isAck { probe.style = .extended }
    try probe.enter(server.export)
    try probe.demandInStep(after: "EXTENDED_HEADERS")
  }

  private static func data(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    let answer = try probe.ask(Option.extendedHeaders, [0])
    try need(answer.type != Reply.unsup, "the server does not offer extended headers")
    try answer.demandType(Reply.invalid, to: "EXTENDED_HEADERS with data")
    try probe.enter(server.export)
    try probe.demandInStep(after: "EXTENDED_HEADERS that were refused")
  }

  private static func afterStructured(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    try probe.negotiate(.structured)
    try probe.negotiate(.extended)
    try probe.enter(server.export)
    try probe.demandInStep(after: "both styles")
  }

  private static func duplicate(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    try probe.negotiate(.extended)
    try probe.ask(Option.extendedHeaders)
      .demandType(Reply.ack, Reply.invalid, to: "EXTENDED_HEADERS again")
    try probe.enter(server.export)
    try probe.demandInStep(after: "EXTENDED_HEADERS twice")
  }

  private static func structuredAfter(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    try probe.negotiate(.extended)
    try probe.ask(Option.structuredReply)
      .demandType(Reply.extendedHeadersRequired, to: "STRUCTURED_REPLY after EXTENDED_HEADERS")
    try probe.enter(server.export)
    try probe.demandInStep(after: "STRUCTURED_REPLY that was refused")
  }

  private static func metaWithoutStructured(_ server: LintServer) throws(LintStop) {
    let probe = try server.entered(.extended, contexts: [MetaChecks.base])
    let outcome = try probe.call(Command.blockStatus, length: UInt64(probe.blockByteCount))
    try probe.expectSuccess(outcome, "BLOCK_STATUS")
  }

  private static func flagPayload(_ server: LintServer) throws(LintStop) {
    let probe = try server.entered(.extended)
    try demand(
      !probe.has(ExportFlag.payload), "bit 12 clear where no context was selected", got: "set")
  }

  private static func read(_ server: LintServer) throws(LintStop) {
    let simple = try server.entered(.simple)
    let block = simple.blockByteCount
    let count = Int(min(simple.size, 131_072)) / block * block
    let start = simple.size / 2 / UInt64(block) * UInt64(block)
    let offset = start + UInt64(count) <= simple.size ? start : 0
    let expected = try simple.bytes(offset, count)
    simple.disconnect()
    let probe = try server.entered(.extended)
    try demandEqual(
      try probe.bytes(offset, count), expected, "the bytes that a simple reply brought")
  }

  private static func errors(_ server: LintServer) throws(LintStop) {
    let probe = try server.entered(.extended)
    let block = UInt64(probe.blockByteCount)
    let end = (probe.size + block - 1) / block * block
    try probe.expectError(
      try probe.read(end, block), Errno.invalid, of: "READ at the end")
    try probe.expectError(
      try probe.call(Command.unknown), Errno.invalid, of: "an unknown command")
    try probe.demandInStep(after: "errors in extended replies")
  }

  private static func write(_ server: LintServer) throws(LintStop) {
    try server.withArea(of: 128 << 10) { (area) throws(LintStop) in
      let probe = try server.writable(.extended)
      let data = filler(area.byteCount, 17)
      try probe.expectSuccess(try probe.write(area.offset, data), "a WRITE")
      try demandEqual(
        try probe.bytes(area.offset, area.byteCount), data, "the bytes that were written")
    }
  }

  private static func blockStatus(_ server: LintServer) throws(LintStop) {
    let probe = try server.entered(.extended, contexts: [StatusChecks.base])
    let block = UInt64(probe.blockByteCount)
    for length in [block, min(probe.size / block * block, 1 << 30)] where length > 0 {
      for extent in try StatusChecks.extents(probe, 0, length) {
        try demand(
          extent.status <= UInt64(UInt32.max), "the upper 32 bits of a base: status clear",
          got: "0x\(String(extent.status, radix: 16))")
      }
    }
  }

  private static func blockStatus64(_ server: LintServer) throws(LintStop) {
    let probe = try server.entered(.extended, contexts: [StatusChecks.base])
    let block = UInt64(probe.blockByteCount)
    let length = probe.size / block * block
    try need(length > UInt64(UInt32.max), "the export has no more than 4 GiB")
    let told = try StatusChecks.extents(probe, 0, length)
    try demand(!told.isEmpty, "the status of \(length) bytes", got: "none")
  }

  private static func sameStatus(_ server: LintServer) throws(LintStop) {
    let compact = try server.entered(.structured, contexts: [StatusChecks.base])
    let end = min(compact.size, 64 << 20)
    let before = try merged(compact, to: end)
    compact.disconnect()
    let probe = try server.entered(.extended, contexts: [StatusChecks.base])
    let after = try merged(probe, to: end)
    try demand(before == after, "\(before.count) equal extents in both styles", got: "others")
  }

  /// The status up to `end`, equal neighbours joined.
  private static func merged(
    _ probe: Probe, to end: UInt64
  ) throws(LintStop) -> [StatusExtent] {
    var list: [StatusExtent] = []
    try StatusChecks.walk(probe, to: end) { (_, length, status) throws(LintStop) in
      if let last = list.indices.last, list[last].status == status {
        list[last].length += length
      } else {
        list.append(StatusExtent(length: length, status: status))
      }
      return true
    }
    return list
  }
}
