// SPDX-License-Identifier: Apache-2.0
//
// Rules of BLOCK_STATUS. Spec: proto.md, "NBD_CMD_BLOCK_STATUS", "base:allocation".
// The probe performs the I/O.

enum StatusChecks {
  static let all = [
    LintCheck(
      "bs.basic", .must, "BLOCK_STATUS gets one chunk for the context, with whole extents.",
      Source.text("Structured reply types"), run: basic),
    LintCheck(
      "bs.req-one", .must, "With REQ_ONE there is one extent, not longer than the request.",
      Source.text("Command flags"), run: requestOne),
    LintCheck(
      "bs.walk", .must, "Asking from the first uncovered byte on leads to the end of the disk.",
      Source.text("Request types"), run: walk),
    LintCheck(
      "bs.zero-is-zero", .must, "What is told to be zero reads as zeroes.",
      Source.text("base:allocation metadata context"), run: zeroIsZero),
    LintCheck(
      "bs.written-not-zero", .must, "Data that was written is told neither as zero nor as a hole.",
      Source.text("base:allocation metadata context"), writes: true, run: writtenNotZero),
    LintCheck(
      "bs.oob", .should, "BLOCK_STATUS past the end gets EINVAL.",
      Source.text("Error values"), run: outside),
    LintCheck(
      "bs.zero-length", .should, "BLOCK_STATUS of nothing does not end the connection.",
      Source.text("Request types"), run: zeroLength),
    LintCheck(
      "bs.no-context", .should, "BLOCK_STATUS without a selected context gets EINVAL.",
      Source.text("Request types"), run: noContext),
    LintCheck(
      "bs.no-structured", .should, "BLOCK_STATUS with simple replies gets EINVAL.",
      Source.text("Request types"), run: noStructured),
    LintCheck(
      "bs.bad-flag", .should, "BLOCK_STATUS with a flag of another command gets EINVAL.",
      Source.text("Command flags"), run: badFlag),
    LintCheck(
      "bs.unaligned", .must, "Ranges that start or end inside a sector are told right, too.",
      Source.text("Request types"), run: unaligned),
    LintCheck(
      "bs.all-contexts", .must, "With several contexts there is one chunk for each.",
      Source.text("Request types"), run: allContexts),
    LintCheck(
      "bs.in-flight", .must, "Many at once are answered with the cookies that were sent.",
      Source.text("Request message"), run: inFlight),
  ]

  static let base = "base:allocation"
  /// Bits of its status.
  static let hole: UInt64 = 1
  static let zero: UInt64 = 2
  /// Bytes that a walk asks for at once.
  private static let stepByteCountMax: UInt64 = 1 << 30
  /// Requests of one walk, and bytes that one check reads.
  private static let stepCountMax = 20_000
  private static let readByteCountMax: UInt64 = 64 << 20

  private static func probe(
    _ server: LintServer, blockSizes: Bool = true
  ) throws(LintStop) -> Probe {
    let probe = try server.entered(.structured, contexts: [base], blockSizes: blockSizes)
    try need(probe.size > 0, "the export is empty")
    return probe
  }

  /// The extents of `base:allocation` in one answer.
  static func extents(
    _ probe: Probe, _ offset: UInt64, _ length: UInt64, flags: UInt16 = 0,
    context: String = base
  ) throws(LintStop) -> [StatusExtent] {
    let outcome = try probe.call(
      Command.blockStatus, flags: flags, offset: offset, length: length)
    try probe.expectSuccess(outcome, "BLOCK_STATUS of \(length) bytes at \(offset)")
    return probe.contextIDs[context].flatMap { outcome.extents[$0] } ?? []
  }

  /// Calls `body` with each extent from `start` on, clipped to `end`; stops when that is false.
  static func walk(
    _ probe: Probe, from start: UInt64 = 0, to end: UInt64, flags: UInt16 = 0,
    _ body: (UInt64, UInt64, UInt64) throws(LintStop) -> Bool
  ) throws(LintStop) {
    var offset = start
    for _ in 0..<stepCountMax {
      guard offset < end else { return }
      for extent in try extents(probe, offset, min(end - offset, stepByteCountMax), flags: flags) {
        guard offset < end else { return }
        let length = min(extent.length, end - offset)
        guard try body(offset, length, extent.status) else { return }
        offset += length
      }
    }
    throw .skipped("too many extents to walk: \(stepCountMax) requests got to \(offset)")
  }

  private static func basic(_ server: LintServer) throws(LintStop) {
    let probe = try probe(server)
    let list = try extents(probe, 0, min(probe.size, 1 << 30))
    try demand(!list.isEmpty, "extents of \(base)", got: "none")
  }

  private static func requestOne(_ server: LintServer) throws(LintStop) {
    let probe = try probe(server)
    let block = UInt64(probe.blockByteCount)
    for length in [block, 4096, 65_536, min(probe.size / block * block, 1 << 30)] {
      guard length > 0, length % block == 0, length <= probe.size else { continue }
      // The probe refuses a second extent, and one that is too long.
      _ = try extents(probe, 0, length, flags: CommandFlag.requestOne)
    }
  }

  private static func walk(_ server: LintServer) throws(LintStop) {
    let probe = try probe(server)
    for flags in [0, CommandFlag.requestOne] {
      var total: UInt64 = 0
      try walk(probe, to: probe.size, flags: flags) { (_, length, _) throws(LintStop) in
        total += length
        return true
      }
      try demand(total == probe.size, "\(probe.size) bytes of status", got: "\(total)")
    }
  }

  private static func zeroIsZero(_ server: LintServer) throws(LintStop) {
    let probe = try probe(server)
    var left = readByteCountMax
    var zeroCount = 0
    try walk(probe, to: probe.size) { (offset, length, status) throws(LintStop) in
      guard status & zero != 0 else { return true }
      zeroCount += 1
      let count = Int(min(length, 4 << 20, left))
      let data = try probe.bytes(offset, count)
      try demandEqual(data, zeroes(count), "zeroes at \(offset), as the status tells")
      left -= UInt64(count)
      return left > 0
    }
    try need(zeroCount > 0, "no part of the disk is told to be zero")
  }

  private static func writtenNotZero(_ server: LintServer) throws(LintStop) {
    try server.withArea(of: 256 << 10) { (area) throws(LintStop) in
      let probe = try probe(server)
      let written = try probe.write(area.offset + 65_536, filler(65_536))
      try probe.expectSuccess(written, "a WRITE")
      var told: UInt64 = 0
      let start = area.offset + 65_536
      try walk(probe, from: start, to: start + 65_536) { (_, length, status) throws(LintStop) in
        try demand(
          status & (zero | hole) == 0, "status 0 of data that was just written", got: "\(status)")
        told += length
        return true
      }
      try demand(told == 65_536, "the status of 65536 bytes", got: "\(told)")
    }
  }

  private static func outside(_ server: LintServer) throws(LintStop) {
    let probe = try probe(server)
    let block = UInt64(probe.blockByteCount)
    let end = probe.size / block * block
    for (offset, length) in [(end, block), (end - block, 2 * block), (1 << 63, block)] {
      let outcome = try probe.call(Command.blockStatus, offset: offset, length: length)
      guard offset >= probe.size || length > probe.size - offset else { continue }
      try probe.expectError(outcome, Errno.invalid, of: "\(length) bytes at \(offset)")
    }
    try probe.demandInStep(after: "BLOCK_STATUS past the end")
  }

  private static func zeroLength(_ server: LintServer) throws(LintStop) {
    let probe = try probe(server)
    probe.acceptsAnyReply = true
    _ = try probe.call(Command.blockStatus, length: 0)
    try probe.demandInStep(after: "BLOCK_STATUS of nothing")
  }

  private static func noContext(_ server: LintServer) throws(LintStop) {
    let probe = try server.entered(.structured)
    let outcome = try probe.call(Command.blockStatus, length: UInt64(probe.blockByteCount))
    try probe.expectError(outcome, Errno.invalid, of: "BLOCK_STATUS without a context")
    try probe.demandInStep(after: "BLOCK_STATUS without a context")
  }

  private static func noStructured(_ server: LintServer) throws(LintStop) {
    let probe = try server.entered(.simple)
    let outcome = try probe.call(Command.blockStatus, length: UInt64(probe.blockByteCount))
    try probe.expectError(outcome, Errno.invalid, of: "BLOCK_STATUS with simple replies")
    try probe.demandInStep(after: "BLOCK_STATUS with simple replies")
  }

  private static func badFlag(_ server: LintServer) throws(LintStop) {
    let probe = try probe(server)
    for flag in [CommandFlag.noHole, CommandFlag.dontFragment, CommandFlag.fastZero] {
      let outcome = try probe.call(
        Command.blockStatus, flags: flag, length: UInt64(probe.blockByteCount))
      try probe.expectError(outcome, Errno.invalid, of: "BLOCK_STATUS with flag \(flag)")
    }
    try probe.demandInStep(after: "BLOCK_STATUS with wrong flags")
  }

  private static func unaligned(_ server: LintServer) throws(LintStop) {
    let probe = try probe(server, blockSizes: false)
    try need(probe.size > 65_540, "the export is too small")
    for start in [1, 511, 65_535, probe.size - 1] {
      var total: UInt64 = 0
      let end = min(start + 100_001, probe.size)
      try walk(probe, from: start, to: end) { (offset, length, status) throws(LintStop) in
        total += length
        if status & zero != 0 {
          let count = Int(min(length, 100_001))
          let data = try probe.bytes(offset, count)
          try demandEqual(data, zeroes(count), "zeroes at \(offset), as the status tells")
        }
        return true
      }
      try demand(total == end - start, "\(end - start) bytes of status", got: "\(total)")
    }
  }

  private static func allContexts(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    try probe.negotiate(.structured)
    let answer = try probe.ask(Option.listMeta, Probe.metaData(server.export, []))
    try need(answer.isAck, "the server knows no meta contexts")
    let names = try answer.contexts().map(\.name)
    try need(names.count > 1, "the server offers \(names.count) contexts")
    try probe.select(names, of: server.export)
    try probe.enter(server.export)
    let block = UInt64(probe.blockByteCount)
    for length in [block, min(probe.size / block * block, 1 << 30)] {
      // The probe counts chunks against contexts.
      _ = try extents(probe, 0, length)
    }
  }

  private static func inFlight(_ server: LintServer) throws(LintStop) {
    let probe = try probe(server)
    let length = UInt64(max(probe.blockByteCount, 65_536))
    try need(probe.size >= length, "the export is too small")
    var cookies: Set<UInt64> = []
    for index in 0..<16 {
      let offset = UInt64(index) * length
      cookies.insert(
        try probe.send(
          Command.blockStatus, offset: offset + length <= probe.size ? offset : 0,
          length: length))
    }
    for _ in 0..<16 {
      let answer = try probe.waitForAny()
      try probe.expectSuccess(answer.outcome, "BLOCK_STATUS")
      cookies.remove(answer.cookie)
    }
    try demand(cookies.isEmpty, "an answer for each cookie", got: "\(cookies.count) missing")
  }
}
