// SPDX-License-Identifier: Apache-2.0
//
// Requests to the kernel's driver, byte by byte. Source: linux/netlink.h, linux/genetlink.h,
// linux/nbd-netlink.h. The vectors are written for a machine that stores the low byte first.

import NBDProtocol
import Testing

@testable import KernelNBD

private let family = NetlinkFamily(type: 0x1c, attributeMax: 10)

/// Settings of a disk of 1 GiB.
private func settings(
  _ wish: (inout AttachSettings.Wishes) -> Void = { _ in }
) throws -> AttachSettings {
  var export = ExportDetails(name: "")
  export.byteCount = 1 << 30
  export.flags = [.hasFlags, .sendFlush, .canMultiConn]
  var wishes = AttachSettings.Wishes()
  wish(&wishes)
  return try AttachSettings(export, wishes, pageByteCount: 4_096)
}

@Suite struct `A request to the kernel` {
  @Test func `asks for the family by its name and a zero, padded to four bytes`() {
    #expect(
      NetlinkFamily.question("nbd", sequence: 7).bytes == [
        28, 0, 0, 0, 0x10, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0,  // length, type, flags, sequence, port
        3, 1, 0, 0,  // CTRL_CMD_GETFAMILY
        8, 0, 2, 0, 0x6e, 0x62, 0x64, 0,  // CTRL_ATTR_FAMILY_NAME
      ])
  }

  @Test func `pads an attribute without counting the padding in its length`() {
    #expect(
      NetlinkFamily.question("nbd2", sequence: 0).bytes[20...] == [
        9, 0, 2, 0, 0x6e, 0x62, 0x64, 0x32, 0, 0, 0, 0,
      ])
  }

  @Test func `to connect has size, block size, flags and each socket in an item of its own`() throws
  {
    let message = try NBDCommand.connect(settings(), sockets: [5, 6], family, sequence: 1)
    #expect(
      message.bytes == [
        0x54, 0, 0, 0, 0x1c, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0,
        12, 0, 2, 0, 0, 0, 0, 0x40, 0, 0, 0, 0,  // SIZE_BYTES 2^30
        12, 0, 3, 0, 0, 2, 0, 0, 0, 0, 0, 0,  // BLOCK_SIZE_BYTES 512
        12, 0, 5, 0, 5, 1, 0, 0, 0, 0, 0, 0,  // SERVER_FLAGS
        28, 0, 7, 0x80,  // SOCKETS, nested: 4 + 2 * 12
        12, 0, 1, 0x80, 8, 0, 1, 0, 5, 0, 0, 0,  // NBD_SOCK_ITEM, NBD_SOCK_FD
        12, 0, 1, 0x80, 8, 0, 1, 0, 6, 0, 0, 0,
      ])
  }

  @Test func `to connect has what the user wishes, and nothing else`() throws {
    let message = try NBDCommand.connect(
      settings {
        $0.device = DeviceName(index: 3)
        $0.timeoutSeconds = 30
        $0.deadConnectionSeconds = 60
        $0.identifier = "vm1"
        $0.isReadOnly = true
      }, sockets: [5], family, sequence: 1)
    let attributes = try NetlinkAttribute.all(in: message.bytes[20...])
    #expect(attributes.map(\.type) == [1, 2, 3, 5, 4, 8, 10, 7])
    #expect(try attributes[0].number(UInt32.self) == 3)
    #expect(try attributes[3].number(UInt64.self) == 0b1_0000_0111)
    #expect(try attributes[4].number(UInt64.self) == 30)
    #expect(try attributes[5].number(UInt64.self) == 60)
    #expect(attributes[6].payload.elementsEqual([0x76, 0x6d, 0x31, 0]))
  }

  @Test func `to reconfigure has no flags and no block size, which stay`() throws {
    let message = try NBDCommand.reconfigure(
      2, settings(), sockets: [9], family, sequence: 4)
    #expect(message.bytes[16] == 3)
    let attributes = try NetlinkAttribute.all(in: message.bytes[20...])
    #expect(attributes.map(\.type) == [1, 2, 7])
    #expect(try attributes[0].number(UInt32.self) == 2)
  }

  @Test(arguments: [(NBDCommand.disconnect, UInt8(2)), (.status, 5)])
  func `about one device has its number`(_ command: NBDCommand, _ number: UInt8) {
    let message =
      command == .status
      ? NBDCommand.status(1, family, sequence: 2) : NBDCommand.disconnect(1, family, sequence: 2)
    #expect(
      message.bytes == [
        28, 0, 0, 0, 0x1c, 0, 5, 0, 2, 0, 0, 0, 0, 0, 0, 0, number, 1, 0, 0,
        8, 0, 1, 0, 1, 0, 0, 0,
      ])
  }
}
