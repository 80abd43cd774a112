// SPDX-License-Identifier: Apache-2.0
//
// The server's side of the fixed newstyle handshake as a machine over bytes.
// Spec: proto.md, "Handshake phase", "Fixed newstyle negotiation", "Option types".
// This file performs no I/O.

import BlockTypes

/// One handshake: bytes of the client in, bytes for the client and an outcome out.
///
/// The machine holds at most one option at a time; what it does not keep it drops as it comes.
/// It answers in order, also when the client sends several options without waiting.
public struct ServerHandshake: Sendable {
  /// Where the handshake stands.
  public enum Outcome: Hashable, Sendable {
    case negotiating
    /// Send the output as it is; everything after it is TLS. `continueOverTLS` when that is up.
    case startsTLS
    /// Send the output; requests follow.
    case ready(Negotiated)
    /// The client aborted: send the output, then close.
    case finished
    /// Close; there may be output of earlier options, which need not be sent.
    case hangUp(ProtocolViolation)
  }

  /// What the next bytes of the client belong to.
  enum Stage: Hashable, Sendable {
    case clientFlags
    case optionHeader
    case payload(OptionHeader)
    /// An option whose data is dropped; it is answered when none is left.
    case draining(OptionHeader, byteCountLeft: Int)
  }

  /// Longest option data that is kept: a name and the 65,535 information requests that fit a GO.
  static var keptPayloadByteCountMax: Int { 160 << 10 }
  /// Longest option data that is dropped politely; a client that announces more is cut off.
  static var drainedPayloadByteCountMax: Int { 32 << 20 }

  let exports: [ExportDescription]
  let limits: RequestLimits
  let listIsAllowed: Bool
  let tlsPolicy: TLSPolicy

  /// From now on each option but ABORT is answered with ERR_SHUTDOWN.
  public var isStopping = false
  public internal(set) var outcome = Outcome.negotiating

  var stage = Stage.clientFlags
  /// The bytes of the message that `stage` gathers, as far as they came.
  var gathered: [UInt8] = []
  var output: [UInt8] = []
  var optionCount = 0
  var isFixedNewstyle = false
  var sendsNoZeroes = false
  /// Simple until the client asks for more; extended takes precedence over structured.
  var framing = ReplyFraming.simple
  /// What the last SET_META_CONTEXT selected, and for which export.
  var selection: (exportIndex: Int, contexts: MetaContextSet)?
  /// What comes and goes is protected by TLS.
  var isSecure = false
  /// Why this client may not use any export; nil for those that may.
  var refusal: String?
  /// What this client may use, in the order of the exports.
  var access: [ExportAccess]

  /// Starts a handshake that offers `exports`, of which there is at least one.
  ///
  /// The first one also answers to the empty name.
  ///
  /// - Parameters:
  ///   - access: for each export, what this client may do without TLS; nil: all are open.
  ///   - refusal: why this client may use none of them, as the end of a sentence.
  public init(
    exports: [ExportDescription], limits: RequestLimits, listIsAllowed: Bool = true,
    tls: TLSPolicy = .off, access: [ExportAccess]? = nil, refusal: String? = nil
  ) {
    precondition(!exports.isEmpty, "a handshake without exports")
    precondition(access == nil || access?.count == exports.count, "an export has no access rule")
    self.access = access ?? Array(repeating: .open, count: exports.count)
    self.refusal = refusal
    self.exports = exports
    self.limits = limits
    self.listIsAllowed = listIsAllowed
    tlsPolicy = tls
  }

  /// The 18 bytes that the server sends first.
  ///
  /// - Spec: proto.md, "Newstyle negotiation": FIXED_NEWSTYLE and NO_ZEROES, no other flag.
  public mutating func start() -> [UInt8] {
    var greeting: [UInt8] = []
    greeting.appendBigEndian(Magic.greeting)
    greeting.appendBigEndian(Magic.option)
    greeting.appendBigEndian(UInt16(0b11))
    return greeting
  }

  /// Whether a message of the client has begun to arrive and is not whole.
  public var isMidMessage: Bool {
    switch stage {
    case .clientFlags, .optionHeader: !gathered.isEmpty
    case .payload, .draining: outcome == .negotiating
    }
  }

  /// Takes bytes of the client, in any portions, and returns how many were consumed.
  ///
  /// All of them are while the outcome is `negotiating`; the bytes that are left when it changes
  /// belong to the transmission phase, or to nobody.
  public mutating func receive(_ bytes: RawSpan) -> Int {
    var consumed = 0
    while consumed < bytes.byteCount, outcome == .negotiating {
      switch stage {
      case .clientFlags: consumed += gather(4, of: bytes, from: consumed)
      case .optionHeader: consumed += gather(OptionHeader.byteCount, of: bytes, from: consumed)
      case .payload(let header):
        consumed += gather(Int(header.payloadByteCount), of: bytes, from: consumed)
      case .draining(let header, let byteCountLeft):
        let dropped = min(byteCountLeft, bytes.byteCount - consumed)
        consumed += dropped
        drain(header, byteCountLeft: byteCountLeft - dropped)
      }
    }
    if outcome == .startsTLS, consumed < bytes.byteCount { hangUp(.plainTextBehindStartTLS) }
    return consumed
  }

  /// Returns what is to be sent, once.
  public mutating func takeOutput() -> [UInt8] {
    defer { output = [] }
    return output
  }

  /// Moves bytes to the message under way, which has `byteCount` of them, and acts on the last.
  private mutating func gather(_ byteCount: Int, of bytes: RawSpan, from start: Int) -> Int {
    let taken = min(byteCount - gathered.count, bytes.byteCount - start)
    for index in start..<start + taken { gathered.append(bytes.loadByte(at: index)) }
    if gathered.count == byteCount {
      let message = gathered
      gathered = []
      accept(message)
    }
    return taken
  }

  /// Acts on the complete message of the current stage.
  private mutating func accept(_ message: [UInt8]) {
    switch stage {
    case .clientFlags: acceptClientFlags(message)
    case .optionHeader:
      guard let header = OptionHeader(decoding: message) else { return hangUp(.badOptionMagic) }
      acceptHeader(header)
    case .payload(let header):
      stage = .optionHeader
      answer(header, payload: message)
    case .draining: preconditionFailure("a drained option was gathered")
    }
  }

  /// - Spec: proto.md, "Client flags": an unknown flag MUST end the connection.
  private mutating func acceptClientFlags(_ message: [UInt8]) {
    var reader = PayloadReader(message)
    guard let flags = reader.readInteger(UInt32.self) else {
      preconditionFailure("the client flags were not gathered")
    }
    guard flags & ~0b11 == 0 else { return hangUp(.unknownClientFlags(flags)) }
    isFixedNewstyle = flags & 0b01 != 0
    sendsNoZeroes = flags & 0b10 != 0
    stage = .optionHeader
  }

  /// Decides whether the data of an option is kept, dropped, or reason to close.
  private mutating func acceptHeader(_ header: OptionHeader) {
    let option = Option(rawValue: header.option)
    let byteCount = Int(header.payloadByteCount)
    // LIST is answered with a reply for each export, and counts as a question about each: thousands
    // of them in one packet would be answered with thousands of times as much.
    optionCount += option == .list ? exports.count : 1
    guard optionCount <= optionCountMax else {
      return hangUp(.tooManyOptions(max: optionCountMax))
    }
    guard isFixedNewstyle || option == .exportName else {
      return hangUp(.optionNeedsFixedNewstyle(option: header.option))
    }
    guard byteCount <= ServerHandshake.drainedPayloadByteCountMax,
      option != .exportName || byteCount <= ExportName.byteCountMax
    else {
      return hangUp(.optionTooLong(option: header.option, byteCount: header.payloadByteCount))
    }
    guard keepsPayload(of: option), byteCount <= ServerHandshake.keptPayloadByteCountMax else {
      return drain(header, byteCountLeft: byteCount)
    }
    guard byteCount > 0 else {
      stage = .optionHeader
      return answer(header, payload: [])
    }
    stage = .payload(header)
  }

  /// A client that walks a list asks a few options about each export.
  var optionCountMax: Int { limits.handshakeOptionsMax * exports.count }

  private mutating func drain(_ header: OptionHeader, byteCountLeft: Int) {
    guard byteCountLeft == 0 else {
      stage = .draining(header, byteCountLeft: byteCountLeft)
      return
    }
    stage = .optionHeader
    answerDrained(header)
  }

  mutating func hangUp(_ violation: ProtocolViolation) {
    outcome = .hangUp(violation)
  }

  mutating func reply(_ type: OptionReplyType, to header: OptionHeader, payload: [UInt8] = []) {
    output.appendOptionReply(to: header.option, type, payload: payload)
  }

  mutating func reply(_ error: OptionError, to header: OptionHeader) {
    reply(error.type, to: header, payload: Array(error.sentence.utf8))
  }
}
