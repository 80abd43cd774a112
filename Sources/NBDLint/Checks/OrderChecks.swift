// SPDX-License-Identifier: Apache-2.0
//
// Rules of cookies and of order. Spec: proto.md, "Request message", "Ordering of messages and
// writes". The probe performs the I/O.

enum OrderChecks {
  static let all = [
    LintCheck(
      "order.cookies", .must, "A reply has the cookie of its request, whatever its bits.",
      Source.text("Request message"), run: cookies),
    LintCheck(
      "order.data-by-cookie", .must, "The data behind a cookie are those of its request.",
      Source.text("Ordering of messages and writes"), run: dataByCookie),
    LintCheck(
      "order.duplicate-cookie", .quality, "The same cookie twice in flight does not matter.",
      Source.text("Request message"), run: duplicateCookie),
    LintCheck(
      "order.flush-covers", .must, "What was answered before a FLUSH is there after it.",
      Source.text("Ordering of messages and writes"), writes: true, run: flushCovers),
  ]

  private static func cookies(_ server: LintServer) throws(LintStop) {
    let probe = try server.enteredSomehow()
    let length = UInt64(probe.blockByteCount)
    for cookie in [0, .max, 1 << 63, 0x0123_4567_89ab_cdef, 0x6744_6698_0000_0000] as [UInt64] {
      try probe.send(Command.read, cookie: cookie, length: length)
      try probe.expectSuccess(
        try probe.wait(cookie), "a READ with cookie 0x\(String(cookie, radix: 16))")
    }
  }

  private static func dataByCookie(_ server: LintServer) throws(LintStop) {
    let probe = try server.enteredSomehow()
    let length = max(probe.blockByteCount, 4096)
    let count = min(32, Int(min(probe.size, 1 << 30)) / length)
    try need(count > 1, "the export is too small")
    let all = try probe.bytes(0, count * length)
    var places: [UInt64: Int] = [:]
    for index in (0..<count).reversed() {
      let cookie = try probe.send(
        Command.read, offset: UInt64(index * length), length: UInt64(length))
      places[cookie] = index * length
    }
    for _ in 0..<count {
      let answer = try probe.waitForAny()
      guard let place = places.removeValue(forKey: answer.cookie) else { continue }
      try probe.expectSuccess(answer.outcome, "a READ among \(count)")
      try demandEqual(
        answer.outcome.data, Array(all[place..<place + length]), "the bytes at \(place)")
    }
  }

  private static func duplicateCookie(_ server: LintServer) throws(LintStop) {
    let probe = try server.entered(.simple)
    let length = UInt64(probe.blockByteCount)
    let header = probe.header(Command.read, cookie: 7, length: length)
    try probe.socket.send(header + header + header)
    for _ in 0..<3 {
      let reply = try probe.socket.receive(16 + Int(length), "three replies to one cookie")
      try demand(
        Array(reply[..<16]) == wire(ProbeMagic.simpleReply, UInt32(0), UInt64(7)),
        "a reply to cookie 7 without an error", got: hexadecimal(reply[..<16]))
    }
  }

  private static func flushCovers(_ server: LintServer) throws(LintStop) {
    try server.withArea(of: 256 << 10) { (area) throws(LintStop) in
      let probe = try server.writable()
      try need(probe.has(ExportFlag.sendFlush), "the server does not offer FLUSH")
      let data = filler(area.byteCount, 11)
      try probe.expectSuccess(try probe.write(area.offset, data), "a WRITE")
      try probe.expectSuccess(try probe.call(Command.flush), "FLUSH")
      probe.disconnect()
      // That it survives a power cut is not seen from here; that it is there, is.
      let other = try server.enteredSomehow()
      try demandEqual(
        try other.bytes(area.offset, area.byteCount), data, "the bytes from before the FLUSH")
    }
  }
}
