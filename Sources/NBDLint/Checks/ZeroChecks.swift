// SPDX-License-Identifier: Apache-2.0
//
// Rules of WRITE_ZEROES. Spec: proto.md, "Request types", "Command flags".
// The probe performs the I/O.

enum ZeroChecks {
  static let all = [
    LintCheck(
      "wz.basic", .must, "What WRITE_ZEROES covered reads as zero, and nothing else does.",
      Source.text("Request types"), writes: true, run: basic),
    LintCheck(
      "wz.unaligned", .must, "Any range of bytes can be zeroed, exactly.",
      Source.text("Size constraints"), writes: true, run: unaligned),
    LintCheck(
      "wz.oob", .should, "WRITE_ZEROES past the end gets ENOSPC.",
      Source.text("Error values"), writes: true, run: outside),
    LintCheck(
      "wz.zero-length", .should, "WRITE_ZEROES of nothing does not end the connection.",
      Source.text("Request types"), writes: true, run: zeroLength),
    LintCheck(
      "wz.fua", .must, "Where FUA is offered, WRITE_ZEROES takes it, with NO_HOLE, too.",
      Source.text("Command flags"), writes: true, run: fua),
    LintCheck(
      "wz.large", .should,
      "More than a payload can hold is zeroed, or gets EOVERFLOW or EINVAL; never the end.",
      Source.text("Size constraints"), writes: true, run: large),
    LintCheck(
      "wz.fast", .must, "FAST_ZERO zeroes, or fails with ENOTSUP and changes nothing.",
      Source.text("Command flags"), writes: true, run: fast),
    LintCheck(
      "wz.fast-unadvertised", .should, "FAST_ZERO that was not offered gets EINVAL.",
      Source.text("Command flags"), writes: true, run: fastUnoffered),
    LintCheck(
      "wz.bad-flag", .should, "WRITE_ZEROES with a flag of another command gets EINVAL.",
      Source.text("Command flags"), writes: true, run: badFlag),
  ]

  private static let request = RangedRequest(
    command: Command.writeZeroes, name: "WRITE_ZEROES", offer: ExportFlag.sendWriteZeroes)

  /// Fills an area, zeroes `ranges` of it, and compares all of it.
  private static func zero(
    _ server: LintServer, _ ranges: [Range<Int>], flags: UInt16 = 0, blockSizes: Bool = true
  ) throws(LintStop) {
    let (before, after) = try request.change(
      server, ranges, flags: flags, blockSizes: blockSizes)
    var expected = before
    for range in ranges { expected.replaceSubrange(range, with: zeroes(range.count)) }
    try demandEqual(after, expected, "zeroes in the ranges and data beside them")
  }

  private static func basic(_ server: LintServer) throws(LintStop) {
    try zero(server, [65_536..<131_072, 196_608..<458_752])
    try zero(server, [65_536..<131_072, 196_608..<458_752], flags: CommandFlag.noHole)
  }

  private static func unaligned(_ server: LintServer) throws(LintStop) {
    let ranges = [0..<1, 511..<514, 8191..<70_001, 200_001..<200_002, 300_003..<400_000]
    try zero(server, ranges, blockSizes: false)
    try zero(server, ranges, flags: CommandFlag.noHole, blockSizes: false)
  }

  private static func fua(_ server: LintServer) throws(LintStop) {
    try zero(server, [65_536..<131_072], flags: CommandFlag.fua)
    try zero(server, [65_536..<131_072], flags: CommandFlag.fua | CommandFlag.noHole)
  }

  private static func outside(_ server: LintServer) throws(LintStop) {
    let probe = try request.probe(server)
    let block = UInt64(probe.blockByteCount)
    let end = (probe.size + block - 1) / block * block
    for offset in [end, end + (1 << 32)] {
      let outcome = try probe.call(Command.writeZeroes, offset: offset, length: block)
      try probe.expectError(outcome, Errno.noSpace, of: "WRITE_ZEROES at \(offset)")
    }
    try probe.demandInStep(after: "WRITE_ZEROES past the end")
  }

  private static func zeroLength(_ server: LintServer) throws(LintStop) {
    let probe = try request.probe(server)
    _ = try probe.call(Command.writeZeroes, length: 0)
    try probe.demandInStep(after: "WRITE_ZEROES of nothing")
  }

  private static func large(_ server: LintServer) throws(LintStop) {
    try server.withArea(of: 33 << 20) { (area) throws(LintStop) in
      let probe = try request.probe(server)
      try probe.expectSuccess(
        try probe.write(area.offset + (32 << 20), filler(65_536)), "a WRITE")
      let outcome = try probe.call(
        Command.writeZeroes, offset: area.offset, length: UInt64(area.byteCount))
      try probe.expectError(
        outcome, Errno.none, Errno.overflow, Errno.invalid, of: "WRITE_ZEROES of 33 MiB")
      if outcome.error == 0 {
        try demandEqual(
          try probe.bytes(area.offset + (32 << 20), 65_536), zeroes(65_536),
          "zeroes up to the end of the range")
      }
      try probe.demandInStep(after: "a large WRITE_ZEROES")
    }
  }

  private static func fast(_ server: LintServer) throws(LintStop) {
    try server.withArea(of: 256 << 10) { (area) throws(LintStop) in
      let probe = try request.probe(server)
      try need(probe.has(ExportFlag.sendFastZero), "the server does not offer FAST_ZERO")
      let data = filler(area.byteCount, 9)
      for flags in [CommandFlag.fastZero, CommandFlag.fastZero | CommandFlag.noHole] {
        try probe.expectSuccess(try probe.write(area.offset, data), "a WRITE")
        let outcome = try probe.call(
          Command.writeZeroes, flags: flags, offset: area.offset, length: UInt64(area.byteCount))
        try probe.expectError(outcome, Errno.none, Errno.notSupported, of: "FAST_ZERO")
        let isZero = outcome.error == 0
        try demandEqual(
          try probe.bytes(area.offset, area.byteCount),
          isZero ? zeroes(area.byteCount) : data,
          isZero ? "zeroes after FAST_ZERO" : "the old bytes after ENOTSUP")
      }
    }
  }

  private static func fastUnoffered(_ server: LintServer) throws(LintStop) {
    try server.withArea(of: 64 << 10) { (area) throws(LintStop) in
      let probe = try request.probe(server)
      try need(!probe.has(ExportFlag.sendFastZero), "the server offers FAST_ZERO")
      let outcome = try probe.call(
        Command.writeZeroes, flags: CommandFlag.fastZero, offset: area.offset,
        length: UInt64(area.byteCount))
      try probe.expectError(outcome, Errno.invalid, of: "FAST_ZERO")
      try probe.demandInStep(after: "FAST_ZERO that was not offered")
    }
  }

  private static func badFlag(_ server: LintServer) throws(LintStop) {
    try server.withArea(of: 64 << 10) { (area) throws(LintStop) in
      let probe = try request.probe(server)
      for flag in [CommandFlag.dontFragment, CommandFlag.requestOne, CommandFlag.unknown] {
        let outcome = try probe.call(
          Command.writeZeroes, flags: flag, offset: area.offset, length: UInt64(area.byteCount))
        try probe.expectError(outcome, Errno.invalid, of: "WRITE_ZEROES with flag \(flag)")
      }
      try demandEqual(
        try probe.bytes(area.offset, area.byteCount), area.saved, "the disk unchanged")
    }
  }
}
