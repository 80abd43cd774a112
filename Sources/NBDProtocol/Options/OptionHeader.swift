// SPDX-License-Identifier: Apache-2.0
//
// The options of the handshake and the header in front of each.
// Spec: proto.md, "Newstyle negotiation" and "Option types". This file performs no I/O.

/// The options that the specification defines.
enum Option: UInt32, Sendable {
  case exportName = 1
  case abort = 2
  case list = 3
  case peekExport = 4
  case startTLS = 5
  case info = 6
  case go = 7
  case structuredReply = 8
  case listMetaContext = 9
  case setMetaContext = 10
  case extendedHeaders = 11
}

/// The 16 bytes in front of an option's data.
struct OptionHeader: Hashable, Sendable {
  static var byteCount: Int { 16 }

  /// The number of the option, known or not.
  let option: UInt32
  /// Bytes of data that follow.
  let payloadByteCount: UInt32

  /// Decodes exactly 16 bytes; nil when they do not start with `IHAVEOPT`.
  init?(decoding bytes: [UInt8]) {
    var reader = PayloadReader(bytes)
    guard reader.readInteger(UInt64.self) == Magic.option,
      let option = reader.readInteger(UInt32.self),
      let payloadByteCount = reader.readInteger(UInt32.self)
    else { return nil }
    self.option = option
    self.payloadByteCount = payloadByteCount
  }
}
