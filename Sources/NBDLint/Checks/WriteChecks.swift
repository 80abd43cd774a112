// SPDX-License-Identifier: Apache-2.0
//
// Rules of WRITE and FLUSH. Spec: proto.md, "Request types", "Error values", "Size constraints".
// The probe performs the I/O.

enum WriteChecks {
  static let all = contents + faults + flushes

  private static let contents = [
    LintCheck(
      "write.readback", .must, "What was written is read, on this connection and on the next.",
      Source.text("Request types"), writes: true, run: readBack),
    LintCheck(
      "write.unaligned", .must, "Any range of bytes can be written; its neighbours stay.",
      Source.text("Size constraints"), writes: true, run: unaligned),
    LintCheck(
      "write.last-byte", .must, "The last byte of the disk can be written and read.",
      Source.text("Request types"), writes: true, run: lastByte),
    LintCheck(
      "write.fua", .must, "Where FUA is offered, WRITE takes it.",
      Source.text("Command flags"), writes: true, run: fua),
    LintCheck(
      "write.32M", .should, "A WRITE of 2^25 bytes is served.",
      Source.text("Size constraints"), writes: true, run: large),
  ]

  private static let faults = [
    LintCheck(
      "write.misaligned", .should,
      "Where block sizes were agreed on, a misaligned WRITE gets EINVAL and stays in step.",
      Source.text("Size constraints"), writes: true, run: misaligned),
    LintCheck(
      "write.oob", .should, "WRITE past the end gets ENOSPC, with its payload consumed.",
      Source.text("Error values"), writes: true, run: outside),
    LintCheck(
      "write.oob-wrap", .should, "WRITE whose end passes 2^64 gets ENOSPC or EINVAL.",
      Source.text("Error values"), writes: true, run: outsideWrapped),
    LintCheck(
      "write.zero-length", .should, "WRITE of nothing does not end the connection.",
      Source.text("Request types"), writes: true, run: zeroLength),
    LintCheck(
      "write.unknown-flag", .should,
      "WRITE with an unknown flag gets EINVAL, writes nothing and stays in step.",
      Source.text("Error values"), writes: true, run: unknownFlag),
    LintCheck(
      "write.payload-flag-compact", .should,
      "PAYLOAD_LEN without extended headers gets EINVAL, in step.",
      Source.draft("Command flags"), writes: true, run: payloadFlag),
    LintCheck(
      "write.over-max", .quality,
      "A payload that is too large gets an error in step, or the end; it never hangs.",
      Source.text("Size constraints"), writes: true, run: overMaximum),
  ]

  private static let flushes = [
    LintCheck(
      "flush.basic", .must, "Where FLUSH is offered, it succeeds.",
      Source.text("Request types"), run: flush),
    LintCheck(
      "flush.nonzero-range", .quality, "FLUSH with a range is served or gets EINVAL.",
      Source.text("Request types"), run: flushRange),
    LintCheck(
      "flush.bad-flag", .should, "FLUSH with a flag of another command gets EINVAL.",
      Source.text("Command flags"), run: flushFlag),
  ]

  private static func readBack(_ server: LintServer) throws(LintStop) {
    try server.withArea(of: 256 << 10) { (area) throws(LintStop) in
      let probe = try server.writable()
      let data = filler(area.byteCount)
      try probe.expectSuccess(try probe.write(area.offset, data), "a WRITE")
      try demandEqual(
        try probe.bytes(area.offset, area.byteCount), data, "the bytes that were written")
      probe.disconnect()
      let other = try server.enteredSomehow()
      try demandEqual(
        try other.bytes(area.offset, area.byteCount), data, "the same on the next connection")
    }
  }

  private static func unaligned(_ server: LintServer) throws(LintStop) {
    try server.withArea(of: 256 << 10) { (area) throws(LintStop) in
      let probe = try server.writable(blockSizes: false)
      var shadow = area.saved
      for (round, range) in [0..<1, 1..<3, 511..<513, 4095..<8193, 65_535..<131_077].enumerated() {
        let data = filler(range.count, round)
        let outcome = try probe.write(area.offset + UInt64(range.lowerBound), data)
        try probe.expectSuccess(outcome, "a WRITE of \(range.count) bytes")
        shadow.replaceSubrange(range, with: data)
      }
      try demandEqual(
        try probe.bytes(area.offset, area.byteCount), shadow,
        "the written bytes and their old neighbours")
    }
  }

  private static func lastByte(_ server: LintServer) throws(LintStop) {
    let first = try server.writable()
    let block = UInt64(first.blockByteCount)
    try need(first.size >= block, "the export is too small")
    let offset = (first.size - 1) / block * block
    let count = Int(first.size - offset)
    first.disconnect()
    try server.withArea(offset, count) { (area) throws(LintStop) in
      let probe = try server.writable()
      let data = filler(count, 7)
      try probe.expectSuccess(try probe.write(offset, data), "a WRITE up to the end")
      try demandEqual(try probe.bytes(offset, count), data, "the last bytes as they were written")
    }
  }

  private static func fua(_ server: LintServer) throws(LintStop) {
    try server.withArea(of: 64 << 10) { (area) throws(LintStop) in
      let probe = try server.writable()
      try need(probe.has(ExportFlag.sendFUA), "the server does not offer FUA")
      let data = filler(area.byteCount, 3)
      try probe.expectSuccess(
        try probe.write(area.offset, data, flags: CommandFlag.fua), "WRITE with FUA")
      try demandEqual(
        try probe.bytes(area.offset, area.byteCount), data, "the bytes that were written")
    }
  }

  private static func large(_ server: LintServer) throws(LintStop) {
    try server.withArea(of: 32 << 20) { (area) throws(LintStop) in
      let probe = try server.writable()
      try need(
        probe.payloadByteCountMax >= 32 << 20, "a smaller maximum payload was agreed on")
      let data = filler(area.byteCount, 5)
      try probe.expectSuccess(try probe.write(area.offset, data), "a WRITE of 2^25 bytes")
      try demandEqual(
        try probe.bytes(area.offset, area.byteCount), data, "the bytes that were written")
    }
  }

  private static func misaligned(_ server: LintServer) throws(LintStop) {
    try server.withArea(of: 256 << 10) { (area) throws(LintStop) in
      let probe = try server.writable()
      let block = probe.blockByteCount
      try need(block > 1, "every range is aligned: the minimum block size is 1")
      for (start, count) in [(1, block), (0, block - 1), (block - 1, 1)] {
        let outcome = try probe.write(area.offset + UInt64(start), filler(count))
        try probe.expectError(outcome, Errno.invalid, of: "\(count) bytes \(start) into a block")
      }
      try demandEqual(
        try probe.bytes(area.offset, area.byteCount), area.saved, "the disk unchanged")
    }
  }

  private static func outside(_ server: LintServer) throws(LintStop) {
    let probe = try server.writable()
    let block = UInt64(probe.blockByteCount)
    let end = probe.size / block * block
    // A server that wrote the part inside would change it: only what is all outside is tried.
    for offset in [end < probe.size ? end + block : end, end + (1 << 32)] {
      let outcome = try probe.write(offset, filler(Int(block)))
      try probe.expectError(outcome, Errno.noSpace, of: "a WRITE at \(offset) of \(probe.size)")
    }
    try probe.demandInStep(after: "WRITE past the end")
  }

  private static func outsideWrapped(_ server: LintServer) throws(LintStop) {
    let probe = try server.writable()
    let block = max(probe.blockByteCount, 512)
    for offset in [UInt64.max - UInt64(block) + 1, 1 << 63] {
      let outcome = try probe.write(offset, filler(block))
      try probe.expectError(outcome, Errno.noSpace, Errno.invalid, of: "a WRITE at \(offset)")
    }
    try probe.demandInStep(after: "WRITE past 2^63")
  }

  private static func zeroLength(_ server: LintServer) throws(LintStop) {
    let probe = try server.writable()
    _ = try probe.write(0, [])
    try probe.demandInStep(after: "WRITE of nothing")
  }

  private static func unknownFlag(_ server: LintServer) throws(LintStop) {
    try refuses(server, CommandFlag.unknown, "an unknown flag")
  }

  private static func payloadFlag(_ server: LintServer) throws(LintStop) {
    try refuses(server, CommandFlag.payloadLength, "PAYLOAD_LEN")
  }

  private static func refuses(
    _ server: LintServer, _ flag: UInt16, _ what: String
  ) throws(LintStop) {
    try server.withArea(of: 64 << 10) { (area) throws(LintStop) in
      let probe = try server.writable()
      let outcome = try probe.write(area.offset, filler(area.byteCount), flags: flag)
      try probe.expectError(outcome, Errno.invalid, of: "WRITE with \(what)")
      try demandEqual(
        try probe.bytes(area.offset, area.byteCount), area.saved, "the disk unchanged")
    }
  }

  private static func overMaximum(_ server: LintServer) throws(LintStop) {
    try server.withArea(of: (65 << 20)) { (area) throws(LintStop) in
      let probe = try server.writable()
      do throws(LintStop) {
        let request = probe.prepare(
          Command.write, offset: area.offset, length: UInt64(area.byteCount),
          payload: filler(area.byteCount))
        try probe.sendHostile(request.bytes)
        let outcome = try probe.wait(request.cookie)
        // It need not be served, but what is served must be right; after an error, the end is
        // allowed, too: what comes instead of a reply is judged.
        let there = try probe.read(area.offset, 65_536)
        try probe.expectSuccess(there, "a READ after a WRITE of 65 MiB")
        try demandEqual(
          there.data, outcome.error == 0 ? filler(65_536) : Array(area.saved[..<65_536]),
          outcome.error == 0 ? "the bytes that were written" : "the old bytes after an error")
      } catch {
        guard case .ended = error else { throw error }
      }
      try server.demandService()
    }
  }

  private static func flushing(_ server: LintServer) throws(LintStop) -> Probe {
    let probe = try server.enteredSomehow()
    try need(probe.has(ExportFlag.sendFlush), "the server does not offer FLUSH")
    return probe
  }

  private static func flush(_ server: LintServer) throws(LintStop) {
    let probe = try flushing(server)
    try probe.expectSuccess(try probe.call(Command.flush), "FLUSH")
    try probe.demandInStep(after: "FLUSH")
  }

  private static func flushRange(_ server: LintServer) throws(LintStop) {
    let probe = try flushing(server)
    let length = UInt64(max(probe.blockByteCount, 512))
    let outcome = try probe.call(Command.flush, offset: length, length: length)
    try probe.expectError(outcome, Errno.none, Errno.invalid, of: "FLUSH with a range")
    try probe.demandInStep(after: "FLUSH with a range")
  }

  private static func flushFlag(_ server: LintServer) throws(LintStop) {
    let probe = try flushing(server)
    for flag in [CommandFlag.noHole, CommandFlag.dontFragment, CommandFlag.unknown] {
      let outcome = try probe.call(Command.flush, flags: flag)
      try probe.expectError(outcome, Errno.invalid, of: "FLUSH with flag \(flag)")
    }
    try probe.demandInStep(after: "FLUSH with wrong flags")
  }
}
