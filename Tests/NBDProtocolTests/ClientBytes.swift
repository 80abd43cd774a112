// SPDX-License-Identifier: Apache-2.0
//
// What a client would send and read, byte by byte, for the tests of the handshake.
// Spec: proto.md, "Handshake phase". This file performs no I/O.

import BlockTypes
import NBDProtocol

/// Big-endian bytes of an integer.
func bigEndian<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
  withUnsafeBytes(of: value.bigEndian) { Array($0) }
}

/// The four bytes of client flags; both known flags unless told otherwise.
func clientFlags(_ flags: UInt32 = 3) -> [UInt8] { bigEndian(flags) }

/// An option with its header.
func option(_ number: UInt32, _ payload: [UInt8] = []) -> [UInt8] {
  Array("IHAVEOPT".utf8) + bigEndian(number) + bigEndian(UInt32(payload.count)) + payload
}

/// The data of INFO or GO.
func infoData(_ name: String, requests: [UInt16] = []) -> [UInt8] {
  counted(Array(name.utf8)) + bigEndian(UInt16(requests.count)) + requests.flatMap { bigEndian($0) }
}

/// The data of LIST_META_CONTEXT or SET_META_CONTEXT.
func metaData(_ name: String, _ queries: [String]) -> [UInt8] {
  counted(Array(name.utf8)) + bigEndian(UInt32(queries.count))
    + queries.flatMap { counted(Array($0.utf8)) }
}

func counted(_ bytes: [UInt8]) -> [UInt8] { bigEndian(UInt32(bytes.count)) + bytes }

func goOption(_ name: String, requests: [UInt16] = []) -> [UInt8] {
  option(7, infoData(name, requests: requests))
}

func setMeta(_ name: String, _ queries: String...) -> [UInt8] {
  option(10, metaData(name, queries))
}

func listMeta(_ name: String, _ queries: String...) -> [UInt8] {
  option(9, metaData(name, queries))
}

let structuredReplyOption = option(8)
let extendedHeadersOption = option(11)

/// One option reply as a client reads it.
struct Reply: Hashable {
  var option: UInt32
  var type: UInt32
  var payload: [UInt8] = []
}

enum ReplyType {
  static let ack: UInt32 = 1
  static let server: UInt32 = 2
  static let info: UInt32 = 3
  static let metaContext: UInt32 = 4
  static let unsup: UInt32 = 0x8000_0001
  static let policy: UInt32 = 0x8000_0002
  static let invalid: UInt32 = 0x8000_0003
  static let unknown: UInt32 = 0x8000_0006
  static let shutdown: UInt32 = 0x8000_0007
  static let tooBig: UInt32 = 0x8000_0009
  static let extHeaderReqd: UInt32 = 0x8000_000a
}

/// Splits the bytes of a server into option replies; what is left over comes last.
func parse(_ bytes: [UInt8]) -> (replies: [Reply], rest: [UInt8]) {
  var replies: [Reply] = []
  var position = 0
  let raw = bytes.span.bytes
  while bytes.count - position >= 20,
    raw.loadBigEndian(UInt64.self, at: position) == 0x0003_e889_0455_65a9
  {
    let option = raw.loadBigEndian(UInt32.self, at: position + 8)
    let type = raw.loadBigEndian(UInt32.self, at: position + 12)
    let count = Int(raw.loadBigEndian(UInt32.self, at: position + 16))
    let payload = Array(bytes[position + 20..<position + 20 + count])
    replies.append(Reply(option: option, type: type, payload: payload))
    position += 20 + count
  }
  return (replies, Array(bytes[position...]))
}

/// A server handshake with a client's eyes on it.
struct Talk {
  var handshake: ServerHandshake
  var sent: [UInt8] = []

  init(
    exports: [ExportDescription] = [disk], limits: RequestLimits = RequestLimits(),
    listIsAllowed: Bool = true
  ) {
    handshake = ServerHandshake(exports: exports, limits: limits, listIsAllowed: listIsAllowed)
    _ = handshake.start()
  }

  /// Sends `bytes` at once and returns how many of them were consumed.
  @discardableResult mutating func send(_ bytes: [UInt8]...) -> Int {
    let all = bytes.flatMap { $0 }
    let consumed = handshake.receive(all.span.bytes)
    sent += handshake.takeOutput()
    return consumed
  }

  /// The replies so far, without what follows them.
  var replies: [Reply] { parse(sent).replies }
  var types: [UInt32] { replies.map(\.type) }
  var rest: [UInt8] { parse(sent).rest }

  var negotiated: Negotiated? {
    if case .ready(let negotiated) = handshake.outcome { negotiated } else { nil }
  }

  var violation: ProtocolViolation? {
    if case .hangUp(let violation) = handshake.outcome { violation } else { nil }
  }
}

/// A writable export of 1 MiB with a name.
let disk = ExportDescription(
  name: "disk", description: "a disk", traits: ExportTraits(byteCount: 1 << 20),
  contexts: [.baseAllocation, .allocationDepth])

/// A second export without text and with one context.
let other = ExportDescription(
  name: "other", traits: ExportTraits(byteCount: 2 << 20, isReadOnly: true),
  contexts: [.baseAllocation])

/// SplitMix64: the same numbers for the same seed, so that a failure can be seen again.
struct SeededGenerator: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
    return mixed ^ (mixed >> 31)
  }
}
