// SPDX-License-Identifier: Apache-2.0
//
// Checks of BLOCK_STATUS, against a running server. Spec: proto.md, "NBD_CMD_BLOCK_STATUS",
// "base:allocation"; tests are named by their line in nbd-checks.

import TestSupport
import Testing

private let base = "base:allocation"
private let depth = "qemu:allocation-depth"
private let hole: UInt32 = 1
private let zero: UInt32 = 2

/// The status of the whole disk, collected by asking from the first uncovered byte on.
private func walk(
  _ client: WireClient, _ context: String, flags: UInt16 = 0, from start: UInt64 = 0,
  stepMax: UInt64 = 1 << 30
) throws -> [(offset: UInt64, length: UInt64, status: UInt32)] {
  guard let id = client.contextIDs[context] else {
    throw WireError.violation("\(context) was not selected")
  }
  var extents: [(offset: UInt64, length: UInt64, status: UInt32)] = []
  var offset = start
  while offset < client.size {
    let length = UInt32(min(client.size - offset, stepMax))
    let outcome = try client.call(.blockStatus, flags: flags, offset: offset, length: length)
    guard outcome.error == 0, let told = outcome.extents[id] else {
      throw WireError.violation("no status at \(offset): errno \(outcome.error)")
    }
    for extent in told {
      let count = min(UInt64(extent.length), client.size - offset)
      extents.append((offset: offset, length: count, status: extent.flags))
      offset += count
    }
    guard extents.count < 1_000_000 else { throw WireError.violation("the walk has no end") }
  }
  return extents
}

@Suite struct `block status` {
  @Test(arguments: DiskKind.allCases)
  func `bs.basic, bs.all-contexts: one chunk for each context`(_ kind: DiskKind) throws {
    let disk = try ServedDisk(kind)
    let client = try disk.client(contexts: [base, depth])
    #expect(client.contextIDs.count == 2)
    // The client itself checks ids, lengths, and one chunk for each context.
    let outcome = try client.call(.blockStatus, length: UInt32(client.size))
    #expect(outcome.error == 0)
    #expect(outcome.extents.count == 2)
  }

  @Test(arguments: DiskKind.allCases)
  func `bs.req-one: one extent that ends inside the request`(_ kind: DiskKind) throws {
    let disk = try ServedDisk(kind)
    let client = try disk.client(contexts: [base, depth])
    for length in [1, 511, 512, 65_536, UInt32(client.size)] {
      let outcome = try client.call(
        .blockStatus, flags: WireFlag.requestOne, offset: 0, length: length)
      #expect(outcome.error == 0)
    }
  }

  @Test(arguments: DiskKind.allCases)
  func `bs.walk: a client always gets to the end`(_ kind: DiskKind) throws {
    let disk = try ServedDisk(kind)
    let client = try disk.client(contexts: [base])
    for flags in [0, WireFlag.requestOne, WireFlag.fua] {
      let total = try walk(client, base, flags: flags).reduce(0) { $0 + $1.length }
      #expect(total == client.size)
    }
  }

  @Test(arguments: DiskKind.allCases)
  func `bs.zero-is-zero, bs.written-not-zero: the status agrees with the data`(
    _ kind: DiskKind
  ) throws {
    let disk = try ServedDisk(kind)
    let client = try disk.client(contexts: [base])
    #expect(try client.write(8 << 20, filler(70_000)) == 0)
    #expect(try client.call(.writeZeroes, offset: 256 << 10, length: 128 << 10).error == 0)
    for extent in try walk(client, base) {
      var offset = extent.offset
      while offset < extent.offset + extent.length {
        let count = min(extent.offset + extent.length - offset, 4 << 20)
        let data = try client.read(offset, Int(count)).data
        if extent.status & zero != 0 { #expect(data == zeroes(data.count), "at \(offset)") }
        if extent.status & hole != 0 { #expect(data == zeroes(data.count), "at \(offset)") }
        offset += count
      }
    }
  }

  @Test(arguments: DiskKind.allCases)
  func `a hole is told as a hole, and data as data`(_ kind: DiskKind) throws {
    let disk = try ServedDisk(kind)
    let client = try disk.client(contexts: [base])
    let extents = try walk(client, base)
    #expect(extents.first?.status == 0)
    #expect(extents.last.map { $0.status & zero } == zero)
  }

  @Test func `allocation depth: 0 nowhere, 1 in the overlay, 2 in its base`() throws {
    // reference/nbd.md 2.1
    let disk = try ServedDisk(.qcow2)
    let client = try disk.client(contexts: [depth])
    #expect(try client.write(0, filler(65_536)) == 0)
    let extents = try walk(client, depth)
    #expect(extents.first?.status == 1)
    let middle: UInt64 = 512 << 10
    let inBase = extents.first { $0.offset <= middle && middle < $0.offset + $0.length }
    #expect(inBase?.status == 2)
  }

  @Test func `bs.oob: EINVAL`() throws {
    let disk = try ServedDisk()
    let client = try disk.client(contexts: [base])
    let size = client.size
    for (offset, length) in [(size, 1), (size - 511, 512), (UInt64.max - 511, 512), (1 << 63, 1)]
      as [(UInt64, UInt32)]
    {
      let outcome = try client.call(.blockStatus, offset: offset, length: length)
      #expect(outcome.error == WireErrno.invalid)
    }
    #expect(try client.call(.blockStatus, offset: 0, length: .max).error == WireErrno.invalid)
  }

  @Test func `bs.zero-length: no disconnect`() throws {
    let disk = try ServedDisk()
    let client = try disk.client(contexts: [base])
    #expect(try client.call(.blockStatus, length: 0).error == WireErrno.invalid)
    #expect(try client.read(0, 16).error == 0)
  }

  @Test func `bs.no-context, bs.no-structured: EINVAL`() throws {
    let disk = try ServedDisk()
    for structured in [true, false] {
      let client = try disk.client(structured: structured)
      #expect(try client.call(.blockStatus, length: 4096).error == WireErrno.invalid)
      #expect(try client.read(0, 16).error == 0)
    }
  }

  @Test func `bs.bad-flag: EINVAL`() throws {
    let disk = try ServedDisk()
    let client = try disk.client(contexts: [base])
    for bit in 0..<16 where bit != 0 && bit != 3 {
      let outcome = try client.call(.blockStatus, flags: 1 << bit, length: 4096)
      #expect(outcome.error == WireErrno.invalid, "bit \(bit)")
    }
  }

  @Test(arguments: DiskKind.allCases)
  func `bs.unaligned: progress and the right status all the same`(_ kind: DiskKind) throws {
    let disk = try ServedDisk(kind)
    let client = try disk.client(contexts: [base], blockSizes: false)
    for start in [1, 511, 65_535, (1 << 20) - 1, (1 << 20) + 1, client.size - 1] as [UInt64] {
      let total = try walk(client, base, from: start).reduce(0) { $0 + $1.length }
      #expect(total == client.size - start)
    }
    for start in [1, (1 << 20) - 1] as [UInt64] {
      let outcome = try client.call(.blockStatus, offset: start, length: 1)
      let id = try #require(client.contextIDs[base])
      #expect(outcome.extents[id]?.first?.flags == 0)  // a byte of data
    }
  }

  @Test func `bs.in-flight: each reply has the cookie of its request`() throws {
    let disk = try ServedDisk()
    let client = try disk.client(contexts: [base])
    var cookies: Set<UInt64> = []
    for index in 0..<32 {
      cookies.insert(try client.send(.blockStatus, offset: UInt64(index) << 16, length: 65_536))
    }
    while !cookies.isEmpty {
      let answer = try client.waitForAny()
      #expect(answer.outcome.error == 0)
      #expect(cookies.remove(answer.cookie) != nil)
    }
  }
}
