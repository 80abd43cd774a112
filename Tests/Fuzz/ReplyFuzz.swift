// SPDX-License-Identifier: Apache-2.0
//
// Answers of an invented server as the client decodes them. Spec: proto.md, "Simple reply message",
// "Structured reply chunk message"; the draft of extended headers.

import BlockTypes
import NBDProtocol

/// The requests that are answered.
private func requests(_ input: inout FuzzInput) -> [RequestHeader] {
  (0..<1 + Int(input.byte()) % 4).map { index in
    let bits = input.byte()
    let command = [Command.read, .blockStatus, .write, .flush, .read, .blockStatus][
      Int(bits & 7) % 6]
    let length = [8, 1, 512, 65_536, 0, 24, 4096, 3][Int(bits >> 3 & 7)] as UInt64
    let flags: CommandFlags = bits & 64 == 0 ? [] : command == .read ? .dontFragment : .requestOne
    return RequestHeader(
      flags: flags, command: command.rawValue, cookie: UInt64(index),
      offset: bits & 128 == 0 ? 4096 : UInt64(Int64.max) - length, length: length)
  }
}

/// What became of a stream: the answers until the violation, if there was one.
private struct Decoded: Hashable {
  var answers: [ServerAnswer] = []
  var violation: ClientViolation?
}

private func decode(
  _ stream: [UInt8], _ seed: UInt8, _ mode: ProtocolMode, _ contexts: [UInt32],
  _ requests: [RequestHeader]
) -> Decoded {
  var decoder = ReplyDecoder(mode: mode, contextIDs: contexts)
  for request in requests { decoder.expect(request) }
  var decoded = Decoded()
  var portions = Portions(seed)
  portions.deliver(stream) { portion in
    do throws(ClientViolation) {
      try decoder.receive(portion)
      return true
    } catch {
      decoded.violation = error
      return false
    }
  }
  decoded.answers = decoder.takeAnswers()
  require(decoder.takeAnswers().isEmpty, "an answer is there twice")
  if decoded.violation == nil {
    require(
      decoder.pendingCount + decoded.answers.count == requests.count, "requests have gone lost")
  }
  return decoded
}

/// A chunk or simple reply whose magic, cookie and lengths need no luck.
private func reply(_ input: inout FuzzInput, _ mode: ProtocolMode, _ requests: [RequestHeader])
  -> [UInt8]
{
  let bits = input.byte()
  let request = requests[Int(bits & 3) % requests.count]
  var bytes: [UInt8] = []
  if mode <= .simple || (bits & 4 != 0 && mode < .extended) {
    bytes.appendBigEndian(UInt32(0x6744_6698))
    bytes.appendBigEndian(UInt32(bits & 8 == 0 ? 0 : input.byte()))
    bytes.appendBigEndian(request.cookie)
    if bits & 8 == 0, request.command == 0 {
      bytes += [UInt8](repeating: bits, count: Int(request.length))
    }
    return bytes
  }
  let type = [1, 2, 5, 6, 0, 0x8001, 0x8002, 0x8003, 7, 3][Int(input.byte()) % 10] as UInt16
  var payload: [UInt8] = []
  let count = Int(input.integer(UInt16.self)) % 5000
  switch type {
  case 1:
    payload.appendBigEndian(request.offset &+ UInt64(input.byte()))
    payload += [UInt8](repeating: bits, count: count)
  case 2:
    payload.appendBigEndian(request.offset &+ UInt64(input.byte()))
    payload.appendBigEndian(UInt32(count))
  default: payload = input.bytes(count % 256)
  }
  let isExtended = mode == .extended
  bytes.appendBigEndian(UInt32(isExtended ? 0x6e8a_278c : 0x668e_33ef))
  bytes.appendBigEndian(UInt16(bits >> 4 & 1))
  bytes.appendBigEndian(type)
  bytes.appendBigEndian(request.cookie)
  if isExtended {
    bytes.appendBigEndian(request.offset)
    bytes.appendBigEndian(UInt64(payload.count))
  } else {
    bytes.appendBigEndian(UInt32(payload.count))
  }
  return bytes + payload
}

func fuzzReplies(_ bytes: [UInt8]) {
  var input = FuzzInput(bytes)
  let setting = input.byte()
  let mode = [ProtocolMode.structured, .extended, .simple, .oldstyle][Int(setting & 3)]
  let contexts: [UInt32] = [[], [0], [1, 0], [7, 0xffff_ffff]][Int(setting >> 2 & 3)]
  let seed = input.byte()
  let requests = requests(&input)
  var stream: [UInt8] = []
  if setting & 128 == 0 {
    stream = input.all()
  } else {
    while !input.isEmpty, stream.count < 1 << 18 { stream += reply(&input, mode, requests) }
  }
  let whole = decode(stream, 0, mode, contexts, requests)
  let pieces = decode(stream, max(2, seed), mode, contexts, requests)
  require(whole == pieces, "the answers depend on the portions")
  var seen: Set<UInt64> = []
  for answer in whole.answers {
    require(seen.insert(answer.cookie).inserted, "a request is answered twice")
    guard let request = requests.first(where: { $0.cookie == answer.cookie }) else {
      fatalError("an answer to nothing")
    }
    switch answer.outcome {
    case .done: require(request.command != 0 && request.command != 7, "an answer without data")
    case .data(let data):
      require(request.command == 0, "data of another command")
      require(data.count == Int(request.length), "\(data.count) bytes of \(request.length)")
    case .status(let all):
      require(request.command == 7, "extents of another command")
      require(all.map(\.contextID) == contexts, "other contexts")
      for one in all {
        require(!one.extents.isEmpty, "a context without extents")
        require(one.extents.allSatisfy { $0.byteCount > 0 }, "an empty extent")
        require(
          one.extents.dropLast().reduce(0) { $0 + $1.byteCount } < max(1, request.length),
          "extents behind the end")
      }
    case .failed(let failure): require(failure.number != 0, "a failure without a number")
    }
  }
}
