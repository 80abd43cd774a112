// SPDX-License-Identifier: Apache-2.0
//
// Requests as the server reads and judges them. Spec: proto.md, "Transmission phase"; its branch
// extension-ext-header.

import BlockTypes
import NBDProtocol

func fuzzRequests(_ bytes: [UInt8]) {
  var input = FuzzInput(bytes)
  let setting = input.byte()
  var traits = ExportTraits(
    byteCount: [0, 1, 4095, 40 << 20, 1 << 40, 1 << 62, .max][Int(input.byte()) % 7],
    isReadOnly: setting & 1 != 0, minimumBlockByteCount: setting & 2 == 0 ? 1 : 4096,
    canTrim: setting & 4 == 0, canWriteZeroes: setting & 8 == 0, canFastZero: setting & 16 == 0,
    canCache: setting & 32 == 0)
  traits.canResize = setting & 64 != 0
  let framing = input.byte()
  let negotiated = Negotiated(
    exportIndex: 0, structuredReplies: framing & 3 != 0, extendedHeaders: framing & 3 > 1,
    contexts: framing & 3 == 0 ? [] : MetaContextSet(rawValue: UInt64(input.byte() & 15)),
    blockSizesAgreed: framing & 4 != 0)
  let rules = TransmissionRules(traits: traits, negotiated: negotiated)
  let byteCount =
    negotiated.extendedHeaders ? RequestHeader.extendedByteCount : RequestHeader.byteCount
  while !input.isEmpty {
    var raw: [UInt8] = []
    // Half of the time the magic is there without luck.
    if framing & 8 == 0 {
      raw.appendBigEndian(UInt32(negotiated.extendedHeaders ? 0x21e4_1c71 : 0x2560_9513))
    }
    raw += input.bytes(byteCount - raw.count)
    raw += [UInt8](repeating: 0, count: byteCount - raw.count)
    let decoded =
      negotiated.extendedHeaders
      ? RequestHeader(decodingExtended: raw.span.bytes, at: 0)
      : RequestHeader(decoding: raw.span.bytes, at: 0)
    guard let header = decoded else { continue }
    var written: [UInt8] = []
    header.append(to: &written, isExtended: negotiated.extendedHeaders)
    require(written == raw, "a header is written otherwise than it was read")
    judge(header, rules, &input)
  }
}

private func judge(_ header: RequestHeader, _ rules: TransmissionRules, _ input: inout FuzzInput) {
  let verdict = rules.admit(header)
  check(verdict, header, rules)
  encode(verdict, header, rules)
  guard case .filterStatus(let byteCount) = verdict else { return }
  let raw = input.bytes(byteCount)
  let payload = raw + [UInt8](repeating: 0, count: byteCount - raw.count)
  let selected = rules.negotiated.contexts
  guard
    let filter = BlockStatusPayload(
      decoding: payload.span.bytes, at: 0, byteCount: byteCount, selected: selected)
  else { return }
  require(filter.contexts.isSubset(of: selected), "a filter adds contexts")
  require(!filter.contexts.isEmpty, "a filter of nothing")
  var again = header
  again.length = filter.effectByteCount
  again.flags.remove(.payloadLength)
  check(rules.admit(again), again, rules)
}

/// The promises of a verdict.
private func check(_ verdict: Verdict, _ header: RequestHeader, _ rules: TransmissionRules) {
  let isCounted = rules.negotiated.extendedHeaders && header.flags.contains(.payloadLength)
  let payload = header.command == 1 || isCounted ? header.length : 0
  switch verdict {
  case .disconnect: require(header.command == 2, "DISC was not asked for")
  case .hangUp: require(payload > 32 << 20, "a small payload ends all")
  case .refuse(let error, let dropped):
    require(dropped == payload, "\(dropped) bytes of \(payload) are dropped")
    require(dropped <= 64 << 20, "\(dropped) bytes are dropped")
    require(error != .none, "refused without an error")
  case .filterStatus(let byteCount):
    require(header.command == 7 && isCounted, "a filter out of place")
    require(byteCount == Int(header.length) && byteCount <= 8 + 4 * 64, "a long filter")
  case .execute(let command):
    if command == .resize {
      // Its offset is the size that is wanted.
      require(rules.traits.canResize && !rules.traits.isReadOnly, "a resize of what stays")
      require(header.length == 0 && header.offset >= rules.traits.byteCount, "a disk shrinks")
      return
    }
    let (end, isOverflow) = header.offset.addingReportingOverflow(header.length)
    require(!isOverflow && end <= rules.traits.byteCount, "past the end")
    if command == .read || command == .write { require(header.length <= 32 << 20, "too long") }
    if rules.traits.isReadOnly {
      require(![.write, .trim, .writeZeroes].contains(command), "a change of a read-only export")
    }
    require(header.flags.rawValue < 64, "an unknown flag")
    require(!isCounted || command == .write, "a payload out of place")
  }
}

/// Each answer fits where the data plane puts it.
private func encode(_ verdict: Verdict, _ header: RequestHeader, _ rules: TransmissionRules) {
  let error: NBDErrno =
    switch verdict {
    case .refuse(let error, _): error
    case .execute: .none
    case .disconnect, .hangUp, .filterStatus: .EIO
    }
  var bytes = [UInt8](repeating: 0, count: 64)
  var span = bytes.mutableSpan
  var raw = span.mutableBytes
  let count = rules.negotiated.framing.encodeResult(
    error, of: Command(rawValue: header.command),
    to: RequestIdentity(cookie: header.cookie, offset: header.offset), into: &raw, at: 0)
  require((16...64).contains(count), "a result of \(count) bytes")
  require(bytes.bigEndian(UInt64.self, at: 8) == header.cookie, "another cookie")
}
