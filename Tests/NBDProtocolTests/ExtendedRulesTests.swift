// SPDX-License-Identifier: Apache-2.0
//
// Which requests with extended headers are admitted, and how the others are refused. Spec: proto.md
// of the branch extension-ext-header, "Command flags" (NBD_CMD_FLAG_PAYLOAD_LEN), "Request types".

import NBDProtocol
import Testing

private let size: UInt64 = 1 << 45
private let mebibyte: UInt64 = 1 << 20

/// Judges one request with extended headers on 32 TiB.
private func judge(
  _ command: UInt16, _ flags: CommandFlags = [], at offset: UInt64 = 0, count: UInt64 = 512,
  extended: Bool = true, contexts: MetaContextSet = [.baseAllocation, .allocationDepth],
  _ change: (inout ExportTraits) -> Void = { _ in }
) -> Verdict {
  var traits = ExportTraits(byteCount: size)
  change(&traits)
  let negotiated = Negotiated(
    exportIndex: 0, structuredReplies: true, extendedHeaders: extended, contexts: contexts)
  return TransmissionRules(traits: traits, negotiated: negotiated).admit(
    RequestHeader(flags: flags, command: command, cookie: 7, offset: offset, length: count))
}

private func judge(
  _ command: Command, _ flags: CommandFlags = [], at offset: UInt64 = 0, count: UInt64 = 512,
  contexts: MetaContextSet = [.baseAllocation, .allocationDepth],
  _ change: (inout ExportTraits) -> Void = { _ in }
) -> Verdict {
  judge(command.rawValue, flags, at: offset, count: count, contexts: contexts, change)
}

private func refused(_ error: NBDErrno, drain: UInt64 = 0) -> Verdict {
  .refuse(error, payloadByteCount: drain)
}

@Suite struct `the transmission rules with extended headers` {
  @Test(arguments: [.trim, .writeZeroes, .cache, .blockStatus] as [Command])
  func `admit effects of any length inside the disk`(_ command: Command) {  // ext.wz-64bit
    for count in [1 << 32, 1 << 32 + 1, 1 << 40, size] as [UInt64] {
      #expect(judge(command, count: count) == .execute(command))
    }
  }

  @Test func `never cut a length to 32 bits`() {  // ext.trim-wz-64bit-oob, ext.read-64bit-length
    for count in [size + 1, 1 << 63, .max, .max - 511] as [UInt64] {
      #expect(judge(.trim, at: 512, count: count) == refused(.EINVAL))
      #expect(judge(.cache, at: 512, count: count) == refused(.EINVAL))
      #expect(judge(.blockStatus, at: 512, count: count) == refused(.EINVAL))
      #expect(judge(.writeZeroes, at: 512, count: count) == refused(.ENOSPC))
      #expect(judge(.read, count: count) == refused(.EINVAL))
    }
    #expect(judge(.read, count: 1 << 32 + 512) == refused(.EINVAL))
    #expect(judge(.read, .dontFragment, count: 1 << 32 + 512) == refused(.EOVERFLOW))
    #expect(judge(.flush, count: 1 << 32) == refused(.EINVAL))
  }

  @Test func `admit WRITE with and without PAYLOAD_LEN`() {
    // ext.write; ext.write-no-payload-flag: QEMU's client never sets it
    #expect(judge(.write, .payloadLength) == .execute(.write))
    #expect(judge(.write, [.payloadLength, .fua]) == .execute(.write))
    #expect(judge(.write) == .execute(.write))
    #expect(judge(.write, .payloadLength, count: 32 * mebibyte) == .execute(.write))
    #expect(judge(.write, .payloadLength, at: size) == refused(.ENOSPC, drain: 512))
    #expect(judge(.write, .noHole) == refused(.EINVAL, drain: 512))
  }

  @Test func `hang up at a counted payload above 32 MiB, and at any above 64 MiB`() {
    // ext.payload-too-large
    for command in Array(0...9) + [77] as [UInt16] where command != 2 {
      for count in [32 * mebibyte + 1, 1 << 32, 1 << 32 + 512, .max] as [UInt64] {
        #expect(judge(command, .payloadLength, count: count) == .hangUp, "command \(command)")
      }
    }
    #expect(
      judge(.write, count: 32 * mebibyte + 1) == refused(.EINVAL, drain: 32 * mebibyte + 1))
    #expect(judge(.write, count: 1 << 32 + 512) == .hangUp)
  }

  @Test func `drain the counted payload of commands that take none`() {
    // ext.payload-on-others
    for command in [0, 3, 4, 5, 6, 8, 9, 77] as [UInt16] {
      #expect(judge(command, .payloadLength) == refused(.EINVAL, drain: 512))
    }
    #expect(judge(77, count: 512) == refused(.EINVAL))
  }

  @Test func `refuse PAYLOAD_LEN in the compact style`() {  // write.payload-flag-compact
    for command in [0, 3, 4, 5, 6, 7] as [UInt16] {
      #expect(judge(command, .payloadLength, extended: false) == refused(.EINVAL))
    }
    #expect(judge(1, .payloadLength, extended: false) == refused(.EINVAL, drain: 512))
  }

  @Test func `let BLOCK_STATUS name as many contexts as were selected`() {  // ext.bs-payload
    for count in [0, 8, 12, 16] as [UInt64] {
      #expect(
        judge(.blockStatus, .payloadLength, count: count)
          == .filterStatus(payloadByteCount: Int(count)))
    }
    #expect(judge(.blockStatus, .payloadLength, count: 17) == refused(.EINVAL, drain: 17))
    #expect(judge(.blockStatus, .payloadLength, count: 4096) == refused(.EINVAL, drain: 4096))
    #expect(
      judge(.blockStatus, [.payloadLength, .noHole], count: 12) == refused(.EINVAL, drain: 12))
    #expect(
      judge(.blockStatus, .payloadLength, count: 12, contexts: [])
        == refused(.EINVAL, drain: 12))
  }

  @Test func `take DISC whatever it says`() {
    #expect(judge(.disconnect, .payloadLength, count: .max) == .disconnect)
  }
}
