// SPDX-License-Identifier: Apache-2.0
//
// From the bytes of a server to answers, in the transmission phase: headers, and data of READ.
// What chunks hold is in `ReplyDecoder+Chunks`. Spec: proto.md, "Simple reply message",
// "Structured reply chunk message"; the draft of extended headers, "Extended reply chunk message".
// This file performs no I/O.

import BlockTypes

/// Gathers the answers to requests in flight, in whatever order and portions they come.
///
/// Each length is checked against its request before its bytes are taken, so that memory stays
/// bounded by what was asked for. After a violation the decoder must not be used any more.
public struct ReplyDecoder: Sendable {
  /// A request without its complete answer.
  struct Pending: Sendable {
    let request: RequestHeader
    /// READ: what came, with zeroes in gaps that later chunks fill.
    var data: [UInt8] = []
    var coverage = ReadCoverage()
    var contentChunkCount = 0
    var contexts: [ContextExtents] = []
    var failure: ServerFailure?
    var hasPlainError = false
    var errorOffsetCount = 0

    var range: ByteRange {
      ByteRange(start: request.offset, end: request.offset + request.length)
    }
  }

  /// The header of a chunk, of either length.
  struct Chunk: Hashable, Sendable {
    let isDone: Bool
    let type: UInt16
    let cookie: UInt64
    let payloadByteCount: UInt64
  }

  /// What the next bytes belong to.
  enum Stage: Hashable, Sendable {
    /// The first 16 bytes, which all replies have.
    case header
    case restOfHeader(byteCount: Int)
    /// The offset in front of the data of an OFFSET_DATA chunk.
    case dataOffset(Chunk)
    /// Data of a READ that goes to `index` of the request's bytes.
    case data(cookie: UInt64, index: Int, left: Int, isDone: Bool)
    /// A payload that is looked at when it is complete.
    case payload(Chunk)
    /// A payload that is not looked at.
    case dropped(byteCount: Int)
  }

  /// Extents of one chunk: what proto.md recommends as the most.
  static var extentsMax: Int { 1 << 20 }
  /// ERROR_OFFSET chunks of one reply.
  static var errorOffsetsMax: Int { 64 }
  /// Payload of an error chunk of a type that is not known.
  static var unknownErrorByteCountMax: UInt64 { 65_536 }

  public let mode: ProtocolMode
  /// The contexts that each BLOCK_STATUS reports.
  public let contextIDs: [UInt32]

  var stage = Stage.header
  var gathered: [UInt8] = []
  var pending: [UInt64: Pending] = [:]
  var answers: [ServerAnswer] = []
  /// Failed requests for BLOCK_STATUS, oldest first, with the errors that may still come for each.
  var afterErrors: [(cookie: UInt64, countLeft: Int)] = []

  /// Failed requests that are remembered; a server answers the ones that it has read in turn.
  static var afterErrorsMax: Int { 64 }

  public init(mode: ProtocolMode, contextIDs: [UInt32]) {
    self.mode = mode
    self.contextIDs = contextIDs
  }

  /// Requests without a complete answer.
  public var pendingCount: Int { pending.count }

  /// Announces a request that is being sent.
  ///
  /// Traps when its cookie is in use, when its range passes 2^63, or when a READ is so long that
  /// its data cannot be held: the client chooses them.
  public mutating func expect(_ request: RequestHeader) {
    precondition(pending[request.cookie] == nil, "a cookie is used twice")
    precondition(
      request.offset <= UInt64(Int64.max) && request.length <= UInt64(Int64.max),
      "a request passes 2^63")
    precondition(
      request.command != Command.read.rawValue || request.length <= UInt64(UInt32.max),
      "a READ is longer than 32 bits")
    pending[request.cookie] = Pending(request: request)
  }

  /// Takes bytes of the server.
  public mutating func receive(_ bytes: ArraySlice<UInt8>) throws(ClientViolation) {
    var rest = bytes
    while !rest.isEmpty {
      switch stage {
      case .header:
        if gather(16, of: &rest) { try acceptHeader() }
      case .restOfHeader(let byteCount):
        if gather(byteCount, of: &rest) { try acceptChunkHeader() }
      case .dataOffset(let chunk):
        if gather(8, of: &rest) { try acceptDataOffset(chunk) }
      case .payload(let chunk):
        // Checked when the header came: a few MiB at most.
        if gather(Int(chunk.payloadByteCount), of: &rest) {
          let payload = takeGathered()
          stage = .header
          try accept(chunk, payload)
        }
      case .dropped(let byteCount):
        if gather(byteCount, of: &rest) {
          gathered = []
          stage = .header
        }
      case .data(let cookie, let index, let left, let isDone):
        let taken = min(left, rest.count)
        place(rest.prefix(taken), at: index, of: cookie)
        rest = rest.dropFirst(taken)
        stage = .data(cookie: cookie, index: index + taken, left: left - taken, isDone: isDone)
        if taken == left {
          stage = .header
          if isDone { try finish(cookie) }
        }
      }
    }
  }

  /// Returns the answers that are complete, once.
  public mutating func takeAnswers() -> [ServerAnswer] {
    defer { answers = [] }
    return answers
  }

  /// Moves bytes to the message under way and says whether all of its `byteCount` are there.
  private mutating func gather(_ byteCount: Int, of rest: inout ArraySlice<UInt8>) -> Bool {
    let taken = min(byteCount - gathered.count, rest.count)
    gathered.append(contentsOf: rest.prefix(taken))
    rest = rest.dropFirst(taken)
    return gathered.count == byteCount
  }

  mutating func takeGathered() -> [UInt8] {
    defer { gathered = [] }
    return gathered
  }

  private mutating func acceptHeader() throws(ClientViolation) {
    let magic = gathered.loadBigEndian(UInt32.self, at: 0)
    let cookie = gathered.loadBigEndian(UInt64.self, at: 8)
    switch magic {
    case Magic.simpleReply:
      let number = gathered.loadBigEndian(UInt32.self, at: 4)
      gathered = []
      stage = .header
      try acceptSimple(number, cookie)
    case Magic.structuredReply:
      guard mode == .structured else { throw .wrongReplyKind(cookie: cookie) }
      stage = .restOfHeader(byteCount: 20)
    case Magic.extendedReply:
      guard mode == .extended else { throw .wrongReplyKind(cookie: cookie) }
      stage = .restOfHeader(byteCount: 32)
    default: throw .badReplyMagic(magic)
    }
  }

  /// - Spec: proto.md, "Structured replies": with them, READ and what carries a payload MUST be
  ///   answered with chunks; the draft of extended headers forbids simple replies at all.
  private mutating func acceptSimple(
    _ number: UInt32, _ cookie: UInt64
  ) throws(ClientViolation) {
    guard let entry = pending[cookie] else { throw .unknownCookie(cookie) }
    let command = Command(rawValue: entry.request.command)
    guard mode < .extended, entry.contentChunkCount == 0, entry.failure == nil else {
      throw .wrongReplyKind(cookie: cookie)
    }
    if mode == .structured {
      guard command != .read, command != .blockStatus || number != 0 else {
        throw .wrongReplyKind(cookie: cookie)
      }
    }
    if number != 0 { pending[cookie]?.failure = ServerFailure(number: number) }
    guard number == 0, command == .read, entry.request.length > 0 else {
      return try finish(cookie)
    }
    guard pending[cookie]?.coverage.add(entry.range) == nil else {
      throw .overlappingChunks(cookie: cookie)
    }
    stage = .data(cookie: cookie, index: 0, left: Int(entry.request.length), isDone: true)
  }

  /// Puts data of a READ where it belongs. No byte is placed twice, so a part in the middle always
  /// lies within the zeroes of one gap.
  mutating func place(_ bytes: ArraySlice<UInt8>, at index: Int, of cookie: UInt64) {
    guard let count = pending[cookie]?.data.count else { return }
    if index < count {
      pending[cookie]?.data.replaceSubrange(index..<index + bytes.count, with: bytes)
      return
    }
    if index > count {
      pending[cookie]?.data.append(contentsOf: repeatElement(0, count: index - count))
    }
    pending[cookie]?.data.append(contentsOf: bytes)
  }

  /// Ends a request: its last chunk has come.
  mutating func finish(_ cookie: UInt64) throws(ClientViolation) {
    guard let entry = pending.removeValue(forKey: cookie) else {
      preconditionFailure("a request that is not pending is finished")
    }
    answers.append(ServerAnswer(cookie: cookie, outcome: try outcome(of: entry)))
    if entry.failure != nil { expectFurtherErrors(entry) }
  }

  /// QEMU 7.2 answers a BLOCK_STATUS that fails with one error chunk for each context, and calls
  /// every one of them the last of its reply. Nothing is lost by taking them all: the request has
  /// failed, no cookie is used twice, and an error changes nothing that was told.
  ///
  /// - Spec: proto.md, "Structured replies": DONE MUST be sent last; "Terminating the transmission
  ///   phase": either side MAY end the connection for such a thing, and need not.
  private mutating func expectFurtherErrors(_ entry: Pending) {
    guard mode == .structured, entry.request.command == Command.blockStatus.rawValue else { return }
    let countLeft = contextIDs.count - entry.contexts.count - 1
    guard countLeft > 0 else { return }
    if afterErrors.count == Self.afterErrorsMax { afterErrors.removeFirst() }
    afterErrors.append((cookie: entry.request.cookie, countLeft: countLeft))
  }

  /// Takes note of an error chunk for a request that has failed already; false when it is none of
  /// those that may come.
  mutating func takeFurtherError(_ chunk: Chunk) -> Bool {
    guard chunk.type == StructuredReply.ChunkType.error.rawValue, chunk.isDone,
      (6...UInt64(6 + ExportName.byteCountMax)).contains(chunk.payloadByteCount),
      let index = afterErrors.firstIndex(where: { $0.cookie == chunk.cookie })
    else { return false }
    afterErrors[index].countLeft -= 1
    if afterErrors[index].countLeft == 0 { afterErrors.remove(at: index) }
    return true
  }

  private func outcome(of entry: Pending) throws(ClientViolation) -> ServerAnswer.Outcome {
    if let failure = entry.failure { return .failed(failure) }
    switch Command(rawValue: entry.request.command) {
    case .read:
      guard entry.coverage.byteCount == entry.request.length else {
        throw .missingData(cookie: entry.request.cookie)
      }
      return .data(entry.data)
    case .blockStatus:
      var ordered: [ContextExtents] = []
      for id in contextIDs {
        guard let extents = entry.contexts.first(where: { $0.contextID == id }) else {
          throw .missingContext(id: id)
        }
        ordered.append(extents)
      }
      return .status(ordered)
    case .write, .disconnect, .flush, .trim, .cache, .writeZeroes, .resize, nil: return .done
    }
  }
}
