// SPDX-License-Identifier: Apache-2.0
//
// Checks of WRITE_ZEROES and TRIM, against a running server. Spec: proto.md, "Request types";
// tests are named by their line in nbd-checks.

import TestSupport
import Testing

@Suite struct `WRITE_ZEROES on a server` {
  @Test(arguments: DiskKind.allCases, [0, WireFlag.noHole, WireFlag.fua])
  func `wz.basic, wz.unaligned, wz.fua: exactly the range reads as zero`(
    _ kind: DiskKind, _ flags: UInt16
  ) throws {
    let disk = try ServedDisk(kind)
    let client = try disk.client(blockSizes: false)
    var shadow = ServedDisk.expected(0, 2 << 20)
    for (offset, count) in [
      (0, 4096), (8191, 3), (20_000, 1), (65_530, 65_548), (200_001, 300_000),
      ((1 << 20) - 10, 20), (1_500_000, 100_000),
    ] {
      let outcome = try client.call(
        .writeZeroes, flags: flags, offset: UInt64(offset), length: UInt32(count))
      #expect(outcome.error == 0)
      shadow.replaceSubrange(offset..<offset + count, with: zeroes(count))
    }
    #expect(try client.read(0, shadow.count).data == shadow)
  }

  @Test func `wz.no-hole-allocates: the file holds the range`() throws {
    let disk = try ServedDisk(.raw)
    let client = try disk.client()
    let before = try disk.allocatedByteCount()
    let outcome = try client.call(
      .writeZeroes, flags: WireFlag.noHole, offset: 8 << 20, length: 4 << 20)
    #expect(outcome.error == 0)
    #expect(try disk.allocatedByteCount() >= before + (4 << 20))
    #expect(try client.read(8 << 20, 4 << 20).data == zeroes(4 << 20))
  }

  @Test func `wz.sparse: without NO_HOLE the file gives space back`() throws {
    let disk = try ServedDisk(.raw)
    let client = try disk.client()
    #expect(try client.write(8 << 20, filler(4 << 20)) == 0)
    #expect(try client.flush() == 0)
    let before = try disk.allocatedByteCount()
    #expect(try client.call(.writeZeroes, offset: 8 << 20, length: 4 << 20).error == 0)
    #expect(try client.flush() == 0)
    #expect(try disk.allocatedByteCount() <= before - (3 << 20))
  }

  @Test func `wz.oob: ENOSPC`() throws {
    let disk = try ServedDisk()
    let client = try disk.client()
    for offset in [client.size, client.size - 511, .max, .max - 511] {
      let outcome = try client.call(.writeZeroes, offset: offset, length: 512)
      #expect(outcome.error == WireErrno.noSpace)
    }
  }

  @Test func `wz.zero-length: no disconnect`() throws {
    let disk = try ServedDisk()
    let client = try disk.client()
    #expect(try client.call(.writeZeroes, length: 0).error == 0)
    #expect(try client.read(0, 16).data == ServedDisk.expected(0, 16))
  }

  @Test(arguments: DiskKind.allCases)
  func `wz.large: more than a payload can hold`(_ kind: DiskKind) throws {
    let disk = try ServedDisk(kind)
    let client = try disk.client()
    #expect(try client.write(39 << 20, filler(4096)) == 0)
    let outcome = try client.call(.writeZeroes, length: UInt32(client.size))
    #expect([0, WireErrno.overflow, WireErrno.invalid].contains(outcome.error))
    guard outcome.error == 0 else { return }
    #expect(try client.read(0, 1 << 20).data == zeroes(1 << 20))
    #expect(try client.read(39 << 20, 4096).data == zeroes(4096))
  }

  @Test(arguments: DiskKind.allCases)
  func `wz.fast, wz.fast-unadvertised: fast, or ENOTSUP, or EINVAL where it is not offered`(
    _ kind: DiskKind
  ) throws {
    let disk = try ServedDisk(kind)
    let client = try disk.client()
    let isOffered = client.transmissionFlags & ExportFlag.sendFastZero != 0
    let outcome = try client.call(.writeZeroes, flags: WireFlag.fastZero, length: 65_536)
    let data = try client.read(0, 65_536).data
    if isOffered {
      #expect([0, WireErrno.notSupported].contains(outcome.error))
    } else {
      #expect(outcome.error == WireErrno.invalid)
    }
    #expect(data == (outcome.error == 0 ? zeroes(65_536) : ServedDisk.expected(0, 65_536)))
  }

  @Test func `wz.bad-flag: EINVAL`() throws {
    let disk = try ServedDisk()
    let client = try disk.client()
    for bit in 2..<16 where bit != 4 {
      let outcome = try client.call(.writeZeroes, flags: 1 << bit, length: 512)
      #expect(outcome.error == WireErrno.invalid, "bit \(bit)")
    }
    #expect(try client.read(0, 512).data == ServedDisk.expected(0, 512))
  }
}

@Suite struct `TRIM on a server` {
  @Test(arguments: DiskKind.allCases, [0, WireFlag.fua])
  func `trim.basic, trim.unaligned, trim.fua: nothing outside the range changes`(
    _ kind: DiskKind, _ flags: UInt16
  ) throws {
    let disk = try ServedDisk(kind)
    let client = try disk.client(blockSizes: false)
    let all = ServedDisk.expected(0, 1 << 20)
    for (offset, count) in [(65_536, 65_536), (200_001, 1), (300_001, 100_003), (500_000, 5)] {
      let outcome = try client.call(
        .trim, flags: flags, offset: UInt64(offset), length: UInt32(count))
      #expect(outcome.error == 0)
    }
    let data = try client.read(0, 1 << 20).data
    for range in [0..<65_536, 131_072..<200_001, 200_002..<300_001, 400_004..<500_000] {
      #expect(data[range] == Array(all[range]))
    }
  }

  @Test func `in an overlay never lets the base show again`() throws {  // issue 2, item 4
    let disk = try ServedDisk(.qcow2)
    let client = try disk.client()
    #expect(try client.write(131_072, filler(65_536)) == 0)
    #expect(try client.call(.trim, offset: 131_072, length: 65_536).error == 0)
    let data = try client.read(131_072, 65_536).data
    #expect(data == zeroes(65_536) || data == filler(65_536))
  }

  @Test func `trim.oob: EINVAL`() throws {
    let disk = try ServedDisk()
    let client = try disk.client()
    for offset in [client.size, client.size - 511, .max, .max - 511] {
      let outcome = try client.call(.trim, offset: offset, length: 512)
      #expect(outcome.error == WireErrno.invalid)
    }
  }

  @Test func `trim.zero-length, trim.large: no disconnect`() throws {
    let disk = try ServedDisk()
    let client = try disk.client()
    #expect(try client.call(.trim, length: 0).error == 0)
    #expect(try client.read(0, 16).data == ServedDisk.expected(0, 16))
    _ = try client.call(.trim, length: UInt32(client.size))
    #expect(try client.read(0, 16).error == 0)
  }

  @Test func `trim.bad-flag: EINVAL`() throws {
    let disk = try ServedDisk()
    let client = try disk.client()
    for bit in 1..<16 {
      let outcome = try client.call(.trim, flags: 1 << bit, length: 512)
      #expect(outcome.error == WireErrno.invalid, "bit \(bit)")
    }
  }
}
