// SPDX-License-Identifier: Apache-2.0
//
// A plain NBD client for tests: it can be right, and it can be wrong on purpose.
// Spec: proto.md, "Handshake phase". This file performs socket I/O.

/// One NBD connection. Checks everything that the server sends and throws `WireError` at a breach.
///
/// Not for several threads at once.
public final class WireClient {
  public let socket: WireSocket
  /// The 16 bits of the greeting.
  public private(set) var handshakeFlags: UInt16 = 0
  /// What the server said on entry.
  public private(set) var size: UInt64 = 0
  public private(set) var transmissionFlags: UInt16 = 0
  public internal(set) var structuredReplies = false
  public internal(set) var extendedHeaders = false
  /// Whether WRITE sets PAYLOAD_LEN with extended headers, as it must; QEMU's client does not.
  public var countsPayloads = true
  /// Selected contexts by name.
  public private(set) var contextIDs: [String: UInt32] = [:]

  // Kept by WireClient+Requests.swift.
  var nextCookie: UInt64 = 1
  var pending: [UInt64: WireRequest] = [:]
  var partial: [UInt64: WireOutcome] = [:]
  var finished: [UInt64: WireOutcome] = [:]

  /// Connects and reads nothing yet.
  public init(path: String, deadlineSeconds: Double = 20) throws {
    socket = try WireSocket(connectingTo: path, deadlineSeconds: deadlineSeconds)
  }

  /// How a client gets to an export.
  public enum Entry: Hashable, Sendable {
    case exportName
    case go
  }

  /// Reads the greeting and answers with `flags`.
  public func greet(flags: UInt32 = 3) throws {
    var reader = WireReader(try socket.receive(18))
    guard try reader.integer(UInt64.self) == 0x4e42_444d_4147_4943,
      try reader.integer(UInt64.self) == 0x4948_4156_454f_5054
    else { throw WireError.violation("the greeting's magic is wrong") }
    handshakeFlags = try reader.integer()
    try socket.send(wire(flags))
  }

  /// The whole way to an export.
  public static func entered(
    path: String, export: String = "", structured: Bool = true, extended: Bool = false,
    contexts: [String] = [],
    blockSizes: Bool = true, entry: Entry = .go, deadlineSeconds: Double = 20
  ) throws -> WireClient {
    let client = try WireClient(path: path, deadlineSeconds: deadlineSeconds)
    try client.greet()
    if structured { try client.negotiateStructuredReplies() }
    if extended { try client.negotiateExtendedHeaders() }
    if !contexts.isEmpty { try client.setMetaContexts(export, contexts) }
    switch entry {
    case .exportName: try client.enterByName(export)
    case .go: try client.go(export, requests: blockSizes ? [3] : [])
    }
    return client
  }

  /// Sends an option.
  public func sendOption(_ number: UInt32, _ payload: [UInt8] = []) throws {
    try socket.send(WireClient.option(number, payload))
  }

  public static func option(_ number: UInt32, _ payload: [UInt8] = []) -> [UInt8] {
    Array("IHAVEOPT".utf8) + wire(number, UInt32(payload.count)) + payload
  }

  /// Reads one option reply and checks its header.
  public func receiveOptionReply() throws -> OptionAnswer.Reply {
    var reader = WireReader(try socket.receive(20))
    guard try reader.integer(UInt64.self) == 0x0003_e889_0455_65a9 else {
      throw WireError.violation("an option reply's magic is wrong")
    }
    let option: UInt32 = try reader.integer()
    let type: UInt32 = try reader.integer()
    let count: UInt32 = try reader.integer()
    guard count <= 16_384 else {
      throw WireError.violation("an option reply of \(count) bytes")
    }
    return OptionAnswer.Reply(option: option, type: type, payload: try socket.receive(Int(count)))
  }

  /// Reads the replies to option `number` up to ACK or an error.
  public func receiveAnswer(to number: UInt32) throws -> OptionAnswer {
    var replies: [OptionAnswer.Reply] = []
    while replies.count < 10_000 {
      let reply = try receiveOptionReply()
      guard reply.option == number else {
        throw WireError.violation("a reply to option \(reply.option) instead of \(number)")
      }
      if reply.type == OptionAnswer.ack {
        guard reply.payload.isEmpty else { throw WireError.violation("an ACK with data") }
        return OptionAnswer(replies: replies, end: reply)
      }
      if reply.isError { return OptionAnswer(replies: replies, end: reply) }
      replies.append(reply)
    }
    throw WireError.violation("more than 10000 replies to one option")
  }

  /// Sends an option and reads its whole answer.
  @discardableResult
  public func ask(_ number: UInt32, _ payload: [UInt8] = []) throws -> OptionAnswer {
    try sendOption(number, payload)
    return try receiveAnswer(to: number)
  }

  public func negotiateStructuredReplies() throws {
    try ask(8).requireAck("STRUCTURED_REPLY")
    structuredReplies = true
  }

  public func negotiateExtendedHeaders() throws {
    try ask(11).requireAck("EXTENDED_HEADERS")
    extendedHeaders = true
  }

  /// The data of INFO and GO.
  public static func infoData(_ name: String, _ requests: [UInt16] = []) -> [UInt8] {
    counted(name) + wire(UInt16(requests.count)) + requests.flatMap { wire($0) }
  }

  /// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
  public static func metaData(_ name: String, _ queries: [String]) -> [UInt8] {
    counted(name) + wire(UInt32(queries.count)) + queries.flatMap { counted($0) }
  }

  /// Selects contexts and remembers their ids; returns the names that the server selected.
  @discardableResult
  public func setMetaContexts(_ export: String, _ queries: [String]) throws -> [String] {
    let answer = try ask(10, WireClient.metaData(export, queries))
    contextIDs = [:]
    try answer.requireAck("SET_META_CONTEXT")
    let contexts = try answer.contexts()
    for context in contexts {
      guard !contextIDs.values.contains(context.id) else {
        throw WireError.violation("two contexts with id \(context.id)")
      }
      contextIDs[context.name] = context.id
    }
    return contexts.map(\.name)
  }

  /// Enters by GO and returns what the server told.
  @discardableResult
  public func go(_ export: String = "", requests: [UInt16] = [3]) throws -> ExportFacts {
    let answer = try ask(7, WireClient.infoData(export, requests))
    try answer.requireAck("GO")
    let facts = try answer.facts()
    size = facts.size
    transmissionFlags = facts.flags
    return facts
  }

  /// Enters by EXPORT_NAME and returns the bytes behind size and flags.
  @discardableResult
  public func enterByName(_ export: String = "", expectsZeroes: Bool = false) throws -> [UInt8] {
    try sendOption(1, Array(export.utf8))
    var reader = WireReader(try socket.receive(10))
    size = try reader.integer()
    transmissionFlags = try reader.integer()
    return expectsZeroes ? try socket.receive(124) : []
  }
}
