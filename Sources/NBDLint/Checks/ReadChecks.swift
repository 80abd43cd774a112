// SPDX-License-Identifier: Apache-2.0
//
// Rules of READ. Spec: proto.md, "Request types", "Structured reply types", "Size constraints".
// The probe performs the I/O.

enum ReadChecks {
  static let all = contents + bounds + flags

  private static let contents = [
    LintCheck(
      "read.simple", .must, "Without structured replies, a READ gets a simple reply and its data.",
      Source.text("Simple reply message"), run: simple),
    LintCheck(
      "read.structured", .must, "With them, a READ gets chunks that cover it without overlap.",
      Source.text("Structured reply types"), run: structured),
    LintCheck(
      "read.modes-agree", .must, "Both styles of replies bring the same bytes.",
      Source.text("Request types"), run: modesAgree),
    LintCheck(
      "read.unaligned", .must, "A client that agreed on nothing may read any range of bytes.",
      Source.text("Size constraints"), run: unaligned),
    LintCheck(
      "read.misaligned", .should, "Where block sizes were agreed on, misaligned READs get EINVAL.",
      Source.text("Size constraints"), run: misaligned),
    LintCheck(
      "read.32M", .should, "A READ of 2^25 bytes is served.",
      Source.text("Size constraints"), run: large),
  ]

  private static let bounds = [
    LintCheck(
      "read.oob", .should, "READ past the end gets EINVAL.",
      Source.text("Error values"), run: outside),
    LintCheck(
      "read.oob-wrap", .should, "READ whose end passes 2^63 or 2^64 gets EINVAL.",
      Source.text("Error values"), run: outsideWrapped),
    LintCheck(
      "read.too-big", .quality, "READ of 4 GiB past the end gets an error or the end, at once.",
      Source.text("Size constraints"), run: tooBig),
    LintCheck(
      "read.zero-length", .should, "READ of nothing does not end the connection.",
      Source.text("Request types"), run: zeroLength),
  ]

  private static let flags = [
    LintCheck(
      "read.unknown-flag", .should, "READ with an unknown flag gets EINVAL.",
      Source.text("Error values"), run: unknownFlag),
    LintCheck(
      "read.foreign-flag", .should, "READ with a flag of another command gets EINVAL.",
      Source.text("Command flags"), run: foreignFlag),
    LintCheck(
      "read.fua", .must, "Where FUA is offered, READ takes it.",
      Source.text("Command flags"), run: fua),
    LintCheck(
      "read.df", .must, "With DF, up to 65,536 bytes come in at most one content chunk.",
      Source.text("Command flags"), run: dontFragment),
    LintCheck(
      "read.df-too-large", .must, "More with DF gets one content chunk or EOVERFLOW.",
      Source.text("Command flags"), run: dontFragmentLarge),
    LintCheck(
      "read.df-unnegotiated", .should, "DF that was not offered gets EINVAL.",
      Source.text("Command flags"), run: dontFragmentUnasked),
  ]

  /// Aligned ranges that the disk has.
  private static func ranges(_ probe: Probe) -> [(offset: UInt64, count: Int)] {
    let block = UInt64(probe.blockByteCount)
    let end = probe.size / block * block
    let middle = end / 2 / block * block
    return [(0, block), (0, 65_536), (middle, 131_072), (end - min(end, 65_536), 65_536)]
      .compactMap { (offset, count) in
        let fits = count % block == 0 && offset % block == 0 && offset + count <= end
        return fits ? (offset, Int(count)) : nil
      }
  }

  private static func simple(_ server: LintServer) throws(LintStop) {
    let probe = try server.entered(.simple)
    for range in ranges(probe) { _ = try probe.bytes(range.offset, range.count) }
  }

  private static func structured(_ server: LintServer) throws(LintStop) {
    let probe = try server.entered(.structured)
    for range in ranges(probe) { _ = try probe.bytes(range.offset, range.count) }
  }

  private static func modesAgree(_ server: LintServer) throws(LintStop) {
    let first = try server.entered(.simple)
    var read: [[UInt8]] = []
    for range in ranges(first) { read.append(try first.bytes(range.offset, range.count)) }
    first.disconnect()
    let second = try server.entered(.structured)
    for (range, expected) in zip(ranges(second), read) {
      try demandEqual(
        try second.bytes(range.offset, range.count), expected,
        "the bytes at \(range.offset) that a simple reply brought")
    }
  }

  private static func unaligned(_ server: LintServer) throws(LintStop) {
    let probe = try server.enteredSomehow(blockSizes: false)
    let count = Int(min(probe.size, 140_000))
    try need(count >= 4096, "the export is too small")
    let all = try probe.bytes(0, count)
    for (start, end) in [(0, 1), (1, 2), (511, 513), (513, 4000), (count - 1001, count)] {
      try demandEqual(
        try probe.bytes(UInt64(start), end - start), Array(all[start..<end]),
        "bytes \(start) to \(end) of a larger READ")
    }
    _ = try probe.bytes(probe.size - 1, 1)
  }

  private static func misaligned(_ server: LintServer) throws(LintStop) {
    let probe = try server.enteredSomehow()
    let block = UInt64(probe.blockByteCount)
    try need(block > 1, "every range is aligned: the minimum block size is 1")
    try need(probe.size >= 4 * block, "the export is too small")
    for (offset, length) in [(1, block), (0, block - 1), (block - 1, 1)] {
      let outcome = try probe.read(offset, length)
      try probe.expectError(outcome, Errno.invalid, of: "\(length) bytes at \(offset)")
    }
    try probe.demandInStep(after: "a misaligned READ")
  }

  private static func large(_ server: LintServer) throws(LintStop) {
    let probe = try server.enteredSomehow()
    try need(probe.size >= 32 << 20, "the export is smaller than 2^25 bytes")
    try need(
      probe.payloadByteCountMax >= 32 << 20, "a smaller maximum payload was agreed on")
    _ = try probe.bytes(0, 32 << 20)
  }

  private static func outside(_ server: LintServer) throws(LintStop) {
    let probe = try server.enteredSomehow()
    let block = UInt64(probe.blockByteCount)
    let end = probe.size / block * block
    for (offset, length) in [(end, block), (end - block, 2 * block), (end + (1 << 32), block)] {
      guard length > probe.size || offset > probe.size - length else { continue }
      let outcome = try probe.read(offset, length)
      try probe.expectError(
        outcome, Errno.invalid, of: "\(length) bytes at \(offset) of \(probe.size)")
    }
    try probe.demandInStep(after: "READ past the end")
  }

  private static func outsideWrapped(_ server: LintServer) throws(LintStop) {
    let probe = try server.enteredSomehow()
    let block = UInt64(max(probe.blockByteCount, 512))
    for offset in [UInt64.max - block + 1, 1 << 63, (1 << 63) - block] {
      let outcome = try probe.read(offset, 2 * block)
      try probe.expectError(outcome, Errno.invalid, of: "\(2 * block) bytes at \(offset)")
    }
    try probe.demandInStep(after: "READ past 2^63")
  }

  private static func tooBig(_ server: LintServer) throws(LintStop) {
    let probe = try server.entered(.simple)
    let block = UInt64(probe.blockByteCount)
    // It begins inside and ends beyond, so that nobody has to answer it in full.
    let offset = probe.size < 0xffff_f000 ? 0 : (probe.size - 1) / block * block
    do throws(LintStop) {
      let outcome = try probe.call(Command.read, offset: offset, length: 0xffff_f000)
      try demand(outcome.error != 0, "an error for 4 GiB", got: "success")
      try probe.demandInStep(after: "READ of 4 GiB")
    } catch {
      guard case .ended = error else { throw error }
    }
    try server.demandService()
  }

  private static func zeroLength(_ server: LintServer) throws(LintStop) {
    for style in [ReplyStyle.simple, .structured] {
      do throws(LintStop) {
        let probe = try server.entered(style)
        probe.acceptsAnyReply = true
        _ = try probe.read(0, 0)
        probe.acceptsAnyReply = false
        try probe.demandInStep(after: "READ of nothing")
      } catch {
        guard case .skipped = error, style == .structured else { throw error }
      }
    }
  }

  private static func unknownFlag(_ server: LintServer) throws(LintStop) {
    let probe = try server.enteredSomehow()
    let outcome = try probe.read(
      0, UInt64(probe.blockByteCount), flags: CommandFlag.unknown)
    try probe.expectError(outcome, Errno.invalid, of: "READ with bit 14")
    try probe.demandInStep(after: "READ with an unknown flag")
  }

  private static func foreignFlag(_ server: LintServer) throws(LintStop) {
    let probe = try server.enteredSomehow()
    for flag in [CommandFlag.noHole, CommandFlag.requestOne, CommandFlag.fastZero] {
      let outcome = try probe.read(0, UInt64(probe.blockByteCount), flags: flag)
      try probe.expectError(outcome, Errno.invalid, of: "READ with flag \(flag)")
    }
    try probe.demandInStep(after: "READ with flags of other commands")
  }

  private static func fua(_ server: LintServer) throws(LintStop) {
    let probe = try server.enteredSomehow()
    try need(probe.has(ExportFlag.sendFUA), "the server does not offer FUA")
    let outcome = try probe.read(0, UInt64(probe.blockByteCount), flags: CommandFlag.fua)
    try probe.expectSuccess(outcome, "READ with FUA")
  }

  private static func dontFragment(_ server: LintServer) throws(LintStop) {
    let probe = try server.entered(.structured)
    try need(probe.has(ExportFlag.sendDF), "the server does not offer DF")
    for range in ranges(probe) where range.count <= 65_536 {
      let outcome = try probe.read(
        range.offset, UInt64(range.count), flags: CommandFlag.dontFragment)
      try probe.expectSuccess(outcome, "READ of \(range.count) bytes with DF")
    }
  }

  private static func dontFragmentLarge(_ server: LintServer) throws(LintStop) {
    let probe = try server.entered(.structured)
    try need(probe.has(ExportFlag.sendDF), "the server does not offer DF")
    let block = UInt64(probe.blockByteCount)
    let length = min(probe.size, UInt64(probe.payloadByteCountMax), 16 << 20) / block * block
    try need(length > 65_536, "the export has no more than 65,536 bytes")
    let outcome = try probe.read(0, length, flags: CommandFlag.dontFragment)
    try probe.expectError(
      outcome, Errno.none, Errno.overflow, of: "READ of \(length) bytes with DF")
    try probe.demandInStep(after: "a large READ with DF")
  }

  private static func dontFragmentUnasked(_ server: LintServer) throws(LintStop) {
    let probe = try server.entered(.simple)
    let outcome = try probe.read(
      0, UInt64(probe.blockByteCount), flags: CommandFlag.dontFragment)
    try probe.expectError(outcome, Errno.invalid, of: "READ with DF and simple replies")
    try probe.demandInStep(after: "READ with DF that was not offered")
  }
}
