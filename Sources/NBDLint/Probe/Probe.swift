// SPDX-License-Identifier: Apache-2.0
//
// A client that can be right, and can be wrong on purpose: the handshake.
// Spec: proto.md, "Handshake phase". This file performs socket I/O.

import TLS

/// How requests and replies look.
enum ReplyStyle: String, Sendable, CaseIterable {
  case simple
  case structured
  case extended
}

/// One connection of a check. Whatever the server sends is judged, and a breach ends the check.
final class Probe {
  let socket: ProbeSocket
  /// The 16 bits of the greeting.
  private(set) var handshakeFlags: UInt16 = 0
  var style = ReplyStyle.simple
  /// Selected contexts by name.
  private(set) var contextIDs: [String: UInt32] = [:]
  /// What the server told on entry.
  private(set) var size: UInt64 = 0
  private(set) var flags: UInt16 = 0
  /// The sizes that were agreed on; nil when the defaults hold.
  private(set) var blockSizes: ExportFacts.BlockSizes?

  // Kept by Probe+Requests.swift.
  var nextCookie: UInt64 = 0x1000
  var pending: [UInt64: Request] = [:]
  var partial: [UInt64: RequestOutcome] = [:]
  var finished: [UInt64: RequestOutcome] = [:]
  /// How many contexts a reply must tell of; nil: all that were selected.
  var expectedContexts: Int?
  /// Where the text leaves behaviour open, the contents of replies are not judged.
  var acceptsAnyReply = false

  /// The most bytes of one option reply.
  static let replyByteCountMax: UInt32 = 64 << 10
  /// The most replies to one option.
  static let replyCountMax = 10_000

  /// What is waited for first.
  static let greetingText = "a greeting of 18 bytes"

  init(_ socket: ProbeSocket) { self.socket = socket }

  func has(_ flag: UInt16) -> Bool { flags & flag != 0 }

  /// Requests must be multiples of this.
  var blockByteCount: Int { max(Int(blockSizes?.minimum ?? 1), 1) }

  /// What READ and WRITE may carry at most.
  var payloadByteCountMax: Int { Int(min(blockSizes?.maximum ?? (32 << 20), 64 << 20)) }

  /// Reads the greeting and answers with `flags`, by default with those that were offered.
  func greet(flags: UInt32? = nil) throws(LintStop) {
    var reader = FieldReader(try socket.receive(18, Probe.greetingText), of: "the greeting")
    let magic = try reader.integer(UInt64.self)
    let style = try reader.integer(UInt64.self)
    try demand(
      magic == ProbeMagic.greeting && style == ProbeMagic.option, "NBDMAGIC and IHAVEOPT",
      got: hexadecimal(wire(magic, style)))
    handshakeFlags = try reader.integer()
    try socket.send(wire(flags ?? UInt32(handshakeFlags & 3)))
  }

  /// Begins TLS; does nothing without a plan for it.
  func startTLS(_ plan: TLSClientPlan?) throws(LintStop) {
    guard let plan else { return }
    try ask(Option.startTLS).demandAck("STARTTLS")
    try socket.secure(plan)
  }

  static func option(_ number: UInt32, _ payload: [UInt8] = []) -> [UInt8] {
    wire(ProbeMagic.option, number, UInt32(payload.count)) + payload
  }

  func sendOption(_ number: UInt32, _ payload: [UInt8] = []) throws(LintStop) {
    try socket.send(Probe.option(number, payload))
  }

  /// Reads one option reply and judges its header.
  func receiveOptionReply(to number: UInt32? = nil) throws(LintStop) -> OptionAnswer.Part {
    let what = number.map { "a reply to option \($0)" } ?? "an option reply"
    let header = try socket.receive(20, what)
    var reader = FieldReader(header, of: "an option reply")
    try demand(
      try reader.integer(UInt64.self) == ProbeMagic.optionReply, "an option reply's magic",
      got: hexadecimal(header))
    let option = try reader.integer(UInt32.self)
    let type = try reader.integer(UInt32.self)
    let count = try reader.integer(UInt32.self)
    try demand(
      count <= Probe.replyByteCountMax, "an option reply of a bounded size", got: "\(count) bytes")
    let payload = try socket.receive(Int(count), "\(count) bytes of an option reply")
    return OptionAnswer.Part(option: option, type: type, payload: payload)
  }

  /// Reads the replies to option `number` up to ACK or an error.
  func receiveAnswer(to number: UInt32) throws(LintStop) -> OptionAnswer {
    var parts: [OptionAnswer.Part] = []
    for _ in 0..<Probe.replyCountMax {
      let part = try receiveOptionReply(to: number)
      try demand(
        part.option == number, "a reply to option \(number)", got: "one to \(part.option)")
      if part.type == Reply.ack {
        try demand(
          part.payload.isEmpty, "an ACK without data", got: "\(part.payload.count) bytes")
        return OptionAnswer(parts: parts, end: part)
      }
      if part.isError { return OptionAnswer(parts: parts, end: part) }
      parts.append(part)
    }
    throw .broken(
      expected: "an end of the answer to option \(number)",
      got: "\(Probe.replyCountMax) replies")
  }

  /// Sends an option and reads its whole answer.
  @discardableResult
  func ask(_ number: UInt32, _ payload: [UInt8] = []) throws(LintStop) -> OptionAnswer {
    try sendOption(number, payload)
    return try receiveAnswer(to: number)
  }

  /// Agrees on a style of replies; ends the check without a verdict where it is not offered.
  func negotiate(_ style: ReplyStyle) throws(LintStop) {
    switch style {
    case .simple: return
    case .structured: try agree(on: Option.structuredReply, "structured replies")
    case .extended: try agree(on: Option.extendedHeaders, "extended headers")
    }
    self.style = style
  }

  private func agree(on option: UInt32, _ what: String) throws(LintStop) {
    let answer = try ask(option)
    switch answer.type {
    case Reply.ack: return
    case Reply.unsup, Reply.policy, Reply.platform:
      throw .skipped("the server does not offer \(what)")
    case Reply.tlsRequired: throw .skipped("the server wants TLS first")
    default: throw .broken(expected: "ACK or ERR_UNSUP to a request of \(what)", got: answer.text)
    }
  }

  /// The data of INFO and GO.
  static func infoData(_ name: String, _ requests: [UInt16] = []) -> [UInt8] {
    var bytes = counted(name) + wire(UInt16(requests.count))
    for request in requests { bytes += wire(request) }
    return bytes
  }

  /// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
  static func metaData(_ name: String, _ queries: [String]) -> [UInt8] {
    var bytes = counted(name) + wire(UInt32(queries.count))
    for query in queries { bytes += counted(query) }
    return bytes
  }

  /// Asks for contexts and notes their ids; returns the names that the server selected.
  @discardableResult
  func setContexts(_ queries: [String], of export: String) throws(LintStop) -> [String] {
    let answer = try ask(Option.setMeta, Probe.metaData(export, queries))
    contextIDs = [:]
    try need(answer.type != Reply.unsup, "the server knows no meta contexts")
    try answer.demandAck("SET_META_CONTEXT")
    let contexts = try answer.contexts()
    for context in contexts {
      try demand(
        !contextIDs.values.contains(context.id) && contextIDs[context.name] == nil,
        "each context once, with an id of its own",
        got: "\(context.name) with id \(context.id) again")
      contextIDs[context.name] = context.id
    }
    return contexts.map(\.name)
  }

  /// Selects contexts; ends the check without a verdict where one of them is not offered.
  func select(_ contexts: [String], of export: String) throws(LintStop) {
    let selected = try setContexts(contexts, of: export)
    for context in contexts {
      try need(selected.contains(context), "the server does not offer \(context)")
    }
  }

  /// Enters by GO, and by EXPORT_NAME where GO is not known.
  func enter(_ export: String, blockSizes: Bool = true) throws(LintStop) {
    let answer = try ask(Option.go, Probe.infoData(export, blockSizes ? [Info.blockSize] : []))
    switch answer.type {
    case Reply.ack: try note(try answer.facts(), agreesOnBlockSizes: blockSizes)
    case Reply.unsup: try enterByName(export)
    case Reply.tlsRequired: throw .skipped("the server wants TLS first")
    case Reply.blockSizeRequired where !blockSizes:
      throw .skipped("the server lets nobody in who does not ask for block sizes")
    default: throw .broken(expected: "ACK to GO of '\(export)'", got: answer.text)
    }
  }

  /// Enters after something that the server had to refuse or to skip, and blames that when it does
  /// not work.
  func demandEntry(_ export: String) throws(LintStop) {
    do throws(LintStop) { try enter(export) } catch {
      if case .skipped = error { throw error }
      let text = LintOutcome(error, deadlineSeconds: socket.deadlineSeconds).text
      throw .broken(expected: "the option after that to be understood", got: text)
    }
  }

  /// Keeps what GO told.
  func note(_ facts: ExportFacts, agreesOnBlockSizes: Bool) throws(LintStop) {
    size = facts.size
    flags = facts.flags
    blockSizes = agreesOnBlockSizes ? facts.blockSizes : nil
  }

  /// Enters by EXPORT_NAME; with or without the zeroes as it was agreed.
  func enterByName(_ export: String, expectsZeroes: Bool = false) throws(LintStop) {
    try sendOption(Option.exportName, Array(export.utf8))
    let count = expectsZeroes ? 134 : 10
    let what = "an answer of \(count) bytes to EXPORT_NAME"
    var reader = FieldReader(try socket.receive(count, what), of: "the answer to EXPORT_NAME")
    size = try reader.integer()
    flags = try reader.integer()
    try demand(
      reader.rest().allSatisfy { $0 == 0 }, "124 zeroes after EXPORT_NAME", got: "other bytes")
  }

  /// Ends the check unless the server closes now, having said nothing more.
  func demandEnd(after what: String) throws(LintStop) {
    let rest = try socket.receiveUntilEnd("the end of the connection after \(what)")
    try demand(
      rest.isEmpty, "nothing but the end of the connection after \(what)",
      got: "\(rest.count) bytes: \(hexadecimal(rest))")
  }

  /// Sends something to which the server may object by closing: the loss of the connection while
  /// sending is no fault.
  func sendHostile(_ bytes: [UInt8]) throws(LintStop) {
    do throws(LintStop) { try socket.send(bytes) } catch {
      guard case .ended = error else { throw error }
    }
  }
}
