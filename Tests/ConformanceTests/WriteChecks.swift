// SPDX-License-Identifier: Apache-2.0
//
// Checks of WRITE and FLUSH, against a running server. Spec: proto.md, "Request types",
// "Error values"; tests are named by their line in nbd-checks.

import TestSupport
import Testing

@Suite struct `WRITE to a server` {
  @Test(arguments: DiskKind.allCases)
  func `write.readback, write.unaligned: what was written, and nothing beside it`(
    _ kind: DiskKind
  ) throws {
    let disk = try ServedDisk(kind)
    let client = try disk.client(blockSizes: false)
    var shadow = ServedDisk.expected(0, 2 << 20)
    for (round, (offset, count)) in [
      (0, 4096), (1, 1), (511, 2), (4095, 4098), (65_535, 3), (100_001, 77_777),
      ((1 << 20) - 5, 10), ((1 << 20) + 4000, 200), (1_500_000, 300_001),
    ].enumerated() {
      let data = filler(count, UInt8(round))
      #expect(try client.write(UInt64(offset), data) == 0)
      shadow.replaceSubrange(offset..<offset + count, with: data)
    }
    #expect(try client.read(0, shadow.count).data == shadow)
  }

  @Test func `write.misaligned: EINVAL, in step, nothing written`() throws {
    let disk = try ServedDisk(.raw, "--block-size", "512")
    let client = try disk.client()
    #expect(try client.write(1, filler(512)) == WireErrno.invalid)
    #expect(try client.write(0, filler(511)) == WireErrno.invalid)
    #expect(try client.read(0, 1024).data == ServedDisk.expected(0, 1024))
    #expect(try disk.client(blockSizes: false).write(1, filler(3)) == 0)
  }

  @Test(arguments: DiskKind.allCases)
  func `write.last-byte: written and read`(_ kind: DiskKind) throws {
    let disk = try ServedDisk(kind)
    let client = try disk.client(blockSizes: false)
    #expect(try client.write(client.size - 1, [0x77]) == 0)
    #expect(try client.read(client.size - 2, 2).data == [0, 0x77])
  }

  @Test func `write.oob, write.oob-wrap: ENOSPC, payload consumed`() throws {
    let disk = try ServedDisk()
    let client = try disk.client()
    for offset in [client.size, client.size - 511, .max, .max - 511, (1 << 63) - 256] {
      #expect(try client.write(offset, filler(512)) == WireErrno.noSpace)
    }
    #expect(try client.read(client.size - 512, 512).data == zeroes(512))
  }

  @Test func `write.zero-length: no disconnect`() throws {
    let disk = try ServedDisk()
    let client = try disk.client()
    #expect(try client.write(0, []) == 0)
    #expect(try client.read(0, 16).data == ServedDisk.expected(0, 16))
  }

  @Test(arguments: [false, true])
  func `write.unknown-flag, write.payload-flag-compact: EINVAL, nothing written, in step`(
    _ structured: Bool
  ) throws {
    let disk = try ServedDisk()
    let client = try disk.client(structured: structured)
    for bit in 1..<16 {
      #expect(try client.write(0, filler(512), flags: 1 << bit) == WireErrno.invalid, "bit \(bit)")
    }
    #expect(try client.read(0, 512).data == ServedDisk.expected(0, 512))
  }

  @Test(arguments: DiskKind.allCases)
  func `write.fua: the data is there`(_ kind: DiskKind) throws {
    let disk = try ServedDisk(kind)
    let client = try disk.client()
    #expect(try client.write(12_288, filler(8192), flags: WireFlag.fua) == 0)
    #expect(try client.read(12_288, 8192).data == filler(8192))
  }

  @Test(arguments: DiskKind.allCases)
  func `write.32M: a payload of 2^25 bytes`(_ kind: DiskKind) throws {
    let disk = try ServedDisk(kind)
    let client = try disk.client()
    let data = [UInt8](repeating: 0xa5, count: 32 << 20)
    #expect(try client.write(1 << 20, data) == 0)
    #expect(try client.read(1 << 20, 32 << 20).data == data)
    #expect(try client.read((1 << 20) - 16, 16).data == ServedDisk.expected((1 << 20) - 16, 16))
  }

  @Test func `write.over-max: EINVAL with the payload consumed, or the end`() throws {
    let disk = try ServedDisk()
    let client = try disk.client()
    #expect(try client.write(0, zeroes((32 << 20) + 1)) == WireErrno.invalid)
    #expect(try client.read(0, 512).data == ServedDisk.expected(0, 512))
    let hopeless = try disk.client()
    try hopeless.send(.write, length: .max)
    #expect(try hopeless.socket.receiveUntilEnd().isEmpty)
    #expect(try disk.serves())
  }
}

@Suite struct `FLUSH on a server` {
  @Test(arguments: DiskKind.allCases, [false, true])
  func `flush.basic, flush.nonzero-range, flush.bad-flag`(_ kind: DiskKind, _ readOnly: Bool) throws
  {
    let disk = try ServedDisk(kind, readOnly: readOnly)
    let client = try disk.client()
    #expect(try client.flush() == 0)
    #expect(try client.call(.flush, flags: WireFlag.fua).error == 0)
    let ranged = try client.call(.flush, offset: 512, length: 512).error
    #expect(ranged == 0 || ranged == WireErrno.invalid)
    for bit in 1..<16 {
      #expect(try client.call(.flush, flags: 1 << bit).error == WireErrno.invalid, "bit \(bit)")
    }
    #expect(try client.read(0, 16).error == 0)
  }
}

@Suite struct `a read-only server` {
  @Test(arguments: DiskKind.allCases, [false, true])
  func `ro.*: EPERM for each change, and reads go on`(
    _ kind: DiskKind, _ structured: Bool
  ) throws {
    let disk = try ServedDisk(kind, readOnly: true)
    let client = try disk.client(structured: structured)
    #expect(try client.write(0, filler(4096)) == WireErrno.notPermitted)  // ro.write
    #expect(try client.write(0, filler(4096), flags: WireFlag.fua) == WireErrno.notPermitted)
    #expect(try client.call(.trim, length: 4096).error == WireErrno.notPermitted)  // ro.trim
    // ro.write-zeroes
    #expect(try client.call(.writeZeroes, length: 4096).error == WireErrno.notPermitted)
    #expect(try client.read(0, 4096).data == ServedDisk.expected(0, 4096))  // ro.reads
    #expect(try client.flush() == 0)
    #expect(try client.call(.cache, length: 4096).error == 0)
  }
}
