// SPDX-License-Identifier: Apache-2.0
//
// Checks of the request stream, of its order and of its end, against a running server.
// Spec: proto.md, "Transmission phase"; tests are named by their line in nbd-checks.

import TestSupport
import Testing

@Suite struct `the request stream of a server` {
  let disk: ServedDisk
  init() throws { disk = try ServedDisk() }

  @Test(arguments: [false, true])
  func `cmd.unknown, cmd.unknown-with-length, cache.unadvertised: EINVAL, in step`(
    _ structured: Bool
  ) throws {
    let client = try disk.client(structured: structured)
    for (command, length) in [(8, 0), (9, 0), (0x7f, 4096), (0xffff, .max)]
      as [(UInt16, UInt32)]
    {
      let outcome = try client.wait(client.send(command, length: length))
      #expect(outcome.error == WireErrno.invalid)
    }
    #expect(try client.read(0, 16).data == ServedDisk.expected(0, 16))
  }

  @Test func `cmd.bad-magic: the end`() throws {
    for magic in [0x2560_9514, 0x21e4_1c71, 0, 0x6744_6698] as [UInt32] {
      let client = try disk.client()
      try client.socket.send(wire(magic) + zeroes(24))
      #expect(try client.socket.receiveUntilEnd().isEmpty)
    }
    #expect(try disk.serves())
  }

  @Test func `cmd.split-bytes: one byte at a time`() throws {
    let client = try disk.client()
    let data = filler(100)
    let write = client.prepare(1, offset: 5000, length: 100, payload: data)
    let read = client.prepare(0, offset: 4990, length: 120)
    for byte in write.bytes { try client.socket.send([byte]) }
    #expect(try client.wait(write.cookie).error == 0)
    for byte in read.bytes { try client.socket.send([byte]) }
    let expected = ServedDisk.expected(4990, 10) + data + ServedDisk.expected(5100, 10)
    #expect(try client.wait(read.cookie).data == expected)
  }

  @Test func `cmd.batched: many requests in one segment`() throws {
    let client = try disk.client()
    var bytes: [UInt8] = []
    var reads: [UInt64: Int] = [:]
    for index in 0..<200 {
      let request = client.prepare(0, offset: UInt64(index * 700), length: 600)
      reads[request.cookie] = index * 700
      bytes += request.bytes
    }
    try client.socket.send(bytes)
    while !reads.isEmpty {  // order.data-by-cookie
      let answer = try client.waitForAny()
      let removed = reads.removeValue(forKey: answer.cookie)
      let offset = try #require(removed)
      #expect(answer.outcome.data == ServedDisk.expected(offset, 600))
    }
  }

  @Test func `cmd.batched: writes and their payloads in one segment`() throws {
    let client = try disk.client()
    var bytes: [UInt8] = []
    var cookies: Set<UInt64> = []
    for index in 0..<64 {
      let data = filler(777, UInt8(index))
      let request = client.prepare(
        1, offset: UInt64((2 << 20) + index * 1000), length: 777, payload: data)
      cookies.insert(request.cookie)
      bytes += request.bytes
    }
    try client.socket.send(bytes)
    while !cookies.isEmpty {
      let answer = try client.waitForAny()
      #expect(answer.outcome.error == 0)
      cookies.remove(answer.cookie)
    }
    for index in 0..<64 {  // load.unaligned-neighbours, on one connection
      let data = try client.read(UInt64((2 << 20) + index * 1000), 1000).data
      #expect(data == filler(777, UInt8(index)) + zeroes(223))
    }
  }

  @Test func `order.cookies: opaque and returned as they came`() throws {
    let client = try disk.client()
    for cookie in [0, .max, 1 << 63, 0x0123_4567_89ab_cdef] as [UInt64] {
      let sent = try client.send(.read, cookie: cookie, offset: 512, length: 512)
      #expect(try client.wait(sent).data == ServedDisk.expected(512, 512))
    }
  }

  @Test func `order.flush-covers: what was answered before a FLUSH is in the file`() throws {
    let client = try disk.client()
    #expect(try client.write(3 << 20, filler(1 << 20)) == 0)
    #expect(try client.flush() == 0)
    #expect(disk.daemon.stop() == 0 || ServedDisk.peer != nil)
  }
}

@Suite struct `the end of a session` {
  let disk: ServedDisk
  init() throws { disk = try ServedDisk() }

  @Test(arguments: DiskKind.allCases)
  func `disc.outstanding-writes: all are done`(_ kind: DiskKind) throws {
    let disk = try ServedDisk(kind)
    let client = try disk.client()
    let count = 64
    for index in 0..<count {
      let data = filler(65_536, UInt8(index))
      try client.send(.write, offset: UInt64(index) << 17, length: 65_536, payload: data)
    }
    try client.socket.send(WireClient.header(2, cookie: 0))
    _ = try client.socket.receiveUntilEnd()
    let second = try disk.client()
    for index in 0..<count {
      #expect(try second.read(UInt64(index) << 17, 65_536).data == filler(65_536, UInt8(index)))
    }
  }

  @Test func `disc.replies-first: whole replies, then the end`() throws {
    let client = try disk.client(structured: false)
    for _ in 0..<32 { try client.send(.read, length: 65_536) }
    try client.socket.send(WireClient.header(2, cookie: 0))
    #expect(try client.socket.receiveUntilEnd().count % (16 + 65_536) == 0)
  }

  @Test func `disc.half-close: whole replies, then the end`() throws {
    let client = try disk.client(structured: false)
    for _ in 0..<32 { try client.send(.read, length: 65_536) }
    client.socket.shutDownSending()
    #expect(try client.socket.receiveUntilEnd().count % (16 + 65_536) == 0)
    #expect(try disk.serves())
  }

  @Test func `disc.half-close-handshake: the end`() throws {
    let client = try disk.greeted()
    client.socket.shutDownSending()
    #expect(try client.socket.receiveUntilEnd().isEmpty)
    let silent = try WireClient(path: disk.socketPath)
    silent.socket.shutDownSending()
    _ = try silent.socket.receiveUntilEnd()
    #expect(try disk.serves())
  }
}
