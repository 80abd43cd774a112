// SPDX-License-Identifier: Apache-2.0
//
// Checks of what extended headers can say and compact ones cannot: lengths and extents of 64 bits,
// and BLOCK_STATUS by context, against a running server. Spec: proto.md of the branch
// extension-ext-header; tests are named by their line in nbd-checks.

import TestSupport
import Testing

private let base = "base:allocation"
private let depth = "qemu:allocation-depth"

@Suite struct `lengths of 64 bits` {
  static let byteCount: UInt64 = 6 << 30

  @Test func `ext.read-64bit-length: an error in step`() throws {
    let disk = try ServedDisk(byteCount: Self.byteCount)
    let client = try disk.client(structured: false, extended: true)
    for length in [1 << 32, 1 << 32 + 512, 1 << 63, .max] as [UInt64] {
      #expect(try client.callWide(.read, length: length).error == WireErrno.invalid)
    }
    let whole = try client.callWide(.read, flags: WireFlag.dontFragment, length: 5 << 30)
    #expect(whole.error == WireErrno.overflow)
    #expect(try client.read(0, 16).data == ServedDisk.expected(0, 16))
  }

  @Test(arguments: DiskKind.allCases)
  func `ext.trim-wz-64bit-oob: an error, nothing changed`(_ kind: DiskKind) throws {
    let disk = try ServedDisk(kind, byteCount: Self.byteCount)
    let client = try disk.client(structured: false, extended: true)
    for length in [1 << 33, 1 << 40 + 512, 1 << 63, .max] as [UInt64] {
      #expect(try client.callWide(.trim, length: length).error == WireErrno.invalid)
      #expect(try client.callWide(.cache, length: length).error == WireErrno.invalid)
      #expect(try client.callWide(.writeZeroes, length: length).error == WireErrno.noSpace)
    }
    #expect(try client.read(0, 4096).data == ServedDisk.expected(0, 4096))
  }

  @Test(arguments: DiskKind.allCases, [.writeZeroes, .trim] as [WireCommand])
  func `ext.wz-64bit: more than 4 GiB at once is done in full`(
    _ kind: DiskKind, _ command: WireCommand
  ) throws {
    let disk = try ServedDisk(kind, byteCount: Self.byteCount)
    let client = try disk.client(structured: false, extended: true, contexts: [base])
    let last = Self.byteCount - 65_536
    for offset in [65_536, 1 << 32 - 65_536, 1 << 32, last] as [UInt64] {
      #expect(try client.write(offset, filler(65_536)) == 0)
    }
    let outcome = try client.callWide(
      command, flags: WireFlag.fua, offset: 65_536, length: last - 65_536)
    #expect(outcome.error == 0)
    #expect(try client.callWide(.cache, length: Self.byteCount).error == 0)
    for offset in [65_536, 1 << 32 - 65_536, 1 << 32] as [UInt64] {
      #expect(try client.read(offset, 65_536).data == zeroes(65_536), "at \(offset)")
    }
    #expect(try client.read(0, 65_536).data == ServedDisk.expected(0, 65_536))
    #expect(try client.read(last, 65_536).data == filler(65_536))
    try client.disconnect()
    #expect(disk.daemon.stop() == 0)
    if kind == .qcow2 { try run("qemu-img", "check", "-q", disk.imagePath) }
  }

  @Test func `a request as long as the disk lets others have their turns`() throws {
    let disk = try ServedDisk(.qcow2, byteCount: 64 << 30)
    let greedy = try disk.client(structured: false, extended: true)
    let other = try disk.client()
    let request = greedy.prepareWide(6, length: 64 << 30)
    try greedy.socket.send(request.bytes)
    for number in 0..<50 {
      let start = ContinuousClock.now
      #expect(try other.read(UInt64(number) << 20, 4096).error == 0)
      #expect(ContinuousClock.now - start < .seconds(5))  // of a debug build, among others
    }
    #expect(try greedy.wait(request.cookie).error == 0)
  }
}

@Suite struct `block status with extended headers` {
  @Test(arguments: DiskKind.allCases)
  func `ext.block-status: 64-bit extents, whatever the length`(_ kind: DiskKind) throws {
    let disk = try ServedDisk(kind)
    let client = try disk.client(structured: false, extended: true, contexts: [base, depth])
    for length in [1, 4096, client.size] as [UInt64] {
      for flags in [0, WireFlag.requestOne] {
        let outcome = try client.callWide(.blockStatus, flags: flags, length: length)
        #expect(outcome.error == 0)
        #expect(outcome.extents.count == 2)
      }
    }
  }

  @Test(arguments: DiskKind.allCases)
  func `ext.block-status-64bit: a hole of more than 4 GiB is one extent`(_ kind: DiskKind) throws {
    let disk = try ServedDisk(kind, byteCount: 100 << 30)
    let client = try disk.client(structured: false, extended: true, contexts: [base])
    let id = try #require(client.contextIDs[base])
    for flags in [0, WireFlag.requestOne] {
      let outcome = try client.callWide(
        .blockStatus, flags: flags, offset: 1 << 20, length: client.size - 1 << 20)
      #expect(outcome.extents[id] == [WireExtent(length: client.size - 1 << 20, flags: 3)])
    }
  }

  @Test(arguments: DiskKind.allCases)
  func `ext.same-status: as by compact headers`(_ kind: DiskKind) throws {
    let disk = try ServedDisk(kind)
    let compact = try disk.client(contexts: [base, depth])
    #expect(try compact.write(8 << 20, filler(70_000)) == 0)
    #expect(try compact.call(.writeZeroes, offset: 256 << 10, length: 128 << 10).error == 0)
    let wide = try disk.client(structured: false, extended: true, contexts: [base, depth])
    for (offset, length) in [(0, UInt32(compact.size)), (1, 99), (300 << 10, 8 << 20)]
      as [(UInt64, UInt32)]
    {
      let one = try compact.call(.blockStatus, offset: offset, length: length)
      let two = try wide.call(.blockStatus, offset: offset, length: length)
      #expect(one.error == 0)
      #expect(one.extents == two.extents)
    }
  }

  @Test func `ext.bs-payload: only the contexts that were named`() throws {
    let disk = try ServedDisk(.qcow2)
    let client = try disk.client(structured: false, extended: true, contexts: [base, depth])
    let ids = client.contextIDs.values.sorted()
    for filter in [[ids[0]], [ids[1]], ids, ids.reversed()] {
      for flags in [0, WireFlag.requestOne] {
        let outcome = try client.callWide(
          .blockStatus, flags: flags, offset: 4096, length: 1 << 20, filter: filter)
        #expect(outcome.error == 0)
        #expect(Set(outcome.extents.keys) == Set(filter))
      }
    }
  }

  @Test func `ext.bs-payload-bad: EINVAL, the payload consumed`() throws {
    let disk = try ServedDisk(.qcow2)
    let client = try disk.client(structured: false, extended: true, contexts: [base])
    let id = try #require(client.contextIDs[base])
    for filter in [[], [id, id], [id + 1], [.max], Array(repeating: id, count: 5000)]
      as [[UInt32]]
    {
      let outcome = try client.callWide(.blockStatus, length: 4096, filter: filter)
      #expect(outcome.error == WireErrno.invalid)
    }
    for length in [0, client.size + 1, .max] as [UInt64] {
      let outcome = try client.callWide(.blockStatus, length: length, filter: [id])
      #expect(outcome.error == WireErrno.invalid)
    }
    #expect(try client.read(0, 16).error == 0)
  }

  @Test func `one context is coalesced over the changes of another`() throws {
    // proto.md "NBD_CMD_BLOCK_STATUS": SHOULD merge equal neighbours
    let disk = try ServedDisk(.qcow2)
    let client = try disk.client(contexts: [base])
    #expect(try client.write(0, filler(65_536)) == 0)  // depth 1 before depth 2
    let id = try #require(client.contextIDs[base])
    let outcome = try client.call(
      .blockStatus, flags: WireFlag.requestOne, length: UInt32(client.size))
    #expect(outcome.extents[id]?.first?.length == 1 << 20)
  }
}
