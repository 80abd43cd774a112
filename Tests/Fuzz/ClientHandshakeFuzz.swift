// SPDX-License-Identifier: Apache-2.0
//
// The client's handshake under an invented server. Spec: proto.md, "Handshake phase";
// CVE-2019-14842 for what is never said in plain text.

import BlockTypes
import NBDProtocol

private func goal(_ input: inout FuzzInput) -> ClientGoal {
  let bits = input.byte()
  let mode = input.choice(ProtocolMode.allCases.reversed())
  return ClientGoal(
    [.enter(exportName: "disk"), .enter(exportName: ""), .list][Int(bits & 3) % 3],
    contexts: [
      .all, .none, .named(["base:allocation", "qemu:allocation-depth"]), .named([]),
    ][Int(bits >> 2 & 3)],
    tls: bits & 16 == 0 ? .never : .required, modeMax: mode)
}

/// One handshake, and what came of it.
private struct ClientTalk {
  var machine: ClientHandshake
  let goal: ClientGoal
  var sent: [UInt8] = []
  var sentInClear: [UInt8] = []
  var consumed = 0
  var isEncrypted = false

  init(_ goal: ClientGoal) {
    self.goal = goal
    machine = ClientHandshake(goal)
  }

  mutating func take(_ bytes: ArraySlice<UInt8>) -> Bool {
    let count = machine.receive(bytes)
    require(count <= bytes.count, "more was consumed than came")
    consumed += count
    takeOutput()
    if machine.outcome == .startTLS {
      require(goal.tls == .required, "TLS that nobody wanted")
      isEncrypted = true
      machine.continueEncrypted()
      takeOutput()
    } else if machine.outcome == .negotiating {
      require(count == bytes.count, "bytes are left while negotiating")
    }
    return machine.outcome == .negotiating
  }

  private mutating func takeOutput() {
    let output = machine.takeOutput()
    sent += output
    if !isEncrypted { sentInClear += output }
  }

  /// The number of the option that was sent last.
  var lastOption: UInt32 {
    let magic = Array("IHAVEOPT".utf8)
    var position = sent.count - 16
    while position >= 4 {
      if sent[position...].starts(with: magic) {
        return sent.bigEndian(UInt32.self, at: position + 8)
      }
      position -= 1
    }
    return 0
  }
}

private let types: [UInt32] = [
  1, 2, 3, 4, 1, 0x8000_0001, 0x8000_0002, 0x8000_0003, 0x8000_0005, 0x8000_0006, 0x8000_0007,
  0x8000_0008, 0x8000_0009, 0x8000_000a, 0x8000_00ff, 5, 0,
]

/// What a server says next when its magic numbers and lengths need no luck.
private func serverBytes(_ input: inout FuzzInput, _ talk: ClientTalk) -> [UInt8] {
  var bytes: [UInt8] = []
  guard talk.consumed > 0 else {
    bytes += Array("NBDMAGIC".utf8)
    let flags = input.byte()
    if flags & 64 != 0 {
      bytes.appendBigEndian(UInt64(0x0000_4202_8186_1253))
      return bytes + input.bytes(12) + [UInt8](repeating: 0, count: 124)
    }
    bytes += Array("IHAVEOPT".utf8)
    bytes.appendBigEndian(UInt16(flags & 7))
    return bytes
  }
  let option = talk.lastOption
  if option == 1 { return input.bytes(10) + [UInt8](repeating: 0, count: 124) }
  let type = input.choice(types)
  let data = input.bytes(Int(input.byte()))
  bytes.appendBigEndian(UInt64(0x0003_e889_0455_65a9))
  bytes.appendBigEndian(option)
  bytes.appendBigEndian(type)
  bytes.appendBigEndian(UInt32(data.count))
  return bytes + data
}

func fuzzClientHandshake(_ bytes: [UInt8]) {
  var input = FuzzInput(bytes)
  let goal = goal(&input)
  let seed = input.byte()
  var stream: [UInt8] = []
  if seed & 128 == 0 {
    stream = input.all()
  } else {
    var talk = ClientTalk(goal)
    var isOver = false
    while !isOver, !input.isEmpty, stream.count < 1 << 16 {
      let more = serverBytes(&input, talk)
      stream += more
      isOver = !talk.take(more[...])
    }
    check(talk)
  }
  var whole = ClientTalk(goal)
  _ = whole.take(stream[...])
  var pieces = ClientTalk(goal)
  var portions = Portions(max(1, seed & 127))
  portions.deliver(stream) { pieces.take($0) }
  check(whole)
  check(pieces)
  guard !whole.isEncrypted, !pieces.isEncrypted else { return }
  if case .violated(.plaintextBehindTLS) = whole.machine.outcome { return }
  if case .violated(.plaintextBehindTLS) = pieces.machine.outcome { return }
  require(whole.machine.outcome == pieces.machine.outcome, "the outcome depends on the portions")
  // A stream that breaks off at once may leave questions unasked, never other ones.
  require(whole.sent == pieces.sent, "the questions depend on the portions")
  var ended = whole.machine
  ended.end()
  require(ended.outcome != .negotiating, "a handshake goes on after its end")
}

private func check(_ talk: ClientTalk) {
  require(talk.sent.count <= 64 * (talk.consumed + 4096), "too much is sent")
  if talk.goal.tls == .required {
    // The flags and STARTTLS.
    require(talk.sentInClear.count <= 4 + 16, "\(talk.sentInClear.count) bytes in plain text")
  }
  switch talk.machine.outcome {
  case .negotiating, .startTLS, .refused, .violated, .insecure: break
  case .ready(let session):
    require(talk.goal.tls == .never || talk.isEncrypted, "an export is entered in plain text")
    require(session.byteCount <= UInt64(Int64.max), "a size of \(session.byteCount)")
    require(Set(session.contextIDs).count == session.contextIDs.count, "two contexts, one id")
    require(session.contextIDs.count == session.export.contexts.count, "contexts without ids")
    require(session.contextIDs.count <= ClientHandshake.contextsMax, "too many contexts")
    require(session.mode <= talk.goal.modeMax || session.mode <= .simple, "a mode above the goal")
  case .listed(let exports, _):
    require(talk.goal.tls == .never || talk.isEncrypted, "a list in plain text")
    require(exports.count <= ClientHandshake.exportsMax, "too many exports")
  }
}
