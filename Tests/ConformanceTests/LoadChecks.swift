// SPDX-License-Identifier: Apache-2.0
//
// Checks that one client cannot hurt another, against a running server.
// Spec: proto.md, "CAN_MULTI_CONN"; tests are named by their line in nbd-checks.

import TestSupport
import Testing

@Suite struct `clients of one server` {
  @Test(arguments: DiskKind.allCases)
  func `load.multi-conn-flush: a write on one connection is seen on every other`(
    _ kind: DiskKind
  ) throws {
    let disk = try ServedDisk(kind)
    let clients = try (0..<4).map { _ in try disk.client() }
    for (index, client) in clients.enumerated() {
      let offset = UInt64(index) * 100_000
      #expect(try client.write(offset, filler(70_000, UInt8(index))) == 0)
      #expect(try clients[(index + 1) % 4].flush() == 0)
      for other in clients {
        #expect(try other.read(offset, 70_000).data == filler(70_000, UInt8(index)))
      }
    }
  }

  @Test func `load.connections: many at once`() throws {
    let disk = try ServedDisk()
    let clients = try (0..<90).map { _ in try disk.client() }
    for client in clients { try client.send(.read, offset: 4096, length: 4096) }
    for client in clients {
      #expect(try client.waitForAny().outcome.data == ServedDisk.expected(4096, 4096))
    }
  }

  @Test func `load.connect-storm: clients that leave at each stage`() throws {
    let disk = try ServedDisk()
    for round in 0..<300 {
      let client = try WireClient(path: disk.socketPath)
      switch round % 5 {
      case 0: break
      case 1: try client.greet()
      case 2:
        try client.greet()
        try client.sendOption(7)
      case 3:
        try client.greet()
        try client.go()
      default:
        try client.greet()
        try client.go()
        try client.send(.read, length: 65_536)
      }
    }
    #expect(try disk.serves())
    #expect(disk.daemon.isAlive)
  }

  @Test(arguments: DiskKind.allCases)
  func `load.kill-mid-write: a client that dies inside a payload`(_ kind: DiskKind) throws {
    let disk = try ServedDisk(kind)
    let good = try disk.client()
    for count in [0, 1, 4095, 40_000] {
      let client = try disk.client()
      try client.socket.send(
        WireClient.header(1, cookie: 1, offset: 0, length: 65_536) + filler(count))
      client.socket.abandon()
      #expect(try good.read(65_536, 4096).data == ServedDisk.expected(65_536, 4096))
    }
    #expect(try disk.serves())
  }

  @Test func `load.kill-with-replies-pending: a client that dies with replies unread`() throws {
    let disk = try ServedDisk()
    for _ in 0..<10 {
      let client = try disk.client()
      for _ in 0..<32 { try client.send(.read, length: 1 << 20) }
      client.socket.abandon()
    }
    #expect(try disk.serves())
    #expect(disk.daemon.isAlive)
  }

  @Test func `load.stalled-reader: one that does not read stalls only itself`() throws {
    let disk = try ServedDisk()
    let stalled = try disk.client()
    var sent = 0
    for _ in 0..<4000 where sent >= 0 {  // 4 GiB of replies, as far as the socket takes requests
      let request = stalled.prepare(0, length: 1 << 20)
      guard try stalled.socket.sendSome(request.bytes[...]) == request.bytes.count else { break }
      sent += 1
    }
    #expect(sent > 0)
    let good = try disk.client(deadlineSeconds: 5)
    for index in 0..<200 {
      #expect(try good.read(UInt64(index) * 4096, 4096).error == 0)
    }
    #expect(try good.write(2 << 20, filler(1 << 20)) == 0)
  }

  @Test func `load.slow-payload: one that dribbles a payload stalls only itself`() throws {
    let disk = try ServedDisk()
    let slow = try disk.client()
    let request = slow.prepare(1, offset: 1 << 20, length: 65_536, payload: filler(65_536))
    var position = 0
    let good = try disk.client(deadlineSeconds: 5)
    for index in 0..<64 {
      let end = index == 63 ? request.bytes.count : min(position + 1000, request.bytes.count)
      try slow.socket.send(Array(request.bytes[position..<end]))
      position = end
      #expect(try good.read(UInt64(index) * 4096, 4096).error == 0)
      #expect(try good.write((4 << 20) + UInt64(index) * 512, filler(512)) == 0)
    }
    #expect(try slow.wait(request.cookie).error == 0)
    #expect(try good.read(1 << 20, 65_536).data == filler(65_536))
  }

  @Test func `load.slow-handshake: one byte at a time is served, and stalls nobody`() throws {
    let disk = try ServedDisk()
    let slow = try WireClient(path: disk.socketPath)
    _ = try slow.socket.receive(18)
    let bytes = wire(UInt32(3)) + WireClient.option(7, WireClient.infoData("", [3]))
    for byte in bytes {
      try slow.socket.send([byte])
      #expect(try disk.serves(deadlineSeconds: 5))
    }
    #expect(try slow.receiveAnswer(to: 7).isAck)
    #expect(try slow.read(0, 16).data == ServedDisk.expected(0, 16))
  }

  @Test func `load.silent-clients, load.handshake-timeout: silence keeps nobody out`() throws {
    let disk = try ServedDisk(.raw, "--handshake-timeout", "1")
    let silent = try (0..<150).map { _ in try WireSocket(connectingTo: disk.socketPath) }
    #expect(try disk.serves(deadlineSeconds: 8))
    // The first of them has its greeting, and is dropped within its second.
    silent[0].deadlineSeconds = 8
    #expect(try silent[0].receiveUntilEnd().count == 18)
  }

  @Test func `load.handshake-timeout: ends with the handshake`() throws {
    let disk = try ServedDisk(.raw, "--handshake-timeout", "1")
    let client = try disk.client()
    #expect(!client.socket.hasInput(within: 2))
    #expect(try client.read(0, 16).data == ServedDisk.expected(0, 16))
  }

  @Test(arguments: DiskKind.allCases)
  func `load.simultaneous-writers: disjoint writes are all there`(_ kind: DiskKind) throws {
    let disk = try ServedDisk(kind)
    let clients = try (0..<8).map { _ in try disk.client() }
    let chunk = 30_000
    for round in 0..<32 {
      for (index, client) in clients.enumerated() {
        let place = round * clients.count + index
        try client.send(
          .write, offset: UInt64(place * chunk), length: UInt32(chunk),
          payload: filler(chunk, UInt8(place & 0xff)))
      }
    }
    for client in clients {
      for _ in 0..<32 { #expect(try client.waitForAny().outcome.error == 0) }
    }
    for place in 0..<32 * clients.count {
      let data = try clients[0].read(UInt64(place * chunk), chunk).data
      #expect(data == filler(chunk, UInt8(place & 0xff)), "place \(place)")
    }
  }

  @Test(arguments: DiskKind.allCases)
  func `load.unaligned-neighbours: concurrent writes inside one block lose nothing`(
    _ kind: DiskKind
  ) throws {
    let disk = try ServedDisk(kind)
    let clients = try (0..<8).map { _ in try disk.client(blockSizes: false) }
    for round in 0..<40 {
      let start = UInt64(2 << 20) + UInt64(round) * 4096
      for (index, client) in clients.enumerated() {
        for part in 0..<8 {  // 64 writes of 64 bytes fill one block of 4096
          let place = part * clients.count + index
          try client.send(
            .write, offset: start + UInt64(place) * 64, length: 64,
            payload: [UInt8](repeating: UInt8(place + 1), count: 64))
        }
      }
      for client in clients {
        for _ in 0..<8 { #expect(try client.waitForAny().outcome.error == 0) }
      }
      let expected = (0..<4096).map { UInt8($0 / 64 + 1) }
      #expect(try clients[0].read(start, 4096).data == expected, "round \(round)")
    }
  }
}
