// SPDX-License-Identifier: Apache-2.0
//
// Checks of READ and CACHE, against a running server. Spec: proto.md, "Request types";
// tests are named by their line in nbd-checks.

import TestSupport
import Testing

@Suite struct `READ from a server` {
  @Test(arguments: DiskKind.allCases, [false, true])
  func `read.simple, read.structured, read.modes-agree, read.unaligned: the same bytes`(
    _ kind: DiskKind, _ structured: Bool
  ) throws {
    let disk = try ServedDisk(kind)
    let client = try disk.client(structured: structured, blockSizes: false)
    let edge = ServedDisk.patternByteCount
    for (offset, count) in [
      (0, 512), (0, 1), (1, 1), (511, 2), (513, 4095), (4097, 100_001), (edge - 3, 7),
      (edge - 70_000, 140_001), (edge + 5, 4096), (65_535, 65_538),
      (Int(ServedDisk.byteCount) - 1, 1),
    ] {
      let outcome = try client.read(UInt64(offset), count)
      #expect(outcome.error == 0)
      #expect(outcome.data == ServedDisk.expected(offset, count), "\(count) bytes at \(offset)")
      #expect(outcome.isStructured == structured)
    }
  }

  @Test(arguments: DiskKind.allCases, [false, true])
  func `read.32M: a payload of 2^25 bytes`(_ kind: DiskKind, _ structured: Bool) throws {
    let disk = try ServedDisk(kind)
    let client = try disk.client(structured: structured)
    let outcome = try client.read(0, 32 << 20)
    #expect(outcome.data[0..<1 << 20] == ServedDisk.pattern)
    #expect(outcome.data[1 << 20..<32 << 20] == zeroes(31 << 20))
  }

  @Test func `zeroes that an overlay knows of are sent as a hole`() throws {
    // proto.md "NBD_REPLY_TYPE_OFFSET_HOLE"
    let disk = try ServedDisk(.qcow2)
    let client = try disk.client()
    #expect(try client.call(.writeZeroes, offset: 256 << 10, length: 256 << 10).error == 0)
    let outcome = try client.read(192 << 10, 384 << 10)
    #expect(outcome.holeByteCount == 256 << 10)
    #expect(outcome.contentChunkCount == 3)
    #expect(outcome.data[65_536..<65_536 * 5] == zeroes(65_536 * 4))
    #expect(outcome.data[0..<65_536] == ServedDisk.expected(192 << 10, 65_536))
  }

  @Test func `read.misaligned: EINVAL when a block size was agreed on`() throws {
    let disk = try ServedDisk(.raw, "--block-size", "512")
    let agreed = try disk.client()
    #expect(try agreed.read(1, 512).error == WireErrno.invalid)
    #expect(try agreed.read(0, 513).error == WireErrno.invalid)
    #expect(try agreed.read(512, 512).data == ServedDisk.expected(512, 512))
    let other = try disk.client(blockSizes: false)
    #expect(try other.read(1, 511).data == ServedDisk.expected(1, 511))
  }

  @Test(arguments: [false, true])
  func `read.oob, read.oob-wrap: EINVAL`(_ structured: Bool) throws {
    let disk = try ServedDisk()
    let client = try disk.client(structured: structured)
    for (offset, length) in [
      (client.size, 1), (client.size - 511, 512), (UInt64.max, 1), (UInt64.max - 511, 512),
      ((1 << 63) - 512, 1024), (1 << 63, 512),
    ] as [(UInt64, Int)] {
      #expect(try client.read(offset, length).error == WireErrno.invalid)
    }
    #expect(try client.read(0, 16).error == 0)
  }

  @Test func `read.too-big: an error, in step`() throws {
    let disk = try ServedDisk()
    let client = try disk.client(structured: false)
    for length in [.max, 1 << 31, (32 << 20) + 1] as [UInt32] {
      #expect(try client.call(.read, length: length).error == WireErrno.invalid)
    }
    #expect(try client.read(0, 16).error == 0)
  }

  @Test(arguments: [false, true])
  func `read.zero-length: no disconnect`(_ structured: Bool) throws {
    let disk = try ServedDisk()
    let client = try disk.client(structured: structured)
    #expect(try client.read(0, 0).error == 0)
    #expect(try client.read(client.size, 0).error == 0)
    #expect(try client.read(0, 16).data == ServedDisk.expected(0, 16))
  }

  @Test(arguments: [false, true])
  func `read.unknown-flag, read.foreign-flag, read.df-unnegotiated: EINVAL`(
    _ structured: Bool
  ) throws {
    let disk = try ServedDisk()
    let client = try disk.client(structured: structured)
    for bit in 1..<16 where bit != 2 || !structured {
      #expect(try client.read(0, 512, flags: 1 << bit).error == WireErrno.invalid, "bit \(bit)")
    }
    #expect(try client.read(0, 16).error == 0)
  }

  @Test func `read.fua: accepted`() throws {
    let disk = try ServedDisk()
    let outcome = try disk.client().read(0, 512, flags: WireFlag.fua)
    #expect(outcome.data == ServedDisk.expected(0, 512))
  }

  @Test(arguments: DiskKind.allCases)
  func `read.df: one content chunk up to 65,536 bytes and beyond`(_ kind: DiskKind) throws {
    let disk = try ServedDisk(kind)
    let client = try disk.client()
    let edge = ServedDisk.patternByteCount
    for (offset, count) in [(0, 65_536), (edge - 30_000, 65_536), (edge - 1, 2), (edge, 65_536)] {
      let outcome = try client.read(UInt64(offset), count, flags: WireFlag.dontFragment)
      #expect(outcome.error == 0)
      #expect(outcome.contentChunkCount == 1)
      #expect(outcome.data == ServedDisk.expected(offset, count))
    }
  }

  @Test func `read.df-too-large: EOVERFLOW or one chunk`() throws {
    let disk = try ServedDisk()
    let client = try disk.client()
    for count in [2 << 20, 32 << 20, 33 << 20] {
      let outcome = try client.read(0, count, flags: WireFlag.dontFragment)
      #expect(outcome.error == 0 || outcome.error == WireErrno.overflow)
      if outcome.error == 0 { #expect(outcome.contentChunkCount == 1) }
    }
  }

  @Test(arguments: [513, 1000, 1_000_001] as [UInt64])
  func `a disk that is no multiple of 512 bytes can be read and written to its end`(
    _ size: UInt64
  ) throws {
    let disk = try ServedDisk(.raw, byteCount: size)
    let client = try disk.client(blockSizes: false)
    // A server may count whole sectors, as QEMU does; what is behind the file reads as zero.
    let whole = (size + 511) & ~511
    #expect(client.size == size || client.size == whole)
    let all = try client.read(0, Int(client.size)).data
    #expect(all[0..<Int(size)] == ServedDisk.expected(0, Int(size)))
    #expect(all[Int(size)..<Int(client.size)] == zeroes(Int(client.size - size)))
    #expect(try client.write(size - 300, filler(300)) == 0)
    #expect(try client.read(size - 300, 300).data == filler(300))
    #expect(try client.read(size - 512, 212).data == ServedDisk.expected(Int(size) - 512, 212))
    #expect(try client.read(client.size, 1).error == WireErrno.invalid)
  }
}

@Suite struct `CACHE on a server` {
  let disk: ServedDisk
  init() throws { disk = try ServedDisk() }

  @Test func `cache.basic: no difference but time`() throws {
    let client = try disk.client()
    try #require(client.transmissionFlags & ExportFlag.sendCache != 0)
    #expect(try client.call(.cache, length: 1 << 20).error == 0)
    #expect(try client.call(.cache, flags: WireFlag.fua, offset: 1, length: 1).error == 0)
    #expect(try client.call(.cache, length: UInt32(client.size)).error == 0)
    #expect(try client.read(0, 4096).data == ServedDisk.expected(0, 4096))
  }

  @Test func `cache.oob: EINVAL`() throws {
    let client = try disk.client()
    #expect(try client.call(.cache, offset: client.size, length: 1).error == WireErrno.invalid)
    #expect(try client.call(.cache, offset: .max, length: 512).error == WireErrno.invalid)
  }

  @Test func `cache.bad-flag: EINVAL`() throws {
    let client = try disk.client()
    for bit in 1..<16 {
      let outcome = try client.call(.cache, flags: 1 << bit, length: 512)
      #expect(outcome.error == WireErrno.invalid, "bit \(bit)")
    }
  }
}
