// SPDX-License-Identifier: Apache-2.0
//
// The client's side of the handshake as a machine over bytes: what comes from the server.
// What is sent, and why, is in `ClientHandshake+Steps`. Spec: proto.md, "Handshake phase",
// "Fixed newstyle negotiation"; "Oldstyle negotiation". This file performs no I/O.

import BlockTypes

/// One handshake: bytes of the server in, bytes for the server and an outcome out.
///
/// The best that both sides can is agreed on: extended headers, else structured replies, else
/// simple ones; GO, else EXPORT_NAME; newstyle, else what an oldstyle greeting says. No answer is
/// waited for twice, and every length is checked before its bytes are taken.
public struct ClientHandshake: Sendable {
  /// Where the handshake stands.
  public enum Outcome: Hashable, Sendable {
    case negotiating
    /// The server agreed to TLS: wrap the connection, then call `continueEncrypted`.
    case startTLS
    /// Requests follow.
    case ready(ClientSession)
    /// All that the server told about its exports. Send the output, then close.
    case listed([ExportDetails], mode: ProtocolMode)
    /// The server refused what was asked for, or lacks it; a sentence with the server's words.
    case refused(String)
    /// TLS is required, and the server has none; nothing but STARTTLS was said.
    case insecure(String)
    case violated(ClientViolation)
  }

  /// What the next bytes of the server belong to.
  enum Stage: Hashable, Sendable {
    case greeting
    case oldstyleGreeting
    case serverFlags
    case replyHeader
    case replyPayload(type: UInt32, byteCount: Int)
    case exportNameAnswer
    case zeroes(byteCountLeft: Int)
  }

  /// Longest data of one option reply; names and texts have at most 4096 bytes each.
  static var replyByteCountMax: UInt32 { 65_536 }
  /// Bytes of a whole handshake; 10,000 exports with long descriptions fit.
  static var handshakeByteCountMax: Int { 64 << 20 }
  /// Exports of one list.
  public static var exportsMax: Int { 10_000 }
  /// Contexts of one export.
  public static var contextsMax: Int { 64 }
  /// Replies to one INFO or GO.
  static var infosMax: Int { 64 }

  let goal: ClientGoal
  public internal(set) var outcome = Outcome.negotiating

  var stage = Stage.greeting
  /// The bytes of the message that `stage` gathers, as far as they came.
  var gathered: [UInt8] = []
  var output: [UInt8] = []
  var receivedByteCount = 0
  var replyCount = 0

  var step = Step.greeting
  var mode = ProtocolMode.oldstyle
  public internal(set) var isEncrypted = false
  var isFixedNewstyle = false
  var sendsNoZeroes = false
  /// The export under way, its size once it was told, and the list so far.
  var details = ExportDetails(name: "")
  var contextIDs: [UInt32] = []
  /// The names of the last SET_META_CONTEXT.
  var wantedContexts: [String] = []
  var list: [ExportDetails] = []
  var listIndex = 0
  var serverHasInfo = true

  /// Traps when the goal names contexts beyond `contextsMax`, or strings that the protocol forbids.
  public init(_ goal: ClientGoal) {
    if case .enter(let name) = goal.aim {
      precondition(
        ExportName.isWellFormed(name.utf8), "an export's name is too long or holds NUL")
    }
    if case .named(let names) = goal.contexts {
      precondition(names.count <= Self.contextsMax, "too many contexts are asked for")
      for name in names {
        precondition(
          !name.isEmpty && ExportName.isWellFormed(name.utf8),
          "a context's name is empty, too long or holds NUL")
      }
    }
    self.goal = goal
  }

  /// Takes bytes of the server, in any portions, and returns how many were consumed.
  ///
  /// What is left when the outcome changes belongs to the transmission phase.
  public mutating func receive(_ bytes: ArraySlice<UInt8>) -> Int {
    var rest = bytes
    while !rest.isEmpty, outcome == .negotiating {
      switch stage {
      case .greeting: gather(16, of: &rest)
      case .oldstyleGreeting: gather(136, of: &rest)
      case .serverFlags: gather(2, of: &rest)
      case .replyHeader: gather(20, of: &rest)
      case .replyPayload(_, let byteCount): gather(byteCount, of: &rest)
      case .exportNameAnswer: gather(10, of: &rest)
      case .zeroes(let left):
        let dropped = min(left, rest.count)
        rest = rest.dropFirst(dropped)
        stage = .zeroes(byteCountLeft: left - dropped)
        if left == dropped { enterTransmission() }
      }
    }
    let consumed = bytes.count - rest.count
    receivedByteCount += consumed
    if receivedByteCount > Self.handshakeByteCountMax, outcome == .negotiating {
      outcome = .violated(.handshakeTooLong(byteCountMax: Self.handshakeByteCountMax))
    }
    if outcome == .startTLS, !rest.isEmpty {
      outcome = .violated(.plaintextBehindTLS(byteCount: rest.count))
    }
    return consumed
  }

  /// Returns what is to be sent, once.
  public mutating func takeOutput() -> [UInt8] {
    defer { output = [] }
    return output
  }

  /// Says that the server closed the connection. The outcome is no longer `negotiating`.
  public mutating func end() {
    guard outcome == .negotiating else { return }
    if case .exportNameAnswer = stage, gathered.isEmpty {
      outcome = .refused("the server has no such export, or does not give it to this client")
    } else {
      outcome = .refused("the server closed the connection during the handshake")
    }
  }

  /// Goes on inside TLS. Nothing that was said in clear counts any more.
  public mutating func continueEncrypted() {
    precondition(outcome == .startTLS, "TLS was not agreed on")
    isEncrypted = true
    outcome = .negotiating
    advance()
  }

  /// Moves bytes to the message under way, which has `byteCount` of them, and acts on the last.
  private mutating func gather(_ byteCount: Int, of rest: inout ArraySlice<UInt8>) {
    let taken = min(byteCount - gathered.count, rest.count)
    gathered.append(contentsOf: rest.prefix(taken))
    rest = rest.dropFirst(taken)
    guard gathered.count == byteCount else { return }
    let message = gathered
    gathered = []
    do throws(ClientViolation) {
      try accept(message)
    } catch {
      outcome = .violated(error)
    }
  }

  private mutating func accept(_ message: [UInt8]) throws(ClientViolation) {
    switch stage {
    case .greeting: try acceptGreeting(message)
    case .oldstyleGreeting: try acceptOldstyle(message)
    case .serverFlags: acceptServerFlags(message)
    case .replyHeader: try acceptReplyHeader(message)
    case .replyPayload(let type, _):
      stage = .replyHeader
      try acceptReply(type, message)
    case .exportNameAnswer: try acceptExportName(message)
    case .zeroes: preconditionFailure("zeroes were gathered")
    }
  }

  private mutating func acceptGreeting(_ message: [UInt8]) throws(ClientViolation) {
    guard message.loadBigEndian(UInt64.self, at: 0) == Magic.greeting else { throw .badGreeting }
    switch message.loadBigEndian(UInt64.self, at: 8) {
    case Magic.option: stage = .serverFlags
    case Magic.oldstyle: stage = .oldstyleGreeting
    default: throw .unknownSecondMagic
    }
  }

  /// - Spec: proto.md, "Newstyle negotiation": a client ignores flags that it does not know.
  private mutating func acceptServerFlags(_ message: [UInt8]) {
    let flags = message.loadBigEndian(UInt16.self, at: 0)
    isFixedNewstyle = flags & 0b01 != 0
    sendsNoZeroes = flags & 0b10 != 0
    output.appendBigEndian(UInt32(flags & 0b11))
    mode = isFixedNewstyle ? .simple : .exportName
    stage = .replyHeader
    advance()
  }

  private mutating func acceptReplyHeader(_ message: [UInt8]) throws(ClientViolation) {
    guard message.loadBigEndian(UInt64.self, at: 0) == Magic.optionReply else {
      throw .badOptionReplyMagic
    }
    let answered = message.loadBigEndian(UInt32.self, at: 8)
    let type = message.loadBigEndian(UInt32.self, at: 12)
    let byteCount = message.loadBigEndian(UInt32.self, at: 16)
    let sent = optionNumber
    guard answered == sent else { throw .replyToOtherOption(sent: sent, answered: answered) }
    guard byteCount <= Self.replyByteCountMax else {
      throw .optionReplyTooLong(option: sent, byteCount: byteCount)
    }
    replyCount += 1
    guard replyCount <= replyCountMax else {
      throw .tooManyOptionReplies(option: sent, max: replyCountMax)
    }
    if byteCount == 0 { return try acceptReply(type, []) }
    stage = .replyPayload(type: type, byteCount: Int(byteCount))
  }

  /// Replies that the option under way may get, the last one included.
  private var replyCountMax: Int {
    switch step {
    case .list: Self.exportsMax + 1
    case .listContexts, .setContexts: Self.contextsMax + 1
    case .info, .go: Self.infosMax + 1
    case .greeting, .startTLS, .extendedHeaders, .structuredReplies, .exportName, .done: 1
    }
  }

  func refuse(_ sentence: String) -> Outcome { .refused(sentence) }
}
