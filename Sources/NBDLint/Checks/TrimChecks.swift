// SPDX-License-Identifier: Apache-2.0
//
// Rules of TRIM. Spec: proto.md, "Request types", "Error values". The probe performs the I/O.

enum TrimChecks {
  static let all = [
    LintCheck(
      "trim.basic", .must, "TRIM discards nothing outside of its range.",
      Source.text("Request types"), writes: true, run: basic),
    LintCheck(
      "trim.unaligned", .must, "TRIM of any range of bytes leaves the neighbours alone.",
      Source.text("Size constraints"), writes: true, run: unaligned),
    LintCheck(
      "trim.oob", .should, "TRIM past the end gets EINVAL.",
      Source.text("Error values"), writes: true, run: outside),
    LintCheck(
      "trim.zero-length", .should, "TRIM of nothing does not end the connection.",
      Source.text("Request types"), writes: true, run: zeroLength),
    LintCheck(
      "trim.fua", .must, "Where FUA is offered, TRIM takes it.",
      Source.text("Command flags"), writes: true, run: fua),
    LintCheck(
      "trim.large", .should, "TRIM of more than a payload can hold does not end the connection.",
      Source.text("Size constraints"), writes: true, run: large),
    LintCheck(
      "trim.bad-flag", .should, "TRIM with a flag of another command gets EINVAL.",
      Source.text("Command flags"), writes: true, run: badFlag),
  ]

  private static let request = RangedRequest(
    command: Command.trim, name: "TRIM", offer: ExportFlag.sendTrim)

  /// Fills an area, trims `ranges` of it, and compares what is between them.
  private static func trim(
    _ server: LintServer, _ ranges: [Range<Int>], flags: UInt16 = 0, blockSizes: Bool = true
  ) throws(LintStop) {
    let (before, after) = try request.change(
      server, ranges, flags: flags, blockSizes: blockSizes)
    var expected = before
    // Inside, anything may be read.
    for range in ranges { expected.replaceSubrange(range, with: after[range]) }
    try demandEqual(after, expected, "the old bytes outside of what was trimmed")
  }

  private static func basic(_ server: LintServer) throws(LintStop) {
    try trim(server, [65_536..<131_072, 196_608..<458_752])
  }

  private static func unaligned(_ server: LintServer) throws(LintStop) {
    let ranges = [0..<1, 511..<514, 8191..<70_001, 200_001..<200_002, 300_003..<400_000]
    try trim(server, ranges, blockSizes: false)
  }

  private static func fua(_ server: LintServer) throws(LintStop) {
    try trim(server, [65_536..<131_072], flags: CommandFlag.fua)
  }

  private static func outside(_ server: LintServer) throws(LintStop) {
    let probe = try request.probe(server)
    let block = UInt64(probe.blockByteCount)
    let end = (probe.size + block - 1) / block * block
    for offset in [end, end + (1 << 32), 1 << 63] {
      let outcome = try probe.call(Command.trim, offset: offset, length: block)
      try probe.expectError(outcome, Errno.invalid, of: "TRIM at \(offset) of \(probe.size)")
    }
    try probe.demandInStep(after: "TRIM past the end")
  }

  private static func zeroLength(_ server: LintServer) throws(LintStop) {
    let probe = try request.probe(server)
    _ = try probe.call(Command.trim, length: 0)
    try probe.demandInStep(after: "TRIM of nothing")
  }

  private static func large(_ server: LintServer) throws(LintStop) {
    try server.withArea(of: 33 << 20) { (area) throws(LintStop) in
      let probe = try request.probe(server)
      _ = try probe.call(
        Command.trim, offset: area.offset, length: UInt64(area.byteCount))
      try probe.demandInStep(after: "a large TRIM")
    }
  }

  private static func badFlag(_ server: LintServer) throws(LintStop) {
    try server.withArea(of: 64 << 10) { (area) throws(LintStop) in
      let probe = try request.probe(server)
      let flags = [
        CommandFlag.noHole, CommandFlag.dontFragment, CommandFlag.fastZero, CommandFlag.unknown,
      ]
      for flag in flags {
        let outcome = try probe.call(
          Command.trim, flags: flag, offset: area.offset, length: UInt64(area.byteCount))
        try probe.expectError(outcome, Errno.invalid, of: "TRIM with flag \(flag)")
      }
      try demandEqual(
        try probe.bytes(area.offset, area.byteCount), area.saved, "the disk unchanged")
    }
  }
}
