// SPDX-License-Identifier: Apache-2.0
//
// The inputs that the fuzz targets start from, made of the golden cases. The layouts are those of
// Tests/Fuzz. See tools/fuzz.

import BlockTypes
import NBDProtocol
import TestSupport
import Testing

private let exportName = "disk"

private func hex(_ bytes: [UInt8]) -> String {
  bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
}

/// A setting, how it is cut, and what a client says up to the end of one option.
private func serverInputs() -> [[UInt8]] {
  let detailed: Set = ["structured replies, contexts", "fixed"]
  return HandshakeState.all(export: exportName).filter { $0.access == .open }.flatMap {
    state -> [[UInt8]] in
    var setting: UInt8 =
      switch state.tls {
      case .off: 0
      case .offered: 1
      case .required: state.isRefused ? 3 : 2
      }
    if state.isStopping { setting |= 16 }
    let opening = bigEndian(state.flags) + state.opening.flatMap { $0 }
    return OptionCase.options.flatMap { OptionCase.all(of: $0, export: exportName) }
      .filter { one in
        one.bytes.count < 300
          && (detailed.contains(state.name) || ["0", "exact"].contains(one.label))
      }
      .map { [setting, 1] + opening + $0.bytes }
  }
}

/// A goal, how it is cut, and what our server says to a client of this goal.
private func clientInputs() -> [[UInt8]] {
  let goals: [ClientGoal.Aim] = [.enter(exportName: "disk"), .enter(exportName: ""), .list]
  let contexts: [ClientGoal.Contexts] = [
    .all, .none, .named(["base:allocation", "qemu:allocation-depth"]),
  ]
  var inputs: [[UInt8]] = []
  for (aimIndex, aim) in goals.enumerated() {
    for (contextIndex, wanted) in contexts.enumerated() {
      for (modeIndex, mode) in ProtocolMode.allCases.reversed().enumerated() {
        var client = ClientHandshake(ClientGoal(aim, contexts: wanted, modeMax: mode))
        var server = ServerHandshake(exports: [disk, other], limits: RequestLimits())
        var stream = server.start()
        _ = client.receive(stream[...])
        while client.outcome == .negotiating {
          let words = client.takeOutput()
          _ = server.receive(words.span.bytes)
          let more = server.takeOutput()
          guard !more.isEmpty else { break }
          stream += more
          _ = client.receive(more[...])
        }
        let bits = UInt8(aimIndex | contextIndex << 2)
        inputs.append([bits, UInt8(modeIndex), 1] + stream)
      }
    }
  }
  inputs.append([0, 0, 1] + Array("NBDMAGIC".utf8) + bigEndian(UInt64(0x0000_4202_8186_1253)))
  inputs.append([16, 0, 1] + greeting() + optionReply(5, 1))
  return inputs
}

/// Export, framing, contexts, and one header behind its magic.
private func requestInputs() -> [[UInt8]] {
  (0...2 as ClosedRange<UInt8>).flatMap { framing -> [[UInt8]] in
    RequestPlace.all(framing == 2, byteCount: 40 << 20).enumerated().map { index, place in
      let header = RequestHeader(
        flags: index % 3 == 0 ? .payloadLength : .fua, command: UInt16(index % 9), cookie: 7,
        offset: place.offset, length: place.length)
      var bytes: [UInt8] = []
      header.append(to: &bytes, isExtended: framing == 2)
      return [0, 3, framing] + (framing == 0 ? [] : [3]) + bytes[4...]
        + (place.label == "filter of 12" ? bigEndian(UInt64(4096)) + bigEndian(UInt32(1)) : [])
    }
  }
}

/// Mode and contexts, how it is cut, which requests, and what a server answers.
private func replyInputs() -> [[UInt8]] {
  // Requests 0, 1 and 2: READ and BLOCK_STATUS of 8 bytes at 4096, and a WRITE.
  let requests: [UInt8] = [2, 0, 1, 2]
  let eight: [UInt8] = [1, 2, 3, 4, 5, 6, 7, 8]
  let structured: [[UInt8]] = [
    chunk(0, 1, dataPayload(4096, eight)), chunk(0, 2, holePayload(4096, 8)), chunk(0, 0),
    chunk(0, 1, dataPayload(4100, [1, 2, 3, 4]), flags: 0) + chunk(0, 2, holePayload(4096, 4)),
    chunk(0, 0x8001, errorPayload(5, "no")), chunk(0, 0x8002, errorPayload(5, "no", at: 4099)),
    chunk(1, 5, extentPayload(0, (4, 0), (4, 3))), simpleReply(2), simpleReply(2, error: 28),
    chunk(0, 1, dataPayload(.max, [1])), chunk(9, 0),
  ]
  let extended: [[UInt8]] = [
    extendedChunk(0, 1, dataPayload(4096, eight), offset: 4096),
    extendedChunk(
      1, 6,
      bigEndian(UInt32(0)) + bigEndian(UInt32(1)) + bigEndian(UInt64(8)) + bigEndian(UInt64(3)),
      offset: 4096),
    extendedChunk(2, 0, offset: 4096), extendedChunk(2, 0x8001, errorPayload(28), offset: 4096),
  ]
  let simple = [simpleReply(0, data: eight), simpleReply(2), simpleReply(0, error: 5)]
  return structured.map { [4, 1] + requests + $0 } + extended.map { [5, 1] + requests + $0 }
    + simple.map { [2, 1] + requests + $0 }
}

@Suite struct `The seeds of tools/fuzz` {
  @Test(
    arguments: [
      ("ServerHandshake", serverInputs), ("ClientHandshake", clientInputs),
      ("Requests", requestInputs), ("Replies", replyInputs),
    ] as [(String, @Sendable () -> [[UInt8]])])
  func `are made of the golden cases`(_ target: String, _ inputs: @Sendable () -> [[UInt8]]) throws
  {
    let difference = try GoldenTable("../../Fuzz/Corpus/\(target).seeds").difference(
      from: inputs().map(hex),
      title:
        """
        Inputs of \(target).
        Written by STRATA_WRITE_GOLDEN=1 swift test --filter NBDProtocolTests
        """,
      shownMax: 3)
    #expect(difference == [], "\(difference.joined(separator: "\n"))")
  }
}
