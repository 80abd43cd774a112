// SPDX-License-Identifier: Apache-2.0
//
// What each answer of a server means to a client. Spec: proto.md, "Option reply types",
// "NBD_OPT_GO", "NBD_OPT_LIST", "NBD_OPT_SET_META_CONTEXT"; "Oldstyle negotiation".
// This file performs no I/O.

import BlockTypes

extension ClientHandshake {
  /// Acts on one option reply.
  mutating func acceptReply(_ type: UInt32, _ payload: [UInt8]) throws(ClientViolation) {
    if type & 0x8000_0000 != 0 { return try acceptError(type, payload) }
    switch (OptionReplyType(rawValue: type), step) {
    case (.ack, _): try acceptAcknowledgement(payload)
    case (.server, .list): try acceptListed(payload)
    case (.info, .info), (.info, .go): try acceptInfo(payload)
    case (.metaContext, .listContexts), (.metaContext, .setContexts):
      try acceptContext(payload)
    default: throw .unexpectedOptionReply(option: optionNumber, type: type)
    }
  }

  private mutating func acceptAcknowledgement(_ payload: [UInt8]) throws(ClientViolation) {
    guard payload.isEmpty else { throw malformed("an acknowledgement with data") }
    switch step {
    case .startTLS:
      outcome = .startTLS
      return
    case .extendedHeaders: mode = .extended
    case .structuredReplies: mode = .structured
    case .info, .go:
      guard details.byteCount != nil else {
        throw .incompleteAnswer(option: optionNumber, missing: "the export's size")
      }
    case .greeting, .list, .listContexts, .setContexts, .exportName, .done: break
    }
    advance()
  }

  /// An option that a server lacks is done without; any other refusal ends the handshake.
  private mutating func acceptError(_ type: UInt32, _ payload: [UInt8]) throws(ClientViolation) {
    let error = OptionReplyType(rawValue: type)
    let words = payload.isEmpty ? "" : ": " + ExportName.shown(payload)
    let reason = ClientHandshake.text(of: type) + words
    // While listing, an export that needs TLS is one of several (SELECTIVETLS).
    if error == .errShutdown || (error == .errTLSReqd && step != .info), step != .startTLS {
      outcome = refuse(reason)
      return
    }
    switch step {
    case .startTLS:
      if goal.tls == .required { return refuseTLS("the server said: \(reason)") }
      advance()
    case .extendedHeaders, .structuredReplies: advance()
    case .list: outcome = refuse("the server does not list its exports; \(reason)")
    case .info:
      // The name stays in the list, without the rest. A server that lacks INFO is not asked again.
      if error == .errUnsup { serverHasInfo = false }
      details = list[listIndex]
      keepDetails()
    case .listContexts, .setContexts:
      // The server has no contexts, or none of this name; the export may be there all the same.
      details.contexts = []
      contextIDs = []
      if step == .listContexts, goal.aim == .list { return keepDetails() }
      step = .setContexts
      advance()
    case .go:
      guard error == .errUnsup, mode < .extended else {
        outcome = refuse(reason)
        return
      }
      details.byteCount = nil
      askByName()
    case .greeting, .exportName, .done:
      throw .unexpectedOptionReply(option: optionNumber, type: type)
    }
  }

  private mutating func acceptListed(_ payload: [UInt8]) throws(ClientViolation) {
    var reader = PayloadReader(payload)
    guard let name = reader.readCountedBytes() else {
      throw malformed("a name passes the end of its reply")
    }
    var entry = ExportDetails(name: try string(name, "a name"))
    entry.description = try string(payload[(4 + name.count)...], "a description")
    list.append(entry)
  }

  private mutating func acceptInfo(_ payload: [UInt8]) throws(ClientViolation) {
    guard payload.count >= 2 else { throw malformed("an info without a type") }
    let rest = payload[2...]
    switch InfoType(rawValue: payload.loadBigEndian(UInt16.self, at: 0)) {
    case .export:
      guard payload.count == 12 else { throw malformed("an export info of another length") }
      try acceptSizeAndFlags(payload, at: 2)
    case .name:
      let name = try string(rest, "a name")
      // The canonical name is worth knowing only where none was asked for.
      if details.name.isEmpty { details.name = name }
    case .description: details.description = try string(rest, "a description")
    case .blockSize:
      guard payload.count == 14 else { throw malformed("block sizes of another length") }
      details.blockSizes = try BlockSizes(
        minimum: payload.loadBigEndian(UInt32.self, at: 2),
        preferred: payload.loadBigEndian(UInt32.self, at: 6),
        maximum: payload.loadBigEndian(UInt32.self, at: 10))
    case nil: break  // Spec: infos that a client does not know are ignored.
    }
  }

  /// A size of 2^63 or more is refused (CVE-2023-5215: it became negative in libnbd).
  private mutating func acceptSizeAndFlags(
    _ bytes: [UInt8], at offset: Int
  ) throws(ClientViolation) {
    let byteCount = bytes.loadBigEndian(UInt64.self, at: offset)
    guard byteCount <= UInt64(Int64.max) else { throw .sizeTooLarge(byteCount: byteCount) }
    let flags = TransmissionFlags(rawValue: bytes.loadBigEndian(UInt16.self, at: offset + 8))
    guard flags.contains(.hasFlags) else { throw .flagsMissing }
    details.byteCount = byteCount
    details.flags = flags
  }

  private mutating func acceptContext(_ payload: [UInt8]) throws(ClientViolation) {
    guard payload.count > 4 else { throw malformed("a context without a name") }
    let id = payload.loadBigEndian(UInt32.self, at: 0)
    let name = try string(payload[4...], "a context's name")
    let shown = ExportName.shown(name.utf8)
    guard !details.contexts.contains(name) else { throw .contextTwice(shownName: shown) }
    if step == .setContexts {
      guard wantedContexts.contains(name) else { throw .contextNotAskedFor(shownName: shown) }
      guard !contextIDs.contains(id) else { throw .contextTwice(shownName: shown) }
      contextIDs.append(id)
    }
    details.contexts.append(name)
  }

  /// - Spec: proto.md, "NBD_OPT_EXPORT_NAME": size, flags, and 124 zeroes unless NO_ZEROES.
  mutating func acceptExportName(_ message: [UInt8]) throws(ClientViolation) {
    try acceptSizeAndFlags(message, at: 0)
    if sendsNoZeroes { return enterTransmission() }
    stage = .zeroes(byteCountLeft: 124)
  }

  /// - Spec: proto.md, "Oldstyle negotiation": size, 32 bits of flags, 124 zeroes. Nothing can be
  ///   chosen, and nothing encrypted (CVE-2019-14842).
  mutating func acceptOldstyle(_ message: [UInt8]) throws(ClientViolation) {
    guard goal.tls != .required else { return refuseTLS("the server is an oldstyle one") }
    let byteCount = message.loadBigEndian(UInt64.self, at: 0)
    guard byteCount <= UInt64(Int64.max) else { throw .sizeTooLarge(byteCount: byteCount) }
    let flags = message.loadBigEndian(UInt32.self, at: 8)
    details.byteCount = byteCount
    details.flags = TransmissionFlags(rawValue: UInt16(truncatingIfNeeded: flags))
    mode = .oldstyle
    switch goal.aim {
    case .list:
      step = .done
      outcome = .listed([details], mode: mode)
    case .enter(let name):
      guard name.isEmpty else {
        outcome = refuse("an oldstyle server has one export without a name")
        return
      }
      enterTransmission()
    }
  }

  private func string(
    _ bytes: ArraySlice<UInt8>, _ subject: String
  ) throws(ClientViolation) -> String {
    guard ExportName.isWellFormed(bytes) else {
      throw malformed("\(subject) that is not a string of at most 4096 bytes")
    }
    return String(decoding: bytes, as: UTF8.self)
  }

  private func malformed(_ what: String) -> ClientViolation {
    .malformedOptionReply(option: optionNumber, what: what)
  }

  /// What an error type says.
  private static func text(of type: UInt32) -> String {
    switch OptionReplyType(rawValue: type) {
    case .errUnsup: "the server does not support this"
    case .errPolicy: "the server's policy forbids this"
    case .errInvalid: "the server calls the request invalid"
    case .errPlatform: "the server's platform cannot do this"
    case .errTLSReqd: "the server requires TLS"
    case .errUnknown: "the server does not know the export"
    case .errShutdown: "the server is shutting down"
    case .errBlockSizeReqd: "the server requires that block sizes are asked for"
    case .errTooBig: "the server calls the request too big"
    case .errExtHeaderReqd: "the server requires extended headers"
    case .ack, .server, .info, .metaContext, nil: "the server refused with error \(type)"
    }
  }
}
