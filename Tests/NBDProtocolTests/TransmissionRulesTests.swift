// SPDX-License-Identifier: Apache-2.0
//
// Which requests are admitted, and how the others are refused.
// Spec: proto.md, "Request types", "Command flags", "Error values", "Size constraints".

import NBDProtocol
import Testing

private let size: UInt64 = 1 << 30
private let mebibyte: UInt64 = 1 << 20

/// Judges one request with structured replies and a context, on 1 GiB.
private func judge(
  _ command: Command, _ flags: CommandFlags = [], at offset: UInt64 = 0, count: UInt64 = 512,
  simple: Bool = false, contexts: MetaContextSet = .baseAllocation, agreed: Bool = false,
  _ change: (inout ExportTraits) -> Void = { _ in }
) -> Verdict {
  var traits = ExportTraits(byteCount: size)
  change(&traits)
  let negotiated = Negotiated(
    exportIndex: 0, structuredReplies: !simple, contexts: simple ? [] : contexts,
    blockSizesAgreed: agreed)
  return TransmissionRules(traits: traits, negotiated: negotiated).admit(
    RequestHeader(
      flags: flags, command: command.rawValue, cookie: 7, offset: offset, length: count))
}

private func refused(_ error: NBDErrno, drain: UInt64 = 0) -> Verdict {
  .refuse(error, payloadByteCount: drain)
}

private let ranged: [Command] = [.read, .trim, .cache, .writeZeroes, .blockStatus]

@Suite struct `the transmission rules` {
  @Test(arguments: ranged + [.write]) func `admit a sound request`(_ command: Command) {
    #expect(judge(command) == .execute(command))
    #expect(judge(command, at: 1, count: 1) == .execute(command))  // minimum block size 1
    #expect(judge(command, at: size - 1, count: 1) == .execute(command))
  }

  @Test(arguments: ranged + [.write])
  func `accept FUA on every command`(_ command: Command) {  // proto.md "NBD_CMD_FLAG_FUA"
    #expect(judge(command, .fua) == .execute(command))
    #expect(judge(command, .fua, simple: true) == judge(command, simple: true))
    #expect(judge(.flush, .fua, count: 0) == .execute(.flush))
  }

  @Test(arguments: [.read, .trim, .cache, .blockStatus] as [Command])
  func `refuse a range past the end with EINVAL`(_ command: Command) {  // proto.md "Error values"
    #expect(judge(command, at: size - 511) == refused(.EINVAL))
    #expect(judge(command, at: size, count: 1) == refused(.EINVAL))
    #expect(judge(command, at: UInt64.max, count: 1) == refused(.EINVAL))
    #expect(judge(command, at: UInt64.max - 511) == refused(.EINVAL))
    #expect(judge(command, at: 1 << 63) == refused(.EINVAL))
  }

  @Test func `refuse writing past the end with ENOSPC`() {  // proto.md "Error values"
    #expect(judge(.write, at: size - 511) == refused(.ENOSPC, drain: 512))
    #expect(judge(.write, at: UInt64.max) == refused(.ENOSPC, drain: 512))
    #expect(judge(.writeZeroes, at: size - 511) == refused(.ENOSPC))
    #expect(judge(.writeZeroes, at: UInt64.max - 511) == refused(.ENOSPC))
  }

  @Test(arguments: [.write, .trim, .writeZeroes] as [Command])
  func `refuse changes of a read-only export with EPERM`(_ command: Command) {
    // proto.md "NBD_FLAG_READ_ONLY", "Error values"
    let drain: UInt64 = command == .write ? 512 : 0
    #expect(judge(command) { $0.isReadOnly = true } == refused(.EPERM, drain: drain))
  }

  @Test(arguments: [.read, .cache, .blockStatus] as [Command])
  func `let a read-only export be read`(_ command: Command) {
    #expect(judge(command) { $0.isReadOnly = true } == .execute(command))
  }

  @Test func `let a read-only export be flushed`() {
    #expect(judge(.flush, count: 0) { $0.isReadOnly = true } == .execute(.flush))
  }

  @Test(arguments: ranged + [.write, .flush])
  func `refuse each unknown or foreign flag with EINVAL`(_ command: Command) {
    // proto.md "Command flags"
    let count: UInt64 = command == .flush ? 0 : 512
    for bit in 0..<16 {
      let flag = CommandFlags(rawValue: 1 << bit)
      let isKnown: Bool =
        switch (command, flag) {
        case (_, .fua), (.read, .dontFragment), (.blockStatus, .requestOne),
          (.writeZeroes, .noHole), (.writeZeroes, .fastZero):
          true
        default: false
        }
      let drain: UInt64 = command == .write ? 512 : 0
      let expected = isKnown ? Verdict.execute(command) : refused(.EINVAL, drain: drain)
      #expect(judge(command, flag, count: count) == expected, "flag bit \(bit)")
    }
  }

  @Test func `refuse DF without structured replies`() {  // proto.md "NBD_CMD_FLAG_DF"
    #expect(judge(.read, .dontFragment, simple: true) == refused(.EINVAL))
    #expect(judge(.read, .dontFragment) == .execute(.read))
  }

  @Test func `refuse FAST_ZERO where it is not advertised`() {
    // proto.md "NBD_CMD_FLAG_FAST_ZERO"
    #expect(judge(.writeZeroes, .fastZero) { $0.canFastZero = false } == refused(.EINVAL))
  }

  @Test func `admit a READ of 32 MiB and refuse a longer one`() {  // proto.md "Size constraints"
    #expect(judge(.read, count: 32 * mebibyte) == .execute(.read))
    #expect(judge(.read, count: 32 * mebibyte + 1) == refused(.EINVAL))
    #expect(judge(.read, count: 0xffff_ffff) == refused(.EINVAL))
  }

  @Test func `answer EOVERFLOW to a READ that DF makes too long`() {
    // proto.md "NBD_CMD_FLAG_DF": 65,536 bytes always work
    #expect(judge(.read, .dontFragment, count: 65_536) == .execute(.read))
    #expect(judge(.read, .dontFragment, count: 32 * mebibyte + 1) == refused(.EOVERFLOW))
    #expect(
      judge(.read, .dontFragment, at: size - 1, count: 33 * mebibyte) == refused(.EINVAL))
  }

  @Test func `drain a WRITE payload that is too long, up to 64 MiB, then hang up`() {
    // proto.md "Size constraints"
    #expect(judge(.write, count: 32 * mebibyte) == .execute(.write))
    #expect(
      judge(.write, count: 32 * mebibyte + 1) == refused(.EINVAL, drain: 32 * mebibyte + 1))
    #expect(judge(.write, count: 64 * mebibyte) == refused(.EINVAL, drain: 64 * mebibyte))
    #expect(judge(.write, count: 64 * mebibyte + 1) == .hangUp)
    #expect(judge(.write, count: 0xffff_ffff) == .hangUp)
    #expect(judge(.write, count: 0xffff_ffff) { $0.isReadOnly = true } == .hangUp)
  }

  @Test func `do not bound effect lengths by the payload`() {  // proto.md "Size constraints"
    for command in [.trim, .writeZeroes, .cache, .blockStatus] as [Command] {
      #expect(judge(command, count: size) == .execute(command))
    }
  }

  @Test func `let requests of length 0 succeed`() {  // proto.md: "SHOULD NOT disconnect"
    for command in [.read, .write, .trim, .cache, .writeZeroes] as [Command] {
      #expect(judge(command, count: 0) == .execute(command))
      #expect(judge(command, at: size, count: 0) == .execute(command))
    }
    #expect(judge(.read, at: size + 1, count: 0) == refused(.EINVAL))
    #expect(judge(.write, at: size + 1, count: 0) == refused(.ENOSPC))
    #expect(judge(.blockStatus, count: 0) == refused(.EINVAL))
  }

  @Test func `refuse BLOCK_STATUS without a context or without structured replies`() {
    // proto.md "NBD_CMD_BLOCK_STATUS"
    #expect(judge(.blockStatus, contexts: []) == refused(.EINVAL))
    #expect(judge(.blockStatus, simple: true) == refused(.EINVAL))
    #expect(judge(.blockStatus, contexts: .allocationDepth) == .execute(.blockStatus))
  }

  @Test func `refuse FLUSH with a range`() {  // proto.md "NBD_CMD_FLUSH": reserved
    #expect(judge(.flush, count: 0) == .execute(.flush))
    #expect(judge(.flush, at: 1, count: 0) == refused(.EINVAL))
    #expect(judge(.flush, count: 1) == refused(.EINVAL))
  }

  @Test func `refuse what the export cannot do`() {
    #expect(judge(.trim) { $0.canTrim = false } == refused(.EINVAL))
    #expect(judge(.writeZeroes) { $0.canWriteZeroes = false } == refused(.EINVAL))
    #expect(judge(.cache) { $0.canCache = false } == refused(.EINVAL))
    #expect(judge(.resize) == refused(.EINVAL))
    #expect(judge(.resize, at: 2 * size, count: 0) == refused(.EINVAL), "not offered")
  }

  @Test(arguments: [9, 10, 0xff, 0xffff] as [UInt16])
  func `refuse an unknown command without waiting for a payload`(_ number: UInt16) {
    // proto.md "Request types": only WRITE carries a payload
    let rules = TransmissionRules(
      traits: ExportTraits(byteCount: size), negotiated: Negotiated(exportIndex: 0))
    let header = RequestHeader(command: number, cookie: 1, offset: 0, length: 4096)
    #expect(rules.admit(header) == refused(.EINVAL))
  }

  @Test func `take DISC whatever its other fields say`() {  // proto.md "NBD_CMD_DISC"
    #expect(judge(.disconnect) == .disconnect)
    #expect(judge(.disconnect, CommandFlags(rawValue: 0xffff), at: 99, count: 99) == .disconnect)
  }

  @Test(arguments: ranged + [.write])
  func `hold clients to the block size that they asked for`(_ command: Command) {
    // proto.md "Size constraints": SHOULD be EINVAL
    let drain: UInt64 = command == .write ? 513 : 0
    let bigBlocks: (inout ExportTraits) -> Void = { $0.minimumBlockByteCount = 512 }
    #expect(judge(command, count: 513, agreed: true, bigBlocks) == refused(.EINVAL, drain: drain))
    #expect(judge(command, at: 512, agreed: true, bigBlocks) == .execute(command))
    #expect(judge(command, at: 1, count: 513, bigBlocks) == .execute(command))  // never asked
    guard command != .write else { return }
    #expect(judge(command, at: 1, agreed: true, bigBlocks) == refused(.EINVAL))
  }

  @Test func `let a client with a block size reach a ragged end`() {
    let ragged: (inout ExportTraits) -> Void = {
      $0.minimumBlockByteCount = 512
      $0.byteCount = 1000
    }
    #expect(judge(.read, at: 512, count: 488, agreed: true, ragged) == .execute(.read))
    #expect(judge(.read, at: 512, count: 487, agreed: true, ragged) == refused(.EINVAL))
    #expect(judge(.read, at: 0, count: 1000, agreed: true, ragged) == .execute(.read))
  }

  /// proto.md of the branch extension-resize, "NBD_CMD_RESIZE": the new size is in the offset.
  @Test(
    arguments: [
      (size, 0, Verdict.execute(.resize)), (2 * size, 0, .execute(.resize)),
      (UInt64(Int64.max) & ~4095, 0, .execute(.resize)), (1 << 63, 0, refused(.ENOSPC)),
      (size - 4096, 0, refused(.EPERM)), (0, 0, refused(.EPERM)), (size + 512, 0, refused(.EINVAL)),
      (2 * size, 1, refused(.EINVAL)),
    ] as [(UInt64, UInt64, Verdict)])
  func `let a disk grow where that is offered, and never shrink`(
    newSize: UInt64, count: UInt64, verdict: Verdict
  ) {
    #expect(
      judge(.resize, at: newSize, count: count) {
        $0.canResize = true
        $0.minimumBlockByteCount = 4096
      } == verdict)
  }

  @Test func `refuse to let a read-only disk grow`() {
    let verdict = judge(.resize, at: 2 * size, count: 0) {
      $0.canResize = true
      $0.isReadOnly = true
    }
    #expect(verdict == refused(.EPERM))
  }
}
