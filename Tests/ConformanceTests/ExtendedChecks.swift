// SPDX-License-Identifier: Apache-2.0
//
// Checks of extended headers, against a running server. Spec: proto.md of the branch
// extension-ext-header; tests are named by their line in nbd-checks.

import TestSupport
import Testing

private let base = "base:allocation"

@Suite struct `the negotiation of extended headers` {
  let disk: ServedDisk
  init() throws { disk = try ServedDisk() }

  @Test func `ext.negotiate: ACK`() throws {
    let client = try disk.greeted()
    #expect(try client.ask(11).isAck)
  }

  @Test func `ext.data: ERR_INVALID, and not negotiated`() throws {
    let client = try disk.greeted()
    #expect(try client.ask(11, [0]).type == OptionAnswer.invalid)
    try client.go()
    #expect(try client.read(0, 512).isStructured == false)
  }

  @Test func `ext.after-structured: extended headers take precedence`() throws {
    let client = try disk.client(structured: true, extended: true)
    #expect(try client.read(0, 512).data == ServedDisk.expected(0, 512))
  }

  @Test func `ext.duplicate: ACK or ERR_INVALID, and still negotiated`() throws {
    let client = try disk.greeted()
    try client.negotiateExtendedHeaders()
    #expect([OptionAnswer.ack, OptionAnswer.invalid].contains(try client.ask(11).type))
    try client.go()
    #expect(try client.read(0, 512).data == ServedDisk.expected(0, 512))
  }

  @Test func `ext.structured-after: ERR_EXT_HEADER_REQD`() throws {
    let client = try disk.greeted()
    try client.negotiateExtendedHeaders()
    #expect(try client.ask(8).type == OptionAnswer.extendedHeadersRequired)
    try client.go()
    #expect(try client.read(0, 512).data == ServedDisk.expected(0, 512))
  }

  @Test func `ext.meta-without-structured: contexts are selected`() throws {
    let client = try disk.client(structured: false, extended: true, contexts: [base])
    #expect(client.contextIDs.count == 1)
    #expect(try client.call(.blockStatus, length: 4096).error == 0)
  }

  @Test func `ext.flag-payload, flags.payload-needs-ext: only with contexts and headers`() throws {
    for (structured, extended, contexts, isTold) in [
      (false, true, [base], true), (false, true, [], false), (true, false, [base], false),
      (false, false, [], false),
    ] as [(Bool, Bool, [String], Bool)] {
      let client = try disk.client(
        structured: structured, extended: extended, contexts: contexts)
      #expect((client.transmissionFlags & ExportFlag.payload != 0) == isTold)
      #expect((client.transmissionFlags & ExportFlag.sendDF != 0) == (structured || extended))
    }
  }

  @Test func `EXPORT_NAME with extended headers: the end`() throws {  // reference/nbd.md 1.3
    let client = try disk.greeted()
    try client.negotiateExtendedHeaders()
    try client.sendOption(1)
    #expect(try client.socket.receiveUntilEnd().isEmpty)
    #expect(try disk.serves())
  }
}

@Suite struct `requests with extended headers` {
  @Test(arguments: DiskKind.allCases)
  func `ext.read: the same bytes, DF too`(_ kind: DiskKind) throws {
    // The client checks each chunk's cookie, offset and cover.
    let disk = try ServedDisk(kind)
    let client = try disk.client(structured: false, extended: true, blockSizes: false)
    let edge = ServedDisk.patternByteCount
    for (offset, count) in [
      (0, 512), (0, 1), (511, 2), (4097, 100_001), (edge - 70_000, 140_001), (edge + 5, 4096),
      (Int(ServedDisk.byteCount) - 1, 1), (0, 0),
    ] {
      for flags in [0, WireFlag.dontFragment, WireFlag.fua] {
        let outcome = try client.read(UInt64(offset), count, flags: flags)
        #expect(outcome.error == 0)
        #expect(outcome.data == ServedDisk.expected(offset, count), "\(count) bytes at \(offset)")
      }
    }
    #expect(try client.read(0, 32 << 20).data[0..<1 << 20] == ServedDisk.pattern)
  }

  @Test(arguments: DiskKind.allCases, [true, false])
  func `ext.write, ext.write-no-payload-flag: accepted with the flag and without`(
    _ kind: DiskKind, _ counts: Bool
  ) throws {
    let disk = try ServedDisk(kind)
    let client = try disk.client(structured: false, extended: true, blockSizes: false)
    client.countsPayloads = counts
    let data = filler(70_001)
    #expect(try client.write(12_345, data) == 0)
    #expect(try client.write(9, [], flags: WireFlag.fua) == 0)
    #expect(try client.read(12_345, 70_001).data == data)
    #expect(try client.flush() == 0)
    try client.disconnect()
  }

  @Test func `ext.errors: as in compact mode, in chunks`() throws {
    let disk = try ServedDisk()
    let client = try disk.client(structured: false, extended: true)
    let size = client.size
    #expect(try client.read(size, 1).error == WireErrno.invalid)
    #expect(try client.write(size, [1]) == WireErrno.noSpace)
    #expect(try client.call(.writeZeroes, offset: size, length: 1).error == WireErrno.noSpace)
    #expect(try client.call(.trim, offset: size, length: 1).error == WireErrno.invalid)
    #expect(try client.call(.cache, offset: size, length: 1).error == WireErrno.invalid)
    #expect(try client.call(.flush, length: 1).error == WireErrno.invalid)
    #expect(try client.call(.blockStatus, length: 1).error == WireErrno.invalid)
    #expect(try client.wait(client.send(99, length: 7)).error == WireErrno.invalid)
    let outcome = try client.read(0, 16, flags: WireFlag.noHole)
    #expect(outcome.error == WireErrno.invalid)
    #expect(outcome.isStructured)
    #expect(try client.read(0, 16).data == ServedDisk.expected(0, 16))
  }

  @Test func `ext.errors: EPERM on a read-only export, in step`() throws {
    let disk = try ServedDisk(readOnly: true)
    let client = try disk.client(structured: false, extended: true)
    for counts in [true, false] {
      client.countsPayloads = counts
      #expect(try client.write(0, filler(5000)) == WireErrno.notPermitted)
    }
    #expect(try client.call(.trim, length: 512).error == WireErrno.notPermitted)
    #expect(try client.call(.writeZeroes, length: 512).error == WireErrno.notPermitted)
    #expect(try client.read(0, 16).data == ServedDisk.expected(0, 16))
  }

  @Test func `ext.payload-on-others: EINVAL, the payload consumed`() throws {
    let disk = try ServedDisk()
    let client = try disk.client(structured: false, extended: true)
    for command in [0, 3, 4, 5, 6, 7, 8, 9, 77] as [UInt16] {
      for count in [0, 1, 512, 200_000] {
        let cookie = try client.send(
          command, flags: WireFlag.payloadLength, length: UInt32(count), payload: filler(count))
        #expect(try client.wait(cookie).error == WireErrno.invalid, "command \(command)")
      }
    }
    #expect(try client.read(0, 16).data == ServedDisk.expected(0, 16))
  }

  @Test func `ext.payload-too-large: the end`() throws {
    let disk = try ServedDisk()
    for (command, length) in [(1, 32 << 20 + 1), (0, 1 << 32), (7, .max), (1, 1 << 32 + 512)]
      as [(UInt16, UInt64)]
    {
      let client = try disk.client(structured: false, extended: true)
      try client.socket.send(
        client.prepareWide(command, flags: WireFlag.payloadLength, length: length).bytes)
      #expect(try client.socket.receiveUntilEnd().isEmpty)
    }
    #expect(try disk.serves())
  }

  @Test func `ext.compact-magic: the end`() throws {
    let disk = try ServedDisk()
    let client = try disk.client(structured: false, extended: true)
    try client.socket.send(WireClient.header(0, cookie: 1, length: 512) + zeroes(64))
    #expect(try client.socket.receiveUntilEnd().isEmpty)
    #expect(try disk.serves())
  }

  @Test func `one byte at a time, and many requests in one segment`() throws {
    let disk = try ServedDisk()
    let client = try disk.client(structured: false, extended: true, contexts: [base])
    let id = try #require(client.contextIDs[base])
    let slow = client.prepareWide(7, length: 65_536, filter: [id])
    for byte in slow.bytes { try client.socket.send([byte]) }
    #expect(try client.wait(slow.cookie).error == 0)
    var bytes: [UInt8] = []
    var cookies: Set<UInt64> = []
    for number in 0..<150 {
      let filtered = client.prepareWide(7, offset: UInt64(number), length: 9, filter: [id])
      let write = client.prepare(1, offset: 65_536, length: 900, payload: filler(900))
      let read = client.prepare(0, offset: UInt64(number * 300), length: 200)
      for request in [filtered, write, read] {
        cookies.insert(request.cookie)
        bytes += request.bytes
      }
    }
    try client.socket.send(bytes)
    while !cookies.isEmpty {
      let answer = try client.waitForAny()
      #expect(answer.outcome.error == 0)
      #expect(cookies.remove(answer.cookie) != nil)
    }
  }
}
