// SPDX-License-Identifier: Apache-2.0
//
// The request header on the wire. Spec: proto.md, "Request message".

import BlockTypes
import NBDProtocol
import Testing

/// WRITE with FUA, cookie 0x0123456789abcdef, 512 bytes at 4096.
private let golden: [UInt8] = [
  0x25, 0x60, 0x95, 0x13, 0x00, 0x01, 0x00, 0x01,
  0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
  0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x00,
  0x00, 0x00, 0x02, 0x00,
]

/// Decodes outside of the macros, which cannot hold a span.
private func decode(_ bytes: [UInt8], at offset: Int = 0) -> RequestHeader? {
  RequestHeader(decoding: bytes.span.bytes, at: offset)
}

@Suite struct `a request header` {
  @Test func `is read from its golden vector`() {  // proto.md "Request message"
    let header = decode(golden)
    #expect(
      header
        == RequestHeader(
          flags: .fua, command: 1, cookie: 0x0123_4567_89ab_cdef, offset: 4096, length: 512))
  }

  @Test func `is read at any offset of a larger buffer`() {
    let bytes = [1, 2, 3] + golden + [4, 5]
    #expect(
      decode(bytes, at: 3)
        == decode(golden))
  }

  @Test func `keeps unknown flags and commands for the rules to judge`() throws {
    var bytes = golden
    bytes.replaceSubrange(4..<8, with: [0xff, 0xff, 0xab, 0xcd])
    let header = try #require(decode(bytes))
    #expect(header.flags.rawValue == 0xffff)
    #expect(header.command == 0xabcd)
  }

  @Test(arguments: [0, 1, 2, 3]) func `with a wrong magic byte is nil`(_ index: Int) {
    var bytes = golden
    bytes[index] ^= 1
    #expect(decode(bytes) == nil)
  }

  @Test(arguments: [0x1256_0953, 0x2560_9514, 0x21e4_1c71] as [UInt32])
  func `with a retired or foreign magic is nil`(_ magic: UInt32) {
    // proto.md "Reserved Magic values"; 0x21e41c71 is the extended header, not negotiated here
    let bytes = bigEndian(magic) + golden[4...]
    #expect(decode(bytes) == nil)
  }

  @Test func `of 27 bytes is our own mistake and traps`() async {
    await #expect(processExitsWith: .failure) {
      let bytes = [UInt8](repeating: 0, count: 27)
      _ = decode(bytes)
    }
  }

  @Test func `at a negative offset is our own mistake and traps`() async {
    await #expect(processExitsWith: .failure) {
      let bytes = [UInt8](repeating: 0, count: 40)
      _ = decode(bytes, at: -1)
    }
  }

  @Test func `has the nine commands of the specification and no tenth`() {
    // proto.md "Request types"
    #expect((0...8).compactMap { Command(rawValue: $0)?.rawValue } == Array(0...8))
    for number in [9, 10, 255, 256, 0x8000, 0xffff] as [UInt16] {
      #expect(Command(rawValue: number) == nil)
    }
  }
}
