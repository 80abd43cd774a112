// SPDX-License-Identifier: Apache-2.0
//
// Rules of CACHE, of unknown commands and of the request stream. Spec: proto.md, "Request types",
// "Request message". The probe performs the I/O.

enum CommandChecks {
  static let all = [
    LintCheck(
      "cache.basic", .must, "CACHE, where offered, changes nothing that can be read.",
      Source.text("Request types"), run: cache),
    LintCheck(
      "cache.oob", .quality, "CACHE past the end gets EINVAL.",
      Source.text("Error values"), run: cacheOutside),
    LintCheck(
      "cache.bad-flag", .must, "CACHE, where offered, refuses flags that it does not know.",
      Source.text("Request types"), run: cacheFlag),
    LintCheck(
      "cache.unadvertised", .should, "CACHE that was not offered does not end the connection.",
      Source.text("Request types"), run: cacheUnoffered),
    LintCheck(
      "cmd.unknown", .should, "An unknown command gets EINVAL.",
      Source.text("Error values"), run: unknown),
    LintCheck(
      "cmd.unknown-with-length", .should, "An unknown command with a length has no payload.",
      Source.text("Request message"), run: unknownWithLength),
    LintCheck(
      "cmd.bad-magic", .quality, "A request with a wrong magic gets the end, or an error.",
      Source.text("Request message"), run: badMagic),
    LintCheck(
      "cmd.split-bytes", .quality, "A request may come one byte at a time.",
      Source.text("Request message"), run: splitBytes),
    LintCheck(
      "cmd.batched", .quality, "Many requests may come in one segment.",
      Source.text("Ordering of messages and writes"), run: batched),
  ]

  private static func caching(_ server: LintServer) throws(LintStop) -> Probe {
    let probe = try server.enteredSomehow()
    try need(probe.has(ExportFlag.sendCache), "the server does not offer CACHE")
    return probe
  }

  private static func cache(_ server: LintServer) throws(LintStop) {
    let probe = try caching(server)
    let count = max(probe.blockByteCount, 4096)
    try need(probe.size >= UInt64(count), "the export is too small")
    let before = try probe.bytes(0, count)
    // It is a hint: a server may fail it, and still nothing changes.
    _ = try probe.call(Command.cache, length: UInt64(count))
    try demandEqual(try probe.bytes(0, count), before, "the same bytes after CACHE")
  }

  private static func cacheOutside(_ server: LintServer) throws(LintStop) {
    let probe = try caching(server)
    let block = UInt64(probe.blockByteCount)
    let offset = (probe.size + block - 1) / block * block
    let outcome = try probe.call(Command.cache, offset: offset, length: block)
    try probe.expectError(outcome, Errno.invalid, of: "CACHE at \(offset) of \(probe.size)")
    try probe.demandInStep(after: "CACHE past the end")
  }

  private static func cacheFlag(_ server: LintServer) throws(LintStop) {
    let probe = try caching(server)
    let flags = [
      CommandFlag.noHole, CommandFlag.dontFragment, CommandFlag.fastZero, CommandFlag.unknown,
    ]
    for flag in flags {
      let outcome = try probe.call(
        Command.cache, flags: flag, length: UInt64(probe.blockByteCount))
      try demand(outcome.error != 0, "an error for CACHE with flag \(flag)", got: "success")
    }
    try probe.demandInStep(after: "CACHE with wrong flags")
  }

  private static func cacheUnoffered(_ server: LintServer) throws(LintStop) {
    let probe = try server.enteredSomehow()
    try need(!probe.has(ExportFlag.sendCache), "the server offers CACHE")
    _ = try probe.call(Command.cache, length: UInt64(probe.blockByteCount))
    try probe.demandInStep(after: "CACHE that was not offered")
  }

  private static func unknown(_ server: LintServer) throws(LintStop) {
    let probe = try server.enteredSomehow()
    for command in [Command.unknown, 0xffff] {
      let outcome = try probe.call(command)
      try probe.expectError(outcome, Errno.invalid, of: "command \(command)")
    }
    try probe.demandInStep(after: "an unknown command")
  }

  private static func unknownWithLength(_ server: LintServer) throws(LintStop) {
    let probe = try server.enteredSomehow()
    _ = try probe.call(Command.unknown, offset: 0, length: 4096)
    try probe.demandInStep(after: "an unknown command with a length")
  }

  private static func badMagic(_ server: LintServer) throws(LintStop) {
    for magic in [ProbeMagic.simpleReply, 0] {
      let probe = try server.entered(.simple)
      try probe.sendHostile(wire(magic) + zeroes(24))
      do throws(LintStop) {
        let reply = try probe.socket.receive(16, "the end, or an error")
        try demand(
          reply[4..<8].contains { $0 != 0 }, "the end, or an error, after a wrong magic",
          got: hexadecimal(reply))
      } catch {
        guard case .ended = error else { throw error }
      }
    }
    try server.demandService()
  }

  private static func splitBytes(_ server: LintServer) throws(LintStop) {
    let probe = try server.enteredSomehow()
    let request = probe.prepare(Command.read, length: UInt64(probe.blockByteCount))
    for byte in request.bytes { try probe.socket.send([byte]) }
    try probe.expectSuccess(try probe.wait(request.cookie), "a READ in pieces of one byte")
    try probe.demandInStep(after: "a READ in pieces")
  }

  private static func batched(_ server: LintServer) throws(LintStop) {
    let probe = try server.enteredSomehow()
    let block = probe.blockByteCount
    let count = min(64, Int(min(probe.size, 1 << 30)) / block)
    try need(count > 0, "the export is empty")
    var offsets: [UInt64: Int] = [:]
    var bytes: [UInt8] = []
    for index in 0..<count {
      let request = probe.prepare(
        Command.read, offset: UInt64(index * block), length: UInt64(block))
      offsets[request.cookie] = index * block
      bytes += request.bytes
    }
    try probe.socket.send(bytes)
    var read = zeroes(count * block)
    for _ in 0..<count {
      let answer = try probe.waitForAny()
      try probe.expectSuccess(answer.outcome, "a READ among \(count)")
      guard let offset = offsets.removeValue(forKey: answer.cookie) else { continue }
      read.replaceSubrange(offset..<offset + block, with: answer.outcome.data)
    }
    try demandEqual(read, try probe.bytes(0, count * block), "the bytes of one large READ")
  }
}
