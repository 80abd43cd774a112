// SPDX-License-Identifier: Apache-2.0
//
// The answer to each option that needs no data, and the way to those that do.
// Spec: proto.md, "Option types". This file performs no I/O.

extension ServerHandshake {
  /// Whether the data of `option` is needed to answer it.
  func keepsPayload(of option: Option?) -> Bool {
    switch option {
    case .exportName, .info, .go, .listMetaContext, .setMetaContext: true
    case .abort, .list, .peekExport, .startTLS, .structuredReply, .extendedHeaders, nil: false
    }
  }

  /// Answers an option whose data was kept.
  mutating func answer(_ header: OptionHeader, payload: [UInt8]) {
    guard let option = Option(rawValue: header.option) else {
      preconditionFailure("the data of an unknown option was kept")
    }
    if option == .setMetaContext { selection = nil }
    if isStopping && option != .exportName { return replyStopping(to: header) }
    if let error = barrier(to: option) { return refuse(header, error) }
    switch option {
    case .exportName: answerExportName(payload)
    case .info, .go: answerInfo(header, payload: payload, entersTransmission: option == .go)
    case .listMetaContext: answerListMetaContext(header, payload: payload)
    case .setMetaContext: answerSetMetaContext(header, payload: payload)
    case .abort, .list, .peekExport, .startTLS, .structuredReply, .extendedHeaders:
      preconditionFailure("the data of option \(header.option) was kept")
    }
  }

  /// Answers an option whose data, if any, was dropped.
  mutating func answerDrained(_ header: OptionHeader) {
    let option = Option(rawValue: header.option)
    if option == .setMetaContext { selection = nil }
    if isStopping && option != .abort { return replyStopping(to: header) }
    if let error = barrier(to: option) { return refuse(header, error) }
    switch option {
    case .abort:
      reply(.ack, to: header)
      outcome = .finished
    case .list: answerList(header)
    case .structuredReply: answerStructuredReply(header)
    case .extendedHeaders: answerExtendedHeaders(header)
    case .startTLS:
      guard header.payloadByteCount == 0 else { return replyDataRefused(to: header) }
      answerStartTLS(header)
    case .info, .go, .listMetaContext, .setMetaContext:
      reply(OptionError(.errTooBig, "the option is too long"), to: header)
    case .peekExport, nil:
      reply(OptionError(.errUnsup, "option \(header.option) is not supported"), to: header)
    case .exportName: preconditionFailure("the data of EXPORT_NAME was dropped")
    }
  }

  /// Shows what the client may use: the rest is nothing to it.
  ///
  /// - Spec: proto.md, "NBD_OPT_LIST": one SERVER reply for each export, then ACK.
  private mutating func answerList(_ header: OptionHeader) {
    guard header.payloadByteCount == 0 else { return replyDataRefused(to: header) }
    guard listIsAllowed else {
      return reply(OptionError(.errPolicy, "listing exports is not allowed"), to: header)
    }
    for (index, export) in exports.enumerated() where access[index] == .open {
      var payload: [UInt8] = []
      payload.appendBigEndian(UInt32(export.name.utf8.count))
      payload.append(contentsOf: export.name.utf8)
      payload.append(contentsOf: export.description.utf8)
      reply(.server, to: header, payload: payload)
    }
    reply(.ack, to: header)
  }

  /// - Spec: proto.md, "NBD_OPT_STRUCTURED_REPLY": a repetition MAY be refused as invalid.
  private mutating func answerStructuredReply(_ header: OptionHeader) {
    guard header.payloadByteCount == 0 else { return replyDataRefused(to: header) }
    switch framing {
    case .simple:
      framing = .structured
      reply(.ack, to: header)
    case .structured:
      reply(OptionError(.errInvalid, "structured replies are already negotiated"), to: header)
    case .extended:
      let error = OptionError(.errExtHeaderReqd, "extended headers are already negotiated")
      reply(error, to: header)
    }
  }

  /// - Spec: proto.md, branch extension-ext-header, "NBD_OPT_EXTENDED_HEADERS": also without
  ///   structured replies; a repetition MAY be refused as invalid.
  private mutating func answerExtendedHeaders(_ header: OptionHeader) {
    guard header.payloadByteCount == 0 else { return replyDataRefused(to: header) }
    guard framing != .extended else {
      let error = OptionError(.errInvalid, "extended headers are already negotiated")
      return reply(error, to: header)
    }
    framing = .extended
    reply(.ack, to: header)
  }

  private mutating func replyDataRefused(to header: OptionHeader) {
    reply(OptionError(.errInvalid, "option \(header.option) takes no data"), to: header)
  }

  private mutating func replyStopping(to header: OptionHeader) {
    reply(OptionError(.errShutdown, "the server is stopping"), to: header)
  }
}
