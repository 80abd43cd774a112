// SPDX-License-Identifier: Apache-2.0
//
// Each request times each combination of flags times each place: the verdicts are in
// Golden/requests.txt, and how they are put on the wire. Spec: proto.md, "Transmission phase"; its
// branch extension-ext-header.

import BlockTypes
import NBDProtocol
import TestSupport
import Testing

private let size: UInt64 = 40 << 20

/// What the handshake agreed on, and the kind of export.
private struct Setting: CustomStringConvertible {
  var framing: ReplyFraming
  var isReadOnly: Bool
  var blockByteCount: UInt32
  var canResize = false

  static let all: [Setting] =
    [.simple, .structured, .extended].flatMap { framing in
      [false, true].flatMap { isReadOnly in
        [1, 4096].map {
          Setting(framing: framing, isReadOnly: isReadOnly, blockByteCount: $0)
        }
      }
    }
    + [.simple, .extended].map {
      Setting(framing: $0, isReadOnly: false, blockByteCount: 4096, canResize: true)
    }

  var rules: TransmissionRules {
    var traits = ExportTraits(
      byteCount: size, isReadOnly: isReadOnly, minimumBlockByteCount: blockByteCount)
    traits.canResize = canResize
    return TransmissionRules(
      traits: traits,
      negotiated: Negotiated(
        exportIndex: 0, structuredReplies: framing != .simple,
        extendedHeaders: framing == .extended,
        contexts: framing == .simple ? [] : [.baseAllocation, .allocationDepth],
        blockSizesAgreed: true))
  }

  var description: String {
    "\(framing), \(isReadOnly ? "read-only" : "writable"), blocks of \(blockByteCount)"
      + (canResize ? ", resizable" : "")
  }
}

private let flagNames = RequestTable.flagNames
/// Every combination of the six flags that have names, and two without.
private let flagValues: [UInt16] = Array(0..<64) + [1 << 6, 1 << 15]

private let commandNames = [
  "READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE", "WRITE_ZEROES", "BLOCK_STATUS", "RESIZE",
  "9", "65535",
]

/// The verdicts of one command in one setting, as lines: combinations of flags that are treated
/// alike share their lines, and places with the same verdict a line.
private func lines(_ command: UInt16, _ setting: Setting) -> [String] {
  let rules = setting.rules
  let places = RequestPlace.all(setting.framing == .extended, byteCount: size)
  var classes: [(verdicts: [String], flags: [UInt16])] = []
  for flags in flagValues {
    let verdicts = places.map { place in
      text(
        rules.admit(
          RequestHeader(
            flags: CommandFlags(rawValue: flags), command: command, cookie: 1,
            offset: place.offset, length: place.length)),
        place.length)
    }
    if let index = classes.firstIndex(where: { $0.verdicts == verdicts }) {
      classes[index].flags.append(flags)
    } else {
      classes.append((verdicts, [flags]))
    }
  }
  return classes.flatMap { one -> [String] in
    var seen: [String] = []
    return one.verdicts.compactMap { verdict -> String? in
      guard !seen.contains(verdict) else { return nil }
      seen.append(verdict)
      let labels = places.indices.filter { one.verdicts[$0] == verdict }.map { places[$0].label }
      let shown = labels.count == places.count ? "everywhere" : labels.joined(separator: "|")
      return "\(commandNames[min(Int(command), 10)]) {\(text(one.flags))} \(verdict): \(shown)"
    }
  }
}

/// A verdict; the payload that is dropped is the whole of the length, or there is none.
private func text(_ verdict: Verdict, _ length: UInt64) -> String {
  switch verdict {
  case .execute(let command): return "do \(command)"
  case .filterStatus(let byteCount): return "take \(byteCount) bytes of filter"
  case .disconnect: return "disconnect"
  case .hangUp: return "hang up"
  case .refuse(let error, let dropped):
    guard dropped > 0 else { return "\(error)" }
    return dropped == length ? "\(error), data dropped" : "\(error), \(dropped) dropped"
  }
}

/// A set of combinations: `FUA?` may be set, `FUA` is set, what is not named is not; sets of
/// another shape are given by their bits.
private func text(_ flags: [UInt16]) -> String {
  if flags.count == flagValues.count { return "any" }
  let all = flags.reduce(UInt16.max, &)
  let some = flags.reduce(0, |)
  let isCube = flags.count == 1 << (some & ~all).nonzeroBitCount
  guard isCube, some < 64 else {
    let bits = flags.filter { $0 < 64 }.reduce(UInt64(0)) { $0 | 1 << UInt64($1) }
    return "others 0x\(String(bits, radix: 16))" + (flags.last! >= 64 ? ", unknown flags" : "")
  }
  let names = flagNames.indices.compactMap { bit -> String? in
    guard some & (1 << UInt16(bit)) != 0 else { return nil }
    return all & (1 << UInt16(bit)) != 0 ? flagNames[bit] : "\(flagNames[bit])?"
  }
  return names.isEmpty ? "none" : names.joined(separator: " ")
}

/// How a result is put on the wire; commands whose results look alike share a line.
private func wireLines(_ framing: ReplyFraming) -> [String] {
  let errors: [NBDErrno] = [
    .none, .EPERM, .EIO, .ENOMEM, .EINVAL, .ENOSPC, .EOVERFLOW, .ENOTSUP, .ESHUTDOWN,
  ]
  return errors.flatMap { error -> [String] in
    var groups: [(hex: String, commands: [String])] = []
    for number in 0...9 as ClosedRange<UInt16> {
      let hex = hex(of: error, number, framing)
      let name = commandNames[Int(number)]
      if let index = groups.firstIndex(where: { $0.hex == hex }) {
        groups[index].commands.append(name)
      } else {
        groups.append((hex, [name]))
      }
    }
    return groups.map { "\(framing) \(error) \($0.hex): \($0.commands.joined(separator: "|"))" }
  }
}

private func hex(of error: NBDErrno, _ command: UInt16, _ framing: ReplyFraming) -> String {
  var bytes = [UInt8](repeating: 0, count: 128)
  var span = bytes.mutableSpan
  var raw = span.mutableBytes
  let count = framing.encodeResult(
    error, of: Command(rawValue: command),
    to: RequestIdentity(cookie: 0x1122_3344_5566_7788, offset: 4096), into: &raw, at: 0)
  return bytes[..<count].map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
}

@Suite struct `each request times each combination of flags times each place` {
  @Test func `gets the verdict that Golden/requests.txt has`() throws {
    let computed = Setting.all.flatMap { setting in
      ["== \(setting)"]
        + (Array(0...9) + [.max]).flatMap { (command: UInt16) in lines(command, setting) }
    }
    let difference = try GoldenTable("requests.txt").difference(
      from: computed,
      title: """
        What becomes of requests on 40 MiB: command, {flags}, verdict: places.
        {A? B}: B is set and A may be; {others BITS}: bit n stands for the combination n of FUA 1,
        NO_HOLE 2, DF 4, REQ_ONE 8, FAST_ZERO 16, PAYLOAD_LEN 32.
        Written by STRATA_WRITE_GOLDEN=1 swift test --filter NBDProtocolTests
        """)
    #expect(difference == [], "\(difference.joined(separator: "\n"))")
  }

  @Test func `is answered on the wire as Golden/results.txt has it`() throws {
    let computed = ([.simple, .structured, .extended] as [ReplyFraming]).flatMap(wireLines)
    let difference = try GoldenTable("results.txt").difference(
      from: computed,
      title: """
        The bytes of results without data, for cookie 0x1122334455667788 and offset 4096.
        Written by STRATA_WRITE_GOLDEN=1 swift test --filter NBDProtocolTests
        """)
    #expect(difference == [], "\(difference.joined(separator: "\n"))")
  }

  @Test func `survives the way over the wire`() {
    for place in RequestPlace.all(true, byteCount: size) {
      for command in Array(0...9) + [.max] as [UInt16] {
        let header = RequestHeader(
          flags: CommandFlags(rawValue: 0x8021), command: command, cookie: .max - 1,
          offset: place.offset, length: place.length)
        var bytes: [UInt8] = []
        header.append(to: &bytes, isExtended: true)
        #expect(RequestHeader(decodingExtended: bytes.span.bytes, at: 0) == header)
        #expect(RequestHeader(decoding: bytes.span.bytes, at: 0) == nil)  // another magic
        guard place.length < 1 << 32 else { continue }
        bytes = []
        header.append(to: &bytes, isExtended: false)
        #expect(RequestHeader(decoding: bytes.span.bytes, at: 0) == header)
      }
    }
  }
}
