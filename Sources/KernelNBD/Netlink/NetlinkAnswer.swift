// SPDX-License-Identifier: Apache-2.0
//
// What the kernel answers over generic netlink, taken apart with every length checked.
// Source: linux/netlink.h, linux/genetlink.h; the kernel's "Introduction to Netlink".
// This file performs no I/O.

/// One message of the kernel.
enum NetlinkAnswer: Hashable {
  /// Data, for the request of this sequence number.
  case message(sequence: UInt32, type: UInt16, command: UInt8, attributes: [NetlinkAttribute])
  /// The end of the answer: 0 or an errno, and what the kernel says to it.
  case end(sequence: UInt32, errno: Int32, text: String?)

  /// Messages of one datagram; the kernel puts far fewer into one.
  static let messagesMax = 256
  private static let error: UInt16 = 2  // NLMSG_ERROR
  private static let firstFamily: UInt16 = 0x10  // NLMSG_MIN_TYPE
  private static let isCapped: UInt16 = 0x100  // NLM_F_CAPPED
  private static let hasTexts: UInt16 = 0x200  // NLM_F_ACK_TLVS

  /// Takes a datagram apart. Control messages that end nothing are left out.
  static func all(in datagram: [UInt8]) throws(NetlinkFault) -> [NetlinkAnswer] {
    var answers: [NetlinkAnswer] = []
    var rest = datagram[...]
    while !rest.isEmpty {
      guard answers.count < messagesMax else { throw .tooMany("messages", max: messagesMax) }
      guard let length = rest.loadNative(UInt32.self, at: 0),
        let type = rest.loadNative(UInt16.self, at: 4),
        let flags = rest.loadNative(UInt16.self, at: 6),
        let sequence = rest.loadNative(UInt32.self, at: 8), rest.count >= 16
      else { throw .truncated("a message's header") }
      guard length >= 16, length <= rest.count else { throw .badLength("a message", length) }
      let payload = rest.dropFirst(16).prefix(Int(length) - 16)
      if type == error {
        answers.append(try end(sequence, flags, payload))
      } else if type >= firstFamily {
        guard let command = payload.first, payload.count >= 4 else {
          throw .truncated("the header of generic netlink")
        }
        answers.append(
          .message(
            sequence: sequence, type: type, command: command,
            attributes: try NetlinkAttribute.all(in: payload.dropFirst(4))))
      }
      rest = rest.dropFirst((Int(length) + 3) & ~3)
    }
    return answers
  }

  /// The errno, the header of the request, and, if the kernel says so, attributes with a text.
  private static func end(
    _ sequence: UInt32, _ flags: UInt16, _ payload: ArraySlice<UInt8>
  ) throws(NetlinkFault) -> NetlinkAnswer {
    guard let number = payload.loadNative(Int32.self, at: 0),
      let requestLength = payload.loadNative(UInt32.self, at: 4), payload.count >= 20
    else { throw .truncated("an error") }
    // A negative errno; anything else is a kernel that we do not understand.
    guard (-4095...0).contains(number) else { throw .badErrno(number) }
    guard flags & hasTexts != 0 else {
      return .end(sequence: sequence, errno: -number, text: nil)
    }
    var skipped = 20
    if flags & isCapped == 0, number != 0 {
      // The request is repeated before the attributes.
      guard requestLength >= 16, requestLength <= payload.count - 4 else {
        throw .badLength("a repeated request", requestLength)
      }
      skipped = 4 + (Int(requestLength) + 3) & ~3
    }
    let attributes = try NetlinkAttribute.all(in: payload.dropFirst(skipped))
    let text = attributes.first { $0.type == 1 }?.text  // NLMSGERR_ATTR_MSG
    return .end(sequence: sequence, errno: -number, text: text)
  }
}

/// One attribute: a number that says what it is, and bytes.
struct NetlinkAttribute: Hashable {
  /// Attributes side by side; no answer that we ask for has as many.
  static let attributesMax = 256

  let type: UInt16
  let payload: ArraySlice<UInt8>

  static func all(in bytes: ArraySlice<UInt8>) throws(NetlinkFault) -> [NetlinkAttribute] {
    var attributes: [NetlinkAttribute] = []
    var rest = bytes
    while !rest.isEmpty {
      guard attributes.count < attributesMax else {
        throw .tooMany("attributes", max: attributesMax)
      }
      guard let length = rest.loadNative(UInt16.self, at: 0),
        let type = rest.loadNative(UInt16.self, at: 2)
      else { throw .truncated("an attribute's header") }
      guard length >= 4, length <= rest.count else {
        throw .badLength("an attribute", UInt32(length))
      }
      // The two highest bits say how the payload is laid out, not what it is.
      attributes.append(
        NetlinkAttribute(type: type & 0x3fff, payload: rest.dropFirst(4).prefix(Int(length) - 4)))
      rest = rest.dropFirst((Int(length) + 3) & ~3)
    }
    return attributes
  }

  /// The attributes inside.
  func nested() throws(NetlinkFault) -> [NetlinkAttribute] { try Self.all(in: payload) }

  func number<Value: FixedWidthInteger>(_ type: Value.Type) throws(NetlinkFault) -> Value {
    guard payload.count == Value.bitWidth / 8, let value = payload.loadNative(type, at: 0) else {
      throw .badLength("attribute \(self.type)", UInt32(payload.count))
    }
    return value
  }

  /// As a text of printable characters: it goes to a terminal.
  var text: String {
    let text = String(decoding: payload.prefix { $0 != 0 }, as: UTF8.self)
    return String(
      text.unicodeScalars.filter { $0.value >= 0x20 && $0.value != 0x7f }.map(Character.init))
  }
}

/// An answer of the kernel that cannot be.
enum NetlinkFault: Error, Hashable {
  case truncated(String)
  case badLength(String, UInt32)
  case badErrno(Int32)
  case tooMany(String, max: Int)
  case missing(String)
}

extension NetlinkFault: CustomStringConvertible {
  var description: String {
    switch self {
    case .truncated(let what): "\(what) is cut off"
    case .badLength(let what, let length): "\(what) has \(length) bytes"
    case .badErrno(let number): "\(number) is no error number"
    case .tooMany(let what, let max): "more than \(max) \(what)"
    case .missing(let what): "\(what) is missing"
    }
  }
}
