// SPDX-License-Identifier: Apache-2.0
//
// Requests and replies of the test client. Spec: proto.md, "Request message", "Simple reply
// message", "Structured reply chunk message". This file performs socket I/O.

extension WireClient {
  /// The bytes of a compact request header.
  public static func header(
    _ command: UInt16, flags: UInt16 = 0, cookie: UInt64, offset: UInt64 = 0, length: UInt32 = 0
  ) -> [UInt8] {
    wire(UInt32(0x2560_9513), flags, command, cookie, offset, length)
  }

  /// The bytes of an extended request header.
  public static func extendedHeader(
    _ command: UInt16, flags: UInt16 = 0, cookie: UInt64, offset: UInt64 = 0, length: UInt64 = 0
  ) -> [UInt8] {
    wire(UInt32(0x21e4_1c71), flags, command, cookie, offset, length)
  }

  /// Notes a request without sending it and returns its bytes.
  public func prepare(
    _ command: UInt16, flags: UInt16 = 0, cookie: UInt64? = nil, offset: UInt64 = 0,
    length: UInt32 = 0, payload: [UInt8] = []
  ) -> (cookie: UInt64, bytes: [UInt8]) {
    prepareWide(
      command, flags: flags, cookie: cookie, offset: offset, length: UInt64(length),
      payload: payload)
  }

  /// The same for a length of 64 bits, which only extended headers can carry.
  ///
  /// - Parameter filter: the contexts that a payload names; it is made here, `length` its effect.
  public func prepareWide(
    _ command: UInt16, flags: UInt16 = 0, cookie: UInt64? = nil, offset: UInt64 = 0,
    length: UInt64, payload: [UInt8] = [], filter: [UInt32]? = nil
  ) -> (cookie: UInt64, bytes: [UInt8]) {
    let cookie = cookie ?? nextCookie
    nextCookie = cookie &+ 1
    pending[cookie] = WireRequest(
      command: command, flags: flags, offset: offset, length: length,
      contextIDs: filter.map { Set($0) } ?? Set(contextIDs.values))
    guard extendedHeaders else {
      let header = WireClient.header(
        command, flags: flags, cookie: cookie, offset: offset,
        length: UInt32(truncatingIfNeeded: length))
      return (cookie, header + payload)
    }
    var flags = flags
    if command == WireCommand.write.rawValue, countsPayloads { flags |= WireFlag.payloadLength }
    guard let filter else {
      let header = WireClient.extendedHeader(
        command, flags: flags, cookie: cookie, offset: offset, length: length)
      return (cookie, header + payload)
    }
    let ids = wire(length) + filter.flatMap { wire($0) }
    let header = WireClient.extendedHeader(
      command, flags: flags | WireFlag.payloadLength, cookie: cookie, offset: offset,
      length: UInt64(ids.count))
    return (cookie, header + ids)
  }

  /// Sends a request whose length has 64 bits and waits for its reply.
  public func callWide(
    _ command: WireCommand, flags: UInt16 = 0, offset: UInt64 = 0, length: UInt64,
    payload: [UInt8] = [], filter: [UInt32]? = nil
  ) throws -> WireOutcome {
    let request = prepareWide(
      command.rawValue, flags: flags, offset: offset, length: length, payload: payload,
      filter: filter)
    try socket.send(request.bytes)
    return try wait(request.cookie)
  }

  /// Sends a request of any kind and returns its cookie.
  @discardableResult
  public func send(
    _ command: UInt16, flags: UInt16 = 0, cookie: UInt64? = nil, offset: UInt64 = 0,
    length: UInt32 = 0, payload: [UInt8] = []
  ) throws -> UInt64 {
    let request = prepare(
      command, flags: flags, cookie: cookie, offset: offset, length: length, payload: payload)
    try socket.send(request.bytes)
    return request.cookie
  }

  @discardableResult
  public func send(
    _ command: WireCommand, flags: UInt16 = 0, cookie: UInt64? = nil, offset: UInt64 = 0,
    length: UInt32 = 0, payload: [UInt8] = []
  ) throws -> UInt64 {
    try send(
      command.rawValue, flags: flags, cookie: cookie, offset: offset, length: length,
      payload: payload)
  }

  /// Reads replies until the one to `cookie` is whole.
  public func wait(_ cookie: UInt64) throws -> WireOutcome {
    while true {
      if let outcome = finished.removeValue(forKey: cookie) { return outcome }
      try receiveReplyPart()
    }
  }

  /// Reads replies until any request is answered.
  public func waitForAny() throws -> (cookie: UInt64, outcome: WireOutcome) {
    while true {
      if let first = finished.first {
        finished[first.key] = nil
        return (cookie: first.key, outcome: first.value)
      }
      try receiveReplyPart()
    }
  }

  public func call(
    _ command: WireCommand, flags: UInt16 = 0, offset: UInt64 = 0, length: UInt32 = 0,
    payload: [UInt8] = []
  ) throws -> WireOutcome {
    try wait(
      send(command, flags: flags, offset: offset, length: length, payload: payload))
  }

  public func read(_ offset: UInt64, _ length: Int, flags: UInt16 = 0) throws -> WireOutcome {
    try call(.read, flags: flags, offset: offset, length: UInt32(length))
  }

  /// Writes and returns the error.
  public func write(_ offset: UInt64, _ data: [UInt8], flags: UInt16 = 0) throws -> UInt32 {
    try call(
      .write, flags: flags, offset: offset, length: UInt32(data.count), payload: data
    ).error
  }

  public func flush() throws -> UInt32 { try call(.flush).error }

  /// Says goodbye and waits for the end.
  public func disconnect() throws {
    let command = WireCommand.disconnect.rawValue
    try socket.send(
      extendedHeaders
        ? WireClient.extendedHeader(command, cookie: nextCookie)
        : WireClient.header(command, cookie: nextCookie))
    let rest = try socket.receiveUntilEnd()
    guard rest.isEmpty else { throw WireError.violation("\(rest.count) bytes after DISC") }
  }

  /// Reads one simple reply or one chunk.
  func receiveReplyPart() throws {
    let magic = try socket.receive(4)
    switch magic {
    case [0x67, 0x44, 0x66, 0x98] where !extendedHeaders: try receiveSimpleReply()
    case [0x66, 0x8e, 0x33, 0xef] where !extendedHeaders: try receiveChunk()
    case [0x6e, 0x8a, 0x27, 0x8c] where extendedHeaders: try receiveExtendedChunk()
    default: throw WireError.violation("a reply starts with \(magic)")
    }
  }

  private func receiveSimpleReply() throws {
    var reader = WireReader(try socket.receive(12))
    let error: UInt32 = try reader.integer()
    let cookie: UInt64 = try reader.integer()
    guard let request = pending.removeValue(forKey: cookie), partial[cookie] == nil else {
      throw WireError.violation("a simple reply with unknown cookie \(cookie)")
    }
    guard WireErrno.all.contains(error) else { throw WireError.violation("errno \(error)") }
    var outcome = WireOutcome(error: error)
    if error == 0 {
      if request.command == WireCommand.read.rawValue {
        guard !structuredReplies else {
          throw WireError.violation("a READ got a simple reply after structured replies")
        }
        outcome.data.bytes = try socket.receive(Int(request.length))
      }
      guard request.command != WireCommand.blockStatus.rawValue else {
        throw WireError.violation("a BLOCK_STATUS got a simple reply")
      }
    }
    finished[cookie] = outcome
  }

  private func receiveChunk() throws {
    var reader = WireReader(try socket.receive(16))
    let flags: UInt16 = try reader.integer()
    let type: UInt16 = try reader.integer()
    let cookie: UInt64 = try reader.integer()
    let count: UInt32 = try reader.integer()
    guard structuredReplies else { throw WireError.violation("a chunk was not negotiated") }
    try takeChunk(flags, type, cookie, UInt64(count))
  }

  private func receiveExtendedChunk() throws {
    var reader = WireReader(try socket.receive(28))
    let flags: UInt16 = try reader.integer()
    let type: UInt16 = try reader.integer()
    let cookie: UInt64 = try reader.integer()
    let offset: UInt64 = try reader.integer()
    let count: UInt64 = try reader.integer()
    guard let request = pending[cookie], request.offset == offset else {
      throw WireError.violation("a chunk of cookie \(cookie) has offset \(offset)")
    }
    try takeChunk(flags, type, cookie, count)
  }

  private func takeChunk(
    _ flags: UInt16, _ type: UInt16, _ cookie: UInt64, _ count: UInt64
  ) throws {
    guard let request = pending[cookie] else {
      throw WireError.violation("a chunk with unknown cookie \(cookie)")
    }
    guard flags & ~1 == 0 else { throw WireError.violation("chunk flags \(flags)") }
    guard count <= 65 << 20 else { throw WireError.violation("a chunk of \(count) bytes") }
    var outcome = partial[cookie] ?? WireOutcome(isStructured: true)
    // A READ that is too long is refused: nothing is made ready for its data.
    if outcome.data.count == 0, request.command == WireCommand.read.rawValue,
      request.length <= 65 << 20
    {
      outcome.data.bytes = [UInt8](repeating: 0, count: Int(request.length))
    }
    partial[cookie] = nil  // so that the data below is not copied
    outcome.chunkCount += 1
    try outcome.take(
      type, WireReader(try socket.receive(Int(count))), of: request, isDone: flags == 1,
      isExtended: extendedHeaders)
    guard flags == 1 else {
      partial[cookie] = outcome
      return
    }
    try outcome.checkEnd(of: request)
    pending[cookie] = nil
    finished[cookie] = outcome
  }
}
