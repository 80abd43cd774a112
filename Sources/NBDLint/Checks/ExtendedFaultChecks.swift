// SPDX-License-Identifier: Apache-2.0
//
// Rules of extended headers for requests that are wrong or huge. Spec: the draft's "Command flags",
// "Request types", "Size constraints". The probe performs the I/O.

enum ExtendedFaultChecks {
  static let all = [
    LintCheck(
      "ext.write-no-payload-flag", .quality,
      "A WRITE without PAYLOAD_LEN is done all the same, refused, or the end; it never hangs.",
      Source.draft("Command flags"), writes: true, run: writeWithoutFlag),
    LintCheck(
      "ext.payload-on-others", .must,
      "PAYLOAD_LEN on a command without payload gets EINVAL, with the payload consumed.",
      Source.draft("Command flags"), run: payloadOnOthers),
    LintCheck(
      "ext.payload-too-large", .should, "A payload of gigabytes ends the connection.",
      Source.draft("Command flags"), run: payloadTooLarge),
    LintCheck(
      "ext.compact-magic", .quality, "A compact request gets the end or an error, not success.",
      Source.draft("Request message"), run: compactMagic),
    LintCheck(
      "ext.read-64bit-length", .must, "A length above 32 bits is not cut: READ of it is an error.",
      Source.draft("Request types"), run: read64),
    LintCheck(
      "ext.trim-wz-64bit-oob", .must, "TRIM and WRITE_ZEROES of 2^32 bytes past the end: an error.",
      Source.draft("Request types"), writes: true, run: outside64),
    LintCheck(
      "ext.wz-64bit", .must, "WRITE_ZEROES of more than 4 GiB is done in full, or refused.",
      Source.draft("Request types"), writes: true, run: zeroes64),
    LintCheck(
      "ext.bs-payload", .must, "A payload of context ids limits the replies to them.",
      Source.draft("Request types"), run: statusPayload),
    LintCheck(
      "ext.bs-payload-bad", .must, "Unknown and repeated ids get EINVAL, in step.",
      Source.draft("Request types"), run: statusPayloadBad),
  ]

  /// A header as it is given, without the flag that the probe adds to WRITE.
  private static func header(
    _ command: UInt16, flags: UInt16, cookie: UInt64, offset: UInt64, length: UInt64
  ) -> [UInt8] {
    wire(ProbeMagic.extendedRequest, flags, command, cookie, offset, length)
  }

  private static func writeWithoutFlag(_ server: LintServer) throws(LintStop) {
    try server.withArea(of: 64 << 10) { (area) throws(LintStop) in
      let probe = try server.writable(.extended)
      let data = filler(area.byteCount, 19)
      let request = probe.prepare(
        Command.write, offset: area.offset, length: UInt64(data.count))
      let bytes = header(
        Command.write, flags: 0, cookie: request.cookie, offset: area.offset,
        length: UInt64(data.count))
      do throws(LintStop) {
        try probe.sendHostile(bytes + data)
        let outcome = try probe.wait(request.cookie)
        try probe.expectError(
          outcome, Errno.none, Errno.invalid, of: "WRITE without PAYLOAD_LEN")
        // Refused at once, the payload may be taken for requests: nothing more can be asked.
        if outcome.error == 0 {
          try demandEqual(
            try probe.bytes(area.offset, area.byteCount), data, "the bytes that were written")
        }
      } catch {
        guard case .ended = error else { throw error }
      }
    }
  }

  private static func payloadOnOthers(_ server: LintServer) throws(LintStop) {
    let probe = try server.entered(.extended)
    for command in [Command.read, Command.flush, Command.cache, Command.unknown] {
      let outcome = try probe.call(
        command, flags: CommandFlag.payloadLength, length: 4096, payload: zeroes(4096))
      try probe.expectError(
        outcome, Errno.invalid, of: "command \(command) with PAYLOAD_LEN")
    }
    try probe.demandInStep(after: "payloads where none belong")
  }

  private static func payloadTooLarge(_ server: LintServer) throws(LintStop) {
    let probe = try server.entered(.extended)
    try probe.sendHostile(
      header(
        Command.read, flags: CommandFlag.payloadLength, cookie: 1, offset: 0, length: 1 << 40))
    _ = try probe.socket.receiveUntilEnd("the end of the connection after a payload of 1 TiB")
    try server.demandService()
  }

  private static func compactMagic(_ server: LintServer) throws(LintStop) {
    let probe = try server.entered(.extended)
    let compact = wire(
      ProbeMagic.request, UInt16(0), Command.read, UInt64(9), UInt64(0),
      UInt32(probe.blockByteCount))
    // Four bytes more make it as long as an extended one, so that nobody waits.
    try probe.sendHostile(compact + zeroes(4))
    do throws(LintStop) {
      let reply = try probe.socket.receive(4, "the end, or an error, after a compact request")
      try demand(
        reply == wire(ProbeMagic.extendedChunk), "an extended reply or the end",
        got: hexadecimal(reply))
      let header = try probe.socket.receive(28, "an extended reply")
      try demand(header[2] & 0x80 != 0, "an error, or the end", got: "success")
    } catch {
      guard case .ended = error else { throw error }
    }
    try server.demandService()
  }

  private static func read64(_ server: LintServer) throws(LintStop) {
    let probe = try server.entered(.extended)
    let block = UInt64(probe.blockByteCount)
    // Cut to 32 bits, these are lengths that would succeed.
    for length in [(1 << 32) + block, 1 << 32, (1 << 62) + block] {
      let outcome = try probe.read(0, length)
      try probe.expectError(
        outcome, Errno.invalid, Errno.overflow, Errno.noMemory, of: "READ of \(length) bytes")
    }
    try probe.demandInStep(after: "READ of more than 4 GiB")
  }

  private static func outside64(_ server: LintServer) throws(LintStop) {
    let probe = try server.writable(.extended)
    let block = UInt64(probe.blockByteCount)
    let end = (probe.size + block - 1) / block * block
    for (command, flag) in [
      (Command.trim, ExportFlag.sendTrim), (Command.writeZeroes, ExportFlag.sendWriteZeroes),
    ] where probe.has(flag) {
      // All of it is past the end, so that nothing can be lost.
      let outcome = try probe.call(command, offset: end, length: 1 << 32)
      try demand(
        outcome.error != 0, "an error for 2^32 bytes past the end", got: "success")
    }
    try probe.demandInStep(after: "TRIM and WRITE_ZEROES of 4 GiB")
  }

  private static func zeroes64(_ server: LintServer) throws(LintStop) {
    let (start, length) = try zeroRange(server)
    let block = UInt64(try server.writable(.extended).blockByteCount)
    // Cut to 32 bits this is one block.
    let wanted = (1 << 32) + block
    try need(length >= wanted, "no 4 GiB in a row are told to be zero")
    let last = start + wanted - block
    // All of the range is zero already: only the two blocks are borrowed.
    try server.withArea(start, Int(block)) { (first) throws(LintStop) in
      try server.withArea(last, Int(block)) { (end) throws(LintStop) in
        let probe = try server.writable(.extended)
        try need(probe.has(ExportFlag.sendWriteZeroes), "the server does not offer WRITE_ZEROES")
        let data = filler(Int(block), 64)
        for area in [first, end] {
          try probe.expectSuccess(try probe.write(area.offset, data), "a WRITE")
        }
        let outcome = try probe.call(Command.writeZeroes, offset: start, length: wanted)
        try probe.expectError(
          outcome, Errno.none, Errno.overflow, Errno.invalid, of: "WRITE_ZEROES of \(wanted) bytes")
        if outcome.error == 0 {
          for area in [first, end] {
            try demandEqual(
              try probe.bytes(area.offset, Int(block)), zeroes(Int(block)),
              "zeroes at both ends of the range")
          }
        }
        try probe.demandInStep(after: "WRITE_ZEROES of more than 4 GiB")
      }
    }
  }

  /// The longest range that base:allocation tells to read as zeroes.
  private static func zeroRange(
    _ server: LintServer
  ) throws(LintStop) -> (start: UInt64, length: UInt64) {
    let probe = try server.entered(.extended, contexts: [StatusChecks.base])
    let block = UInt64(probe.blockByteCount)
    let end = probe.size / block * block
    try need(end > 4 << 30, "the export has no more than 4 GiB")
    var best: (start: UInt64, length: UInt64) = (0, 0)
    var run: (start: UInt64, length: UInt64) = (0, 0)
    var position: UInt64 = 0
    for _ in 0..<1_000 where position < end {
      for extent in try StatusChecks.extents(probe, position, end - position) {
        // The last one may pass the end.
        let length = min(extent.length, end - position)
        let isZero = extent.status & 2 != 0
        run = isZero ? (run.length > 0 ? run.start : position, run.length + length) : (0, 0)
        if run.length > best.length { best = run }
        position += length
      }
    }
    return best
  }

  /// A probe on a server that takes context ids, with all contexts selected.
  private static func filtering(_ server: LintServer) throws(LintStop) -> Probe {
    let probe = try server.greeted()
    try probe.negotiate(.extended)
    let answer = try probe.ask(Option.listMeta, Probe.metaData(server.export, []))
    try need(answer.isAck, "the server knows no meta contexts")
    let names = try answer.contexts().map(\.name)
    try need(!names.isEmpty, "the server offers no contexts")
    try probe.select(names, of: server.export)
    try probe.enter(server.export)
    try need(probe.has(ExportFlag.payload), "the server does not offer payloads of BLOCK_STATUS")
    return probe
  }

  /// Sends BLOCK_STATUS of `length` bytes at 0 for these ids.
  private static func status(
    _ probe: Probe, _ length: UInt64, of ids: [UInt32]
  ) throws(LintStop) -> RequestOutcome {
    var payload = wire(length)
    for id in ids { payload += wire(id) }
    // The header's length is the payload's; the reply is judged against the effect's.
    let request = probe.prepare(Command.blockStatus, length: length)
    let bytes = header(
      Command.blockStatus, flags: CommandFlag.payloadLength, cookie: request.cookie, offset: 0,
      length: UInt64(payload.count))
    probe.expectedContexts = Set(ids).count
    try probe.socket.send(bytes + payload)
    let outcome = try probe.wait(request.cookie)
    probe.expectedContexts = nil
    return outcome
  }

  private static func statusPayload(_ server: LintServer) throws(LintStop) {
    let probe = try filtering(server)
    let length = UInt64(probe.blockByteCount)
    for id in probe.contextIDs.values {
      let outcome = try status(probe, length, of: [id])
      try probe.expectSuccess(outcome, "BLOCK_STATUS for one id")
      try demand(
        Set(outcome.extents.keys) == [id], "the status of id \(id) alone",
        got: "\(outcome.extents.keys.sorted())")
    }
    try probe.demandInStep(after: "BLOCK_STATUS with payloads")
  }

  private static func statusPayloadBad(_ server: LintServer) throws(LintStop) {
    let probe = try filtering(server)
    let length = UInt64(probe.blockByteCount)
    let known = probe.contextIDs.values.first ?? 0
    let unknown = (probe.contextIDs.values.max() ?? 0) &+ 1000
    for ids in [[unknown], [known, known], [known, unknown]] {
      let outcome = try status(probe, length, of: ids)
      try probe.expectError(outcome, Errno.invalid, of: "BLOCK_STATUS for ids \(ids)")
    }
    try probe.demandInStep(after: "BLOCK_STATUS with wrong ids")
  }
}
