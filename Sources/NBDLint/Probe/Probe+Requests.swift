// SPDX-License-Identifier: Apache-2.0
//
// The probe's requests, and the replies to them. Spec: proto.md, "Request message", "Simple reply
// message", "Structured reply chunk message"; the draft's "Request message" and "Extended
// reply chunk message". This file performs socket I/O.

extension Probe {
  /// The most bytes of one chunk: what a READ may ask for, and its header.
  static let chunkByteCountMax: UInt64 = 65 << 20
  /// The most replies and chunks that are read while one reply is waited for.
  static let partCountMax = 200_000

  /// The bytes of a request header in this connection's style.
  func header(
    _ command: UInt16, flags: UInt16 = 0, cookie: UInt64, offset: UInt64 = 0, length: UInt64 = 0
  ) -> [UInt8] {
    guard style == .extended else {
      return wire(
        ProbeMagic.request, flags, command, cookie, offset, UInt32(truncatingIfNeeded: length))
    }
    // The draft wants the payload flag on each WRITE.
    let all = command == Command.write ? flags | CommandFlag.payloadLength : flags
    return wire(ProbeMagic.extendedRequest, all, command, cookie, offset, length)
  }

  /// Notes a request without sending it, and returns its bytes.
  func prepare(
    _ command: UInt16, flags: UInt16 = 0, cookie: UInt64? = nil, offset: UInt64 = 0,
    length: UInt64 = 0, payload: [UInt8] = []
  ) -> (cookie: UInt64, bytes: [UInt8]) {
    let cookie = cookie ?? nextCookie
    nextCookie = cookie &+ 1
    pending[cookie] = Request(command: command, flags: flags, offset: offset, length: length)
    let header = header(command, flags: flags, cookie: cookie, offset: offset, length: length)
    return (cookie, header + payload)
  }

  /// Sends a request of any kind and returns its cookie.
  @discardableResult
  func send(
    _ command: UInt16, flags: UInt16 = 0, cookie: UInt64? = nil, offset: UInt64 = 0,
    length: UInt64 = 0, payload: [UInt8] = []
  ) throws(LintStop) -> UInt64 {
    let request = prepare(
      command, flags: flags, cookie: cookie, offset: offset, length: length, payload: payload)
    try socket.send(request.bytes)
    return request.cookie
  }

  /// Reads replies until the one to `cookie` is whole.
  func wait(_ cookie: UInt64) throws(LintStop) -> RequestOutcome {
    for _ in 0..<Probe.partCountMax {
      if let outcome = finished.removeValue(forKey: cookie) { return outcome }
      try receivePart()
    }
    throw .broken(expected: "an end of the reply", got: "\(Probe.partCountMax) parts of replies")
  }

  /// Reads replies until any request is answered.
  func waitForAny() throws(LintStop) -> (cookie: UInt64, outcome: RequestOutcome) {
    for _ in 0..<Probe.partCountMax {
      if let first = finished.first {
        finished[first.key] = nil
        return (cookie: first.key, outcome: first.value)
      }
      try receivePart()
    }
    throw .broken(expected: "an end of the reply", got: "\(Probe.partCountMax) parts of replies")
  }

  func call(
    _ command: UInt16, flags: UInt16 = 0, offset: UInt64 = 0, length: UInt64 = 0,
    payload: [UInt8] = []
  ) throws(LintStop) -> RequestOutcome {
    let cookie = try send(
      command, flags: flags, offset: offset, length: length, payload: payload)
    return try wait(cookie)
  }

  func read(
    _ offset: UInt64, _ length: UInt64, flags: UInt16 = 0
  ) throws(LintStop) -> RequestOutcome {
    try call(Command.read, flags: flags, offset: offset, length: length)
  }

  /// Reads and returns the bytes; an error breaks the check.
  func bytes(_ offset: UInt64, _ count: Int) throws(LintStop) -> [UInt8] {
    let outcome = try read(offset, UInt64(count))
    try expectSuccess(outcome, "a READ of \(count) bytes at \(offset)")
    return outcome.data
  }

  func write(
    _ offset: UInt64, _ data: [UInt8], flags: UInt16 = 0
  ) throws(LintStop) -> RequestOutcome {
    try call(
      Command.write, flags: flags, offset: offset, length: UInt64(data.count), payload: data)
  }

  func expectSuccess(_ outcome: RequestOutcome, _ what: String) throws(LintStop) {
    try demand(outcome.error == 0, "\(what) to succeed", got: outcome.errorName)
  }

  func expectError(
    _ outcome: RequestOutcome, _ numbers: UInt32..., of what: String
  ) throws(LintStop) {
    let names = numbers.map(Errno.name).joined(separator: " or ")
    try demand(numbers.contains(outcome.error), "\(names) for \(what)", got: outcome.errorName)
  }

  /// Ends the check unless this connection still answers a READ.
  func demandInStep(after what: String) throws(LintStop) {
    let length = min(UInt64(blockByteCount), size)
    do throws(LintStop) {
      try expectSuccess(try read(0, length), "a READ")
    } catch {
      let text = LintOutcome(error, deadlineSeconds: socket.deadlineSeconds).text
      throw .broken(expected: "the connection to stay in step after \(what)", got: text)
    }
  }

  /// Says goodbye, and does not wait.
  func disconnect() {
    let bytes = header(Command.disconnect, cookie: nextCookie)
    do throws(LintStop) { try socket.send(bytes) } catch {}
  }

  /// Reads one simple reply or one chunk.
  func receivePart() throws(LintStop) {
    var reader = FieldReader(try socket.receive(4, "a reply"), of: "a reply")
    switch try reader.integer(UInt32.self) {
    case ProbeMagic.simpleReply: try receiveSimpleReply()
    case ProbeMagic.chunk: try receiveChunk(.structured)
    case ProbeMagic.extendedChunk: try receiveChunk(.extended)
    case let magic:
      throw .broken(expected: "the magic of a reply", got: hexadecimal(wire(magic)))
    }
  }

  private func receiveSimpleReply() throws(LintStop) {
    var reader = FieldReader(try socket.receive(12, "a simple reply"), of: "a simple reply")
    let error = try reader.integer(UInt32.self)
    let cookie = try reader.integer(UInt64.self)
    guard let request = pending.removeValue(forKey: cookie), partial[cookie] == nil else {
      throw .broken(
        expected: "a cookie that was sent", got: "0x\(String(cookie, radix: 16))")
    }
    try demand(style != .extended, "an extended reply", got: "a simple one")
    var outcome = RequestOutcome(error: error, style: .simple)
    if request.command == Command.read {
      try demand(style == .simple, "a structured reply to READ", got: "a simple one")
      if error == 0 {
        outcome.data = try socket.receive(
          Int(request.length), "\(request.length) bytes of a READ")
      }
    }
    if request.command == Command.blockStatus && !acceptsAnyReply {
      try demand(error != 0, "extents for BLOCK_STATUS", got: "a simple reply without an error")
    }
    finished[cookie] = outcome
  }

  private func receiveChunk(_ chunkStyle: ReplyStyle) throws(LintStop) {
    let count = chunkStyle == .extended ? 28 : 16
    var reader = FieldReader(try socket.receive(count, "a chunk's header"), of: "a chunk")
    let flags = try reader.integer(UInt16.self)
    let type = try reader.integer(UInt16.self)
    let cookie = try reader.integer(UInt64.self)
    let offset = chunkStyle == .extended ? try reader.integer(UInt64.self) : nil
    let payloadCount =
      chunkStyle == .extended ? try reader.integer() : UInt64(try reader.integer(UInt32.self))
    try demand(
      chunkStyle == style, "replies in the style \(style.rawValue)",
      got: "\(chunkStyle.rawValue) ones")
    guard let request = pending[cookie] else {
      throw .broken(expected: "a cookie that was sent", got: "0x\(String(cookie, radix: 16))")
    }
    try demand(flags & ~1 == 0, "no chunk flag but DONE", got: "flags \(flags)")
    if let offset {
      try demand(
        offset == request.offset, "the request's offset \(request.offset) in the reply",
        got: "\(offset)")
    }
    try demand(
      payloadCount <= Probe.chunkByteCountMax, "a chunk of a bounded size",
      got: "\(payloadCount) bytes")
    var outcome = partial.removeValue(forKey: cookie) ?? fresh(request)
    outcome.style = chunkStyle
    outcome.chunkCount += 1
    let payload = try socket.receive(Int(payloadCount), "\(payloadCount) bytes of a chunk")
    if acceptsAnyReply {
      if type & 0x8000 != 0 { outcome.error = Errno.invalid }
    } else {
      try outcome.take(
        type, payload, of: request, isDone: flags == 1, style: style,
        contextIDs: contextIDs.values)
    }
    guard flags == 1 else {
      partial[cookie] = outcome
      return
    }
    if !acceptsAnyReply {
      try outcome.demandWhole(of: request, contextCount: expectedContexts ?? contextIDs.count)
    }
    pending[cookie] = nil
    finished[cookie] = outcome
  }

  /// The empty reply to a request; room for data only where a reply can fill it.
  private func fresh(_ request: Request) -> RequestOutcome {
    var outcome = RequestOutcome()
    if request.command == Command.read && request.length <= Probe.chunkByteCountMax {
      outcome.data = zeroes(Int(request.length))
    }
    return outcome
  }
}
