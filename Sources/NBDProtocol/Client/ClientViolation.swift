// SPDX-License-Identifier: Apache-2.0
//
// What a server did that the protocol forbids. Spec: proto.md, "Handshake phase", "Transmission
// phase". This file performs no I/O.

/// Why a client ends a connection: after any of these the stream has no meaning any more.
///
/// No description repeats bytes of the server as they came.
public enum ClientViolation: Error, Hashable, Sendable {
  // Handshake
  case badGreeting
  case unknownSecondMagic
  case badOptionReplyMagic
  case replyToOtherOption(sent: UInt32, answered: UInt32)
  case optionReplyTooLong(option: UInt32, byteCount: UInt32)
  case tooManyOptionReplies(option: UInt32, max: Int)
  case handshakeTooLong(byteCountMax: Int)
  case unexpectedOptionReply(option: UInt32, type: UInt32)
  case malformedOptionReply(option: UInt32, what: String)
  /// Neither an acknowledgement nor an error came with what the option is for.
  case incompleteAnswer(option: UInt32, missing: String)
  case sizeTooLarge(byteCount: UInt64)
  case flagsMissing
  case badBlockSizes(minimum: UInt32, preferred: UInt32, maximum: UInt32)
  case contextNotAskedFor(shownName: String)
  case contextTwice(shownName: String)
  /// Bytes came in clear behind the answer to STARTTLS (the class of CVE-2021-3716).
  case plaintextBehindTLS(byteCount: Int)

  // Transmission
  case badReplyMagic(UInt32)
  case unknownCookie(UInt64)
  /// A simple reply where only chunks are allowed, or a chunk where only simple replies are.
  case wrongReplyKind(cookie: UInt64)
  case unknownChunkFlags(UInt16)
  case unknownChunkType(UInt16)
  /// A chunk that cannot answer the command that was sent.
  case chunkOfOtherCommand(type: UInt16, command: UInt16)
  case badChunkLength(type: UInt16, byteCount: UInt64)
  case echoedOffset(sent: UInt64, answered: UInt64)
  case chunkOutsideRequest(cookie: UInt64)
  case overlappingChunks(cookie: UInt64)
  case tooScatteredChunks(cookie: UInt64, piecesMax: Int)
  case missingData(cookie: UInt64)
  case emptyExtent(cookie: UInt64)
  case tooManyExtents(cookie: UInt64)
  case extentOutsideRequest(cookie: UInt64)
  case unknownContext(id: UInt32)
  case repeatedContext(id: UInt32)
  case missingContext(id: UInt32)
  case errorWithoutNumber(cookie: UInt64)
  case secondError(cookie: UInt64)
  case noneWithoutDone(cookie: UInt64)
  case moreThanOneContentChunk(cookie: UInt64)
}

extension ClientViolation: CustomStringConvertible {
  public var description: String {
    switch self {
    case .badGreeting: "what answers is no NBD server"
    case .unknownSecondMagic: "the server speaks an unknown style of NBD"
    case .badOptionReplyMagic: "an option reply did not start with its magic number"
    case .replyToOtherOption(let sent, let answered):
      "the server answered option \(answered) when \(sent) was sent"
    case .optionReplyTooLong(let option, let byteCount):
      "the reply to option \(option) announced \(byteCount) bytes"
    case .tooManyOptionReplies(let option, let max):
      "option \(option) got more than \(max) replies"
    case .handshakeTooLong(let max): "the handshake took more than \(max) bytes"
    case .unexpectedOptionReply(let option, let type):
      "option \(option) got a reply of type \(type), which does not belong to it"
    case .malformedOptionReply(let option, let what): "the reply to option \(option): \(what)"
    case .incompleteAnswer(let option, let missing):
      "option \(option) was acknowledged without \(missing)"
    case .sizeTooLarge(let byteCount): "the export claims \(byteCount) bytes, 2^63 or more"
    case .flagsMissing: "the server sent no transmission flags"
    case .badBlockSizes(let minimum, let preferred, let maximum):
      "the block sizes \(minimum), \(preferred), \(maximum) contradict each other"
    case .contextNotAskedFor(let name): "the context \"\(name)\" was not asked for"
    case .contextTwice(let name): "the context \"\(name)\", or its id, came twice"
    case .plaintextBehindTLS(let byteCount):
      "\(byteCount) bytes in clear followed the answer to STARTTLS"
    case .badReplyMagic(let magic): "a reply began with 0x\(String(magic, radix: 16))"
    case .unknownCookie(let cookie): "a reply named the unknown request \(cookie)"
    case .wrongReplyKind(let cookie): "request \(cookie) got a reply of a kind not negotiated"
    case .unknownChunkFlags(let flags): "a chunk had flags 0x\(String(flags, radix: 16))"
    case .unknownChunkType(let type): "a chunk was of unknown type \(type)"
    case .chunkOfOtherCommand(let type, let command):
      "a chunk of type \(type) answered command \(command)"
    case .badChunkLength(let type, let byteCount):
      "a chunk of type \(type) announced \(byteCount) bytes"
    case .echoedOffset(let sent, let answered):
      "a request at byte \(sent) was answered for byte \(answered)"
    case .chunkOutsideRequest(let cookie): "a chunk lies outside request \(cookie)"
    case .overlappingChunks(let cookie): "chunks of request \(cookie) overlap"
    case .tooScatteredChunks(let cookie, let max):
      "chunks of request \(cookie) leave more than \(max) pieces"
    case .missingData(let cookie): "request \(cookie) was ended before all its data came"
    case .emptyExtent(let cookie): "request \(cookie) got an extent of no bytes"
    case .tooManyExtents(let cookie): "request \(cookie) got more extents than it allows"
    case .extentOutsideRequest(let cookie): "request \(cookie) got an extent beyond its end"
    case .unknownContext(let id): "an answer named the unknown context \(id)"
    case .repeatedContext(let id): "context \(id) was reported twice for one request"
    case .missingContext(let id): "context \(id) was not reported"
    case .errorWithoutNumber(let cookie): "request \(cookie) failed with error 0"
    case .secondError(let cookie): "request \(cookie) failed in too many ways"
    case .noneWithoutDone(let cookie): "an empty chunk did not end request \(cookie)"
    case .moreThanOneContentChunk(let cookie): "request \(cookie) was fragmented against DF"
    }
  }
}
