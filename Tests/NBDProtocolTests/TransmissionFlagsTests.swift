// SPDX-License-Identifier: Apache-2.0
//
// The flags that an export advertises. Spec: proto.md, "Transmission flags".

import NBDProtocol
import Testing

private func word(structured: Bool, _ change: (inout ExportTraits) -> Void) -> UInt16 {
  var traits = ExportTraits(byteCount: 1 << 20, canMultiConn: true)
  change(&traits)
  return traits.transmissionFlags(structuredReplies: structured).rawValue
}

@Suite struct `the transmission flags` {
  @Test func `are QEMU's words for the same abilities`() {
    // reference/nbd.md 1.7: -e4 with structured replies RW 0x0ded, RO 0x058f and 0x050f before
    #expect(word(structured: true) { _ in } == 0x0ded)
    #expect(word(structured: true) { $0.isReadOnly = true } == 0x058f)
    #expect(word(structured: false) { $0.isReadOnly = true } == 0x050f)
  }

  @Test func `DF is clear without structured replies`() {  // proto.md "NBD_FLAG_SEND_DF"
    #expect(word(structured: false) { _ in } == 0x0d6d)
  }

  @Test func `FAST_ZERO is clear without WRITE_ZEROES`() {  // proto.md "NBD_FLAG_SEND_FAST_ZERO"
    #expect(word(structured: false) { $0.canWriteZeroes = false } == 0x052d)
    #expect(word(structured: false) { $0.canFastZero = false } == 0x056d)
  }

  @Test func `each ability is one bit`() {
    #expect(word(structured: false) { $0.isRotational = true } == 0x0d7d)
    #expect(word(structured: false) { $0.canMultiConn = false } == 0x0c6d)
    #expect(word(structured: false) { $0.canTrim = false } == 0x0d4d)
    #expect(word(structured: false) { $0.canCache = false } == 0x096d)
  }

  @Test func `no reserved bit is ever set`() {  // proto.md "Transmission flags": bits 13-15, 9, 12
    for bits in 0..<64 {
      let flags = word(structured: true) {
        $0.isReadOnly = bits & 1 != 0
        $0.isRotational = bits & 2 != 0
        $0.canMultiConn = bits & 4 != 0
        $0.canTrim = bits & 8 != 0
        $0.canWriteZeroes = bits & 16 != 0
        $0.canCache = bits & 32 != 0
      }
      #expect(flags & 0xf200 == 0)
      #expect(flags & 1 == 1)
    }
  }

  @Test func `block sizes outside the rules are our own mistake and trap`() async {
    // proto.md "Size constraints"
    await #expect(processExitsWith: .failure) {
      _ = ExportTraits(byteCount: 0, minimumBlockByteCount: 3)
    }
    await #expect(processExitsWith: .failure) {
      _ = ExportTraits(byteCount: 0, minimumBlockByteCount: 131_072)
    }
    await #expect(processExitsWith: .failure) {
      _ = ExportTraits(byteCount: 0, minimumBlockByteCount: 8192, preferredBlockByteCount: 4096)
    }
  }
}
