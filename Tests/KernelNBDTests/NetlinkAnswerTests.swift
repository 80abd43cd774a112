// SPDX-License-Identifier: Apache-2.0
//
// What the kernel answers: right answers, and ones that no kernel should give.
// Source: linux/netlink.h, linux/genetlink.h, linux/nbd-netlink.h.

import Testing

@testable import KernelNBD

private let family = NetlinkFamily(type: 0x1c, attributeMax: 10)

/// An error message: number, header of the request, attributes behind.
private func errorMessage(
  _ number: Int32, flags: UInt16 = 0, text: String? = nil, repeated: Int = 0, length: UInt32? = nil
) -> [UInt8] {
  var body: [UInt8] = []
  body.appendNative(number)
  body.appendNative(UInt32(16 + repeated))
  body += [UInt8](repeating: 0, count: 12 + repeated)
  if let text {
    body.appendNative(UInt16(4 + text.utf8.count + 1))
    body.appendNative(UInt16(1))
    body += Array(text.utf8) + [0]
    while body.count % 4 != 0 { body.append(0) }
  }
  var message: [UInt8] = []
  message.appendNative(length ?? UInt32(16 + body.count))
  message.appendNative(UInt16(2))
  message.appendNative(flags)
  message.appendNative(UInt32(1))
  message.appendNative(UInt32(0))
  return message + body
}

/// A message of the family with attributes, as the kernel builds it.
private func familyMessage(
  type: UInt16 = family.type, _ command: UInt8, _ fill: (inout NetlinkMessage) -> Void
) -> [UInt8] {
  var message = NetlinkMessage(type: type, command: command, version: 1, sequence: 1)
  fill(&message)
  return message.bytes
}

private func deviceList(_ devices: [(UInt32, UInt8)]) -> [UInt8] {
  familyMessage(5) { message in
    message.append(9) { list in
      for (index, connected) in devices {
        list.append(1) { item in
          item.append(1, index)
          item.append(2, connected)
        }
      }
    }
  }
}

@Suite struct `An answer of the kernel` {
  @Test func `tells the number of the driver's family and its last attribute`() throws {
    let bytes = familyMessage(type: 0x10, 1) {
      $0.append(2, text: "nbd")
      $0.append(1, UInt16(0x1c))
      $0.append(3, UInt32(1))
      $0.append(5, UInt32(10))
      $0.append(6) { $0.append(1) { $0.append(1, UInt32(1)) } }
    }
    #expect(try NetlinkFamily(NetlinkAnswer.all(in: bytes)) == family)
  }

  @Test func `tells which device was made, in one datagram with the end or before it`() throws {
    let made = familyMessage(1) { $0.append(1, UInt32(4)) }
    let answers = try NetlinkAnswer.all(in: made + errorMessage(0))
    #expect(answers.count == 2)
    #expect(answers[1] == .end(sequence: 1, errno: 0, text: nil))
    #expect(try NBDCommand.connectedIndex(answers, family) == 4)
  }

  @Test func `tells which devices are in use`() throws {
    let answers = try NetlinkAnswer.all(in: deviceList([(0, 0), (1, 1)]))
    #expect(try NBDCommand.isConnected(0, answers, family) == false)
    #expect(try NBDCommand.isConnected(1, answers, family) == true)
    #expect(try NBDCommand.isConnected(2, answers, family) == nil)
  }

  @Test func `refuses with an errno, and with a text where the request is left out`() throws {
    #expect(
      try NetlinkAnswer.all(in: errorMessage(-16))
        == [.end(sequence: 1, errno: 16, text: nil)])
    #expect(
      try NetlinkAnswer.all(in: errorMessage(-22, flags: 0x300, text: "no\u{1b}pe"))
        == [.end(sequence: 1, errno: 22, text: "nope")])
  }

  @Test func `has its text behind the request where that is repeated`() throws {
    #expect(
      try NetlinkAnswer.all(in: errorMessage(-22, flags: 0x200, text: "nope", repeated: 8))
        == [.end(sequence: 1, errno: 22, text: "nope")])
  }

  @Test func `may hold control messages that say nothing`() throws {
    var nothing: [UInt8] = []
    nothing.appendNative(UInt32(16))
    nothing.appendNative(UInt16(1))  // NLMSG_NOOP
    nothing += [UInt8](repeating: 0, count: 10)
    #expect(try NetlinkAnswer.all(in: nothing) == [])
  }
}

@Suite struct `A wrong answer of the kernel` {
  @Test func `is refused at every length that cuts it`() throws {
    for whole in [
      deviceList([(0, 0), (1, 1)]), errorMessage(-22, flags: 0x300, text: "nope"),
      errorMessage(-22, flags: 0x200, text: "nope", repeated: 8),
    ] {
      for count in 1..<whole.count {
        #expect(throws: NetlinkFault.self) {
          let answers = try NetlinkAnswer.all(in: Array(whole[..<count]))
          _ = try NBDCommand.connectedIndex(answers, family)
        }
      }
    }
  }

  @Test(arguments: [UInt32(0), 15, 37, 1 << 31, .max])
  func `with an impossible length is refused`(_ length: UInt32) {
    #expect(throws: NetlinkFault.badLength("a message", length)) {
      try NetlinkAnswer.all(in: errorMessage(0, length: length))
    }
  }

  @Test(arguments: [UInt8(0), 3, 200])
  func `with an attribute of an impossible length is refused`(_ length: UInt8) {
    var bytes = familyMessage(1) { $0.append(1, UInt32(4)) }
    bytes[20] = length
    #expect(throws: NetlinkFault.badLength("an attribute", UInt32(length))) {
      try NetlinkAnswer.all(in: bytes)
    }
  }

  @Test(arguments: [Int32(1), -4096, .min, .max])
  func `whose error is none is refused`(_ number: Int32) {
    #expect(throws: NetlinkFault.badErrno(number)) {
      try NetlinkAnswer.all(in: errorMessage(number))
    }
  }

  @Test func `that repeats more of the request than there is, is refused`() {
    var bytes = errorMessage(-22, flags: 0x200)
    bytes.storeNative(UInt32.max, at: 20)
    #expect(throws: NetlinkFault.badLength("a repeated request", .max)) {
      try NetlinkAnswer.all(in: bytes)
    }
  }

  @Test func `with too many messages or attributes is refused`() throws {
    let end = errorMessage(0)
    let most = [[UInt8]](repeating: end, count: NetlinkAnswer.messagesMax).flatMap { $0 }
    #expect(try NetlinkAnswer.all(in: most).count == NetlinkAnswer.messagesMax)
    #expect(throws: NetlinkFault.tooMany("messages", max: NetlinkAnswer.messagesMax)) {
      try NetlinkAnswer.all(in: most + end)
    }
    func attributes(_ count: Int) -> [UInt8] {
      familyMessage(1) { message in
        for _ in 0..<count { message.append(1, UInt32(4)) }
      }
    }
    _ = try NetlinkAnswer.all(in: attributes(NetlinkAttribute.attributesMax))
    #expect(throws: NetlinkFault.tooMany("attributes", max: NetlinkAttribute.attributesMax)) {
      try NetlinkAnswer.all(in: attributes(NetlinkAttribute.attributesMax + 1))
    }
  }

  @Test func `without the number or with one of another size is refused`() throws {
    let without = try NetlinkAnswer.all(in: familyMessage(1) { $0.append(2, UInt32(4)) })
    #expect(throws: NetlinkFault.missing("the number of the device")) {
      try NBDCommand.connectedIndex(without, family)
    }
    let wide = try NetlinkAnswer.all(in: familyMessage(1) { $0.append(1, UInt64(4)) })
    #expect(throws: NetlinkFault.badLength("attribute 1", 8)) {
      try NBDCommand.connectedIndex(wide, family)
    }
    let nameless = try NetlinkAnswer.all(
      in: familyMessage(type: 0x10, 1) { $0.append(5, UInt32(9)) })
    #expect(throws: NetlinkFault.missing("the number of the family")) {
      try NetlinkFamily(nameless)
    }
    #expect(throws: NetlinkFault.missing("the description of the family")) {
      try NetlinkFamily([])
    }
  }

  @Test func `of another family or command is no answer`() throws {
    let other = try NetlinkAnswer.all(
      in: familyMessage(type: 0x1d, 1) { $0.append(1, UInt32(4)) }
        + familyMessage(5) { $0.append(1, UInt32(4)) })
    #expect(throws: NetlinkFault.missing("the number of the device")) {
      try NBDCommand.connectedIndex(other, family)
    }
  }
}
