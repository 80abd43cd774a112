// SPDX-License-Identifier: Apache-2.0
//
// The order in which a client asks: TLS, extended headers, structured replies, then the list or
// the export. Spec: proto.md, "Handshake phase", "Option types"; the draft of extended headers.
// This file performs no I/O.

extension ClientHandshake {
  /// The question that was asked last, whose answer is awaited.
  enum Step: Hashable, Sendable {
    case greeting
    case startTLS
    case extendedHeaders
    case structuredReplies
    case list
    case info
    case listContexts
    case setContexts
    case go
    case exportName
    case done
  }

  /// The number of the option under way.
  var optionNumber: UInt32 {
    switch step {
    case .greeting, .done: 0
    case .startTLS: Option.startTLS.rawValue
    case .extendedHeaders: Option.extendedHeaders.rawValue
    case .structuredReplies: Option.structuredReply.rawValue
    case .list: Option.list.rawValue
    case .info: Option.info.rawValue
    case .listContexts: Option.listMetaContext.rawValue
    case .setContexts: Option.setMetaContext.rawValue
    case .go: Option.go.rawValue
    case .exportName: Option.exportName.rawValue
    }
  }

  /// Asks the next question, or ends the handshake. Called when an answer is complete.
  mutating func advance() {
    switch step {
    case .greeting:
      guard goal.tls != .required || isFixedNewstyle else {
        return refuseTLS("the server cannot encrypt")
      }
      guard isFixedNewstyle else { return askWithoutAnswers() }
      if goal.tls != .never { return ask(.startTLS) }
      askForMode()
    case .startTLS: askForMode()
    case .extendedHeaders:
      if mode < .extended { return askForStructuredReplies() }
      askForAim()
    case .structuredReplies: askForAim()
    case .list: askAboutNext()
    case .info:
      if mode >= .structured { return ask(.listContexts, contextQuery([])) }
      keepDetails()
    case .listContexts:
      if goal.aim == .list { return keepDetails() }
      askForContexts(details.contexts)
    case .setContexts: askToGo()
    case .go: enterTransmission()
    case .exportName, .done: preconditionFailure("the handshake goes on after its end")
    }
  }

  private mutating func askForMode() {
    if goal.modeMax >= .extended { return ask(.extendedHeaders) }
    askForStructuredReplies()
  }

  private mutating func askForStructuredReplies() {
    if goal.modeMax >= .structured { return ask(.structuredReplies) }
    askForAim()
  }

  private mutating func askForAim() {
    guard case .enter(let name) = goal.aim else { return ask(.list) }
    details = ExportDetails(name: name)
    guard mode >= .structured else { return askToGo() }
    switch goal.contexts {
    case .none: askToGo()
    case .all: ask(.listContexts, contextQuery([]))
    case .named(let names): askForContexts(names)
    }
  }

  private mutating func askForContexts(_ names: [String]) {
    details.contexts = []
    guard !names.isEmpty else { return askToGo() }
    wantedContexts = names
    ask(.setContexts, contextQuery(names))
  }

  private mutating func askToGo() {
    // A server that gave no export size must not be believed to have one from before.
    details.byteCount = nil
    if goal.modeMax >= .simple { return ask(.go, infoQuery) }
    askByName()
  }

  /// A server without fixed newstyle answers nothing but EXPORT_NAME.
  private mutating func askWithoutAnswers() {
    guard case .enter(let name) = goal.aim else {
      outcome = refuse("the server does not support lists of exports")
      return
    }
    details = ExportDetails(name: name)
    askByName()
  }

  mutating func askByName() {
    ask(.exportName, Array(details.name.utf8))
    if mode == .simple { mode = .exportName }
    stage = .exportNameAnswer
  }

  /// Asks about the next export of the list, or leaves.
  mutating func askAboutNext() {
    guard listIndex < list.count, serverHasInfo else {
      outcome = .listed(list, mode: mode)
      step = .done
      output.appendOption(Option.abort.rawValue, [])
      return
    }
    details = list[listIndex]
    ask(.info, infoQuery)
  }

  /// Puts what was learnt about an export into the list.
  mutating func keepDetails() {
    list[listIndex] = details
    listIndex += 1
    askAboutNext()
  }

  mutating func ask(_ next: Step, _ payload: [UInt8] = []) {
    step = next
    stage = .replyHeader
    replyCount = 0
    output.appendOption(optionNumber, payload)
  }

  private var infoQuery: [UInt8] {
    var payload: [UInt8] = []
    payload.appendCounted(details.name)
    payload.appendBigEndian(UInt16(3))
    for type in [InfoType.name, .description, .blockSize] {
      payload.appendBigEndian(type.rawValue)
    }
    return payload
  }

  private func contextQuery(_ names: [String]) -> [UInt8] {
    var payload: [UInt8] = []
    payload.appendCounted(details.name)
    payload.appendBigEndian(UInt32(names.count))
    for name in names { payload.appendCounted(name) }
    return payload
  }

  mutating func refuseTLS(_ reason: String) {
    outcome = .insecure("TLS is required, and \(reason)")
  }

  mutating func enterTransmission() {
    step = .done
    outcome = .ready(
      ClientSession(
        mode: mode, isEncrypted: isEncrypted, export: details, contextIDs: contextIDs))
  }
}

extension [UInt8] {
  /// Appends an option: 16 bytes of header, then `payload`.
  fileprivate mutating func appendOption(_ option: UInt32, _ payload: [UInt8]) {
    appendBigEndian(Magic.option)
    appendBigEndian(option)
    appendBigEndian(UInt32(payload.count))
    append(contentsOf: payload)
  }

  /// Appends a length of 32 bits and as many bytes of UTF-8.
  fileprivate mutating func appendCounted(_ text: String) {
    appendBigEndian(UInt32(text.utf8.count))
    append(contentsOf: text.utf8)
  }
}
