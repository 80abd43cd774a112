// SPDX-License-Identifier: Apache-2.0
//
// The replies to options. Spec: proto.md, "Option reply types". This file performs no I/O.

/// The type of an option reply. Types with bit 31 are errors.
enum OptionReplyType: UInt32, Sendable {
  case ack = 1
  case server = 2
  case info = 3
  case metaContext = 4
  case errUnsup = 0x8000_0001
  case errPolicy = 0x8000_0002
  case errInvalid = 0x8000_0003
  case errPlatform = 0x8000_0004
  case errTLSReqd = 0x8000_0005
  case errUnknown = 0x8000_0006
  case errShutdown = 0x8000_0007
  case errBlockSizeReqd = 0x8000_0008
  case errTooBig = 0x8000_0009
  case errExtHeaderReqd = 0x8000_000a
}

/// An error reply: its type and one sentence for people.
struct OptionError: Error, Hashable, Sendable {
  let type: OptionReplyType
  let sentence: String

  init(_ type: OptionReplyType, _ sentence: String) {
    precondition(type.rawValue >= 0x8000_0000, "an option error of a type that is no error")
    self.type = type
    self.sentence = sentence
  }
}

extension [UInt8] {
  /// Appends an integer in the byte order of the wire.
  mutating func appendBigEndian<T: FixedWidthInteger & UnsignedInteger>(_ value: T) {
    for shift in stride(from: T.bitWidth - 8, through: 0, by: -8) {
      append(UInt8(truncatingIfNeeded: value >> shift))
    }
  }

  /// Appends an option reply: 20 bytes of header, then `payload`.
  mutating func appendOptionReply(
    to option: UInt32, _ type: OptionReplyType, payload: [UInt8] = []
  ) {
    appendBigEndian(Magic.optionReply)
    appendBigEndian(option)
    appendBigEndian(type.rawValue)
    appendBigEndian(UInt32(payload.count))
    append(contentsOf: payload)
  }
}
