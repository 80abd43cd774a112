// SPDX-License-Identifier: Apache-2.0
//
// The server's handshake under invented options. Spec: proto.md, "Handshake phase".

import BlockTypes
import NBDProtocol

private let exports = [
  ExportDescription(
    name: "disk", description: "a disk", traits: ExportTraits(byteCount: 40 << 20),
    contexts: [
      .baseAllocation, .allocationDepth, MetaContext.dirtyBitmap("daily", number: 0),
    ]),
  ExportDescription(name: "quiet", traits: ExportTraits(byteCount: 1 << 40, isReadOnly: true)),
]

/// One handshake, and what came of it.
private struct ServerTalk {
  var machine: ServerHandshake
  var sent: [UInt8] = []
  var consumed = 0
  var startsTLSCount = 0
  let refusal: String?

  init(_ setting: UInt8) {
    let tls = [TLSPolicy.off, .offered, .required, .required][Int(setting & 3)]
    refusal = setting & 3 == 3 ? "not you" : nil
    machine = ServerHandshake(
      exports: setting & 4 == 0 ? Array(exports[..<1]) : exports, limits: RequestLimits(),
      listIsAllowed: setting & 8 == 0, tls: tls,
      access: [.open, .needsTLS].dropLast(setting & 4 == 0 ? 1 : 0))
    machine.isStopping = setting & 16 != 0
    require(machine.start().count == 18, "the greeting has 18 bytes")
  }

  /// Takes a portion; false when the machine wants no more.
  mutating func take(_ bytes: ArraySlice<UInt8>) -> Bool {
    var rest = bytes
    while true {
      let count = machine.receive(rest.span.bytes)
      require(count <= rest.count, "more was consumed than came")
      consumed += count
      rest = rest.dropFirst(count)
      sent += machine.takeOutput()
      require(machine.takeOutput().isEmpty, "the output is there twice")
      guard machine.outcome == .startsTLS else { break }
      require(rest.isEmpty, "plain text behind STARTTLS is left for TLS")
      startsTLSCount += 1
      machine.continueOverTLS(refusal: refusal)
      guard !rest.isEmpty else { break }
    }
    if machine.outcome == .negotiating { require(rest.isEmpty, "bytes are left while negotiating") }
    return machine.outcome == .negotiating
  }
}

/// The bytes of a client: as they are, or as options whose magic and length need no luck.
private func clientBytes(_ input: inout FuzzInput, _ setting: UInt8) -> [UInt8] {
  guard setting & 128 != 0 else { return input.all() }
  var bytes: [UInt8] = []
  bytes.appendBigEndian(UInt32(setting >> 5 & 3))
  while !input.isEmpty, bytes.count < 1 << 16 {
    let kind = input.byte()
    let data = input.bytes(Int(input.byte()))
    bytes += Array("IHAVEOPT".utf8)
    bytes.appendBigEndian(UInt32(kind % 14))
    let lie = kind >= 252 ? Int(input.integer(UInt16.self)) : 0
    bytes.appendBigEndian(UInt32(data.count + lie))
    bytes += data
  }
  return bytes
}

func fuzzServerHandshake(_ bytes: [UInt8]) {
  var input = FuzzInput(bytes)
  let setting = input.byte()
  let seed = input.byte()
  let stream = clientBytes(&input, setting)
  var whole = ServerTalk(setting)
  _ = whole.take(stream[...])
  var pieces = ServerTalk(setting)
  var portions = Portions(max(1, seed))
  portions.deliver(stream) { pieces.take($0) }
  check(whole, setting)
  check(pieces, setting)
  // A border between STARTTLS and what follows is all that a border may change.
  guard pieces.startsTLSCount == 0, whole.startsTLSCount == 0 else { return }
  if whole.machine.outcome == .hangUp(.plainTextBehindStartTLS) { return }
  if pieces.machine.outcome == .hangUp(.plainTextBehindStartTLS) { return }
  require(whole.sent == pieces.sent, "the answers depend on the portions")
  require(whole.machine.outcome == pieces.machine.outcome, "the outcome depends on the portions")
  require(whole.consumed == pieces.consumed, "the portions change what is consumed")
}

private func check(_ talk: ServerTalk, _ setting: UInt8) {
  var position = 0
  var isSecure = false
  var types: [UInt32] = []
  var agreed: Set<UInt32> = []
  while position < talk.sent.count,
    talk.sent.count - position >= 20,
    talk.sent.bigEndian(UInt64.self, at: position) == 0x0003_e889_0455_65a9
  {
    let option = talk.sent.bigEndian(UInt32.self, at: position + 8)
    let type = talk.sent.bigEndian(UInt32.self, at: position + 12)
    let count = Int(talk.sent.bigEndian(UInt32.self, at: position + 16))
    require(count <= 8200, "a reply of \(count) bytes")
    require(position + 20 + count <= talk.sent.count, "a reply is cut off")
    types.append(type)
    if !isSecure, type < 1 << 31, type != 1 {
      let payload = talk.sent[position + 20..<position + 20 + count]
      require(!payload.contains(Array("quiet".utf8)), "an export that needs TLS is shown")
    }
    let mayOnlyAbort = (setting & 2 != 0 && !isSecure) || (isSecure && talk.refusal != nil)
    if mayOnlyAbort, type < 1 << 31 {
      require(type == 1 && (option == 2 || option == 5), "option \(option) passed the barrier")
    }
    if type == 1 { agreed.insert(option) }
    if option == 5, type == 1 {
      isSecure = true
      agreed = []  // CVE-2021-3716: nothing that was said in plain text counts
    }
    position += 20 + count
  }
  let left = talk.sent.count - position
  if case .ready(let negotiated) = talk.machine.outcome {
    require(left == 0 || left == 10 || left == 134, "\(left) bytes enter the transmission phase")
    require(setting & 2 == 0 || isSecure, "an export is entered without TLS")
    require(talk.refusal == nil || !isSecure, "an export is entered by a client that may not")
    require(setting & 16 == 0, "an export is entered while the server stops")
    require(exports.indices.contains(negotiated.exportIndex), "there is no such export")
    require(negotiated.exportIndex == 0 || isSecure, "an export that needs TLS is entered without")
    require(
      negotiated.structuredReplies == !agreed.isDisjoint(with: [8, 11]), "chunks without agreement")
    require(negotiated.extendedHeaders == agreed.contains(11), "headers without agreement")
    require(
      negotiated.contexts.isEmpty || agreed.contains(10), "contexts without agreement")
    for id in 0..<64 as Range<UInt32> where negotiated.contexts.contains(wireID: id) {
      require(
        exports[negotiated.exportIndex].contexts.contains { $0.wireID == id },
        "a context was selected that is not there")
      require(negotiated.structuredReplies, "contexts without chunks")
    }
  } else {
    require(left == 0, "\(left) bytes are no reply")
  }
  // Every option takes 16 bytes, and its answer has a bound.
  require(types.count <= (talk.consumed / 16 + 1) * 80, "too many replies")
}
