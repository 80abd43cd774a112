// SPDX-License-Identifier: Apache-2.0
//
// Connections that are lost, and what the client makes of it. Rule: what was acknowledged before a
// flush is durable after it (proto.md, "NBD_CMD_FLUSH"), or the flush says that it is not.

import BlockTypes
import Foundation
import NBDClient
import NBDProtocol
import TestSupport
import Testing

private let byteCount = 1 << 20

private func connect(
  _ server: ScriptedServer, reconnectSeconds: Int? = 10, replayByteCountMax: Int = 64 << 20
) async throws -> NBDConnection {
  let policy = reconnectSeconds.map {
    ClientOptions.Reconnect(
      secondsMax: $0, firstDelayMilliseconds: 10, replayByteCountMax: replayByteCountMax)
  }
  return try await NBDConnection.connect(
    NBDURI(endpoint: .unix(path: server.path)),
    ClientOptions(modeMax: .simple, reconnect: policy))
}

/// The fault of `body`; nil when it has none.
private func fault(_ body: () async throws -> Void) async -> NBDClientFault? {
  do {
    try await body()
    return nil
  } catch {
    return error as? NBDClientFault
  }
}

@Suite struct `A client that reconnects` {
  @Test func `repeats acknowledged writes that the server lost, before it flushes`() async throws {
    let disk = MemoryDisk(byteCount: byteCount)
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: UInt64(byteCount), mode: .simple)
      // The first server dies at the flush, with the writes in its cache.
      try disk.serve(side, crashesAt: { side.number == 0 && $0.command == 3 })
    }
    defer { server.stop() }
    let client = try await connect(server)
    try await client.write([UInt8](repeating: 1, count: 4096), at: 0)
    try await client.write([UInt8](repeating: 2, count: 4096), at: 2048)
    try await client.writeZeroes(at: 1024, byteCount: 512)
    try await client.flush()
    var wanted = [UInt8](repeating: 0, count: byteCount)
    wanted.replaceSubrange(0..<4096, with: repeatElement(1, count: 4096))
    wanted.replaceSubrange(2048..<6144, with: repeatElement(2, count: 4096))
    wanted.replaceSubrange(1024..<1536, with: repeatElement(0, count: 512))
    #expect(disk.durableBytes == wanted)
    #expect(disk.history == [1, 1, 6, 1, 1, 6, 3])
    try await client.disconnect()
  }

  @Test func `does not repeat what a flush made durable`() async throws {
    let disk = MemoryDisk(byteCount: byteCount)
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: UInt64(byteCount), mode: .simple)
      try disk.serve(side, crashesAt: { side.number == 0 && $0.command == 0 })
    }
    defer { server.stop() }
    let client = try await connect(server)
    try await client.write([1], at: 0)
    try await client.flush()
    try await client.write([2], at: 1)
    #expect(try await client.read(at: 0, byteCount: 3) == [1, 2, 0])
    #expect(disk.history == [1, 3, 1, 1, 0])
    try await client.disconnect()
  }

  @Test func `sends all requests in flight again, whole, and compares as if nothing was`()
    async throws
  {
    let disk = MemoryDisk(byteCount: byteCount)
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: UInt64(byteCount), mode: .simple)
      // Each of the first connections dies after some requests.
      var left = 7 + side.number
      try disk.serve(side) { _ in
        left -= 1
        return side.number < 5 && left == 0
      }
    }
    defer { server.stop() }
    let client = try await connect(server)
    try await withThrowingTaskGroup(of: Void.self) { group in
      for index in 0..<64 {
        group.addTask {
          let bytes = [UInt8](repeating: UInt8(index + 1), count: 4096)
          try await client.write(bytes, at: UInt64(index * 4096))
        }
      }
      try await group.waitForAll()
    }
    try await client.flush()
    let wanted = (0..<64).flatMap { [UInt8](repeating: UInt8($0 + 1), count: 4096) }
    #expect(Array(disk.durableBytes[..<(64 * 4096)]) == wanted)
    try await client.disconnect()
  }

  @Test func `tells at the next flush, once, of writes that it did not keep`() async throws {
    let disk = MemoryDisk(byteCount: byteCount)
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: UInt64(byteCount), mode: .simple)
      try disk.serve(side, crashesAt: { side.number == 0 && $0.command == 0 })
    }
    defer { server.stop() }
    let client = try await connect(server, replayByteCountMax: 8192)
    for index in 0..<3 {
      try await client.write([UInt8](repeating: 1, count: 4096), at: UInt64(index * 4096))
    }
    _ = try await client.read(at: 0, byteCount: 1)
    let first = await fault { try await client.flush() }
    guard case .writesLost = first else {
      Issue.record("\(String(describing: first))")
      return
    }
    #expect(await fault { try await client.flush() } == nil)
    try await client.disconnect()
  }

  @Test func `refuses an export that has become another one`() async throws {
    // (size, flags, blocks) of the second connection
    let others: [(UInt64, UInt16, [UInt32])] = [
      (1 << 19, 0x0ded, []), (1 << 21, 0x0ded, []), (1 << 20, 0x0def, []),
      (1 << 20, 0x0de9, []), (1 << 20, 0x0ded, [512, 4096, 1 << 20]),
    ]
    for (size, flags, blocks) in others {
      let server = try ScriptedServer { side in
        if side.number == 0 {
          try side.negotiate(byteCount: 1 << 20, mode: .simple)
          _ = try side.receiveRequest()
        } else {
          try side.negotiate(byteCount: size, flags: flags, mode: .simple, blocks: blocks)
          side.waitForEnd()
        }
      }
      defer { server.stop() }
      let client = try await connect(server)
      let seen = await fault { _ = try await client.read(at: 0, byteCount: 1) }
      guard case .exportChanged = seen else {
        Issue.record("\(size) \(flags): \(String(describing: seen))")
        continue
      }
      #expect(await fault { _ = try await client.read(at: 0, byteCount: 1) } == seen)
    }
  }

  @Test func `finds its contexts again when their ids have changed`() async throws {
    let server = try ScriptedServer { side in
      let contexts: [(id: UInt32, name: String)] =
        side.number == 0 ? [(1, "a:b"), (2, "c:d")] : [(7, "c:d"), (1, "a:b")]
      try side.negotiate(byteCount: 1 << 20, contexts: contexts)
      let request = try side.receiveRequest()
      guard side.number > 0 else { return }
      try side.chunk(request, 5, wire(UInt32(7), UInt32(512), UInt32(70)), isDone: false)
      try side.chunk(request, 5, wire(UInt32(1), UInt32(512), UInt32(10)))
      side.waitForEnd()
    }
    defer { server.stop() }
    let client = try await NBDConnection.connect(
      NBDURI(endpoint: .unix(path: server.path)),
      ClientOptions(reconnect: .init(secondsMax: 10, firstDelayMilliseconds: 10)))
    #expect(client.export.contexts == ["a:b", "c:d"])
    let statuses = try await client.blockStatus(at: 0, byteCount: 512)
    #expect(statuses.map { $0[0].status } == [10, 70])
  }

  @Test func `leaves a server that shuts down and asks the next one`() async throws {
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: 1 << 20, mode: .simple)
      let request = try side.receiveRequest()
      if side.number == 0 {
        try side.reply(request, error: 108)
      } else {
        try side.reply(request, data: [42])
      }
      side.waitForEnd()
    }
    defer { server.stop() }
    let client = try await connect(server)
    #expect(try await client.read(at: 5, byteCount: 1) == [42])
  }

  @Test func `gives up after its time, and says so to everybody`() async throws {
    let server = try ScriptedServer { side in
      if side.number == 0 {
        try side.negotiate(byteCount: 1 << 20, mode: .simple)
        let request = try side.receiveRequest()
        try side.reply(request)
        _ = try side.receiveRequest()
      }
    }
    defer { server.stop() }
    let client = try await connect(server, reconnectSeconds: 1)
    try await client.write([1], at: 0)
    let seen = await fault { _ = try await client.read(at: 0, byteCount: 1) }
    guard case .lost(let sentence) = seen else {
      Issue.record("\(String(describing: seen))")
      return
    }
    #expect(sentence.contains("within 1 seconds"))
    #expect(await fault { try await client.flush() } == seen)
    // The write that was acknowledged is told of, too.
    guard case .writesLost = await fault({ try await client.disconnect() }) else {
      Issue.record("the loss of an acknowledged write was silent")
      return
    }
  }

  @Test func `can be closed while it tries`() async throws {
    let server = try ScriptedServer { side in
      if side.number == 0 { try side.negotiate(byteCount: 1 << 20, mode: .simple) }
    }
    defer { server.stop() }
    let client = try await connect(server, reconnectSeconds: 60)
    let read = Task { try await client.read(at: 0, byteCount: 1) }
    try await Task.sleep(for: .milliseconds(200))
    let start = ContinuousClock.now
    try await client.disconnect()
    #expect(ContinuousClock.now - start < .seconds(30))  // other tests hold the pool
    #expect(await fault { _ = try await read.value } == .closed)
  }
}

/// A disk of data for copies: each block of 4096 bytes has its own number in it.
private struct NumberedDisk: CopySource {
  let byteCount: UInt64
  let blockByteCount: UInt64 = 4096

  func read(_ range: ByteRange) async throws -> [UInt8] { Self.bytes(range) }

  static func bytes(_ range: ByteRange) -> [UInt8] {
    stride(from: range.start, to: range.end, by: 4096).flatMap {
      [UInt8](repeating: UInt8(truncatingIfNeeded: $0 / 4096 % 251 + 1), count: 4096)
    }
  }

  func ranges(from offset: UInt64, byteCountMax: UInt64) async throws -> [CopyRange] {
    [CopyRange(ByteRange(start: offset, end: offset + byteCountMax), isZero: false)]
  }
}

@Suite struct `A copy to a server that dies` {
  @Test(arguments: [1, 4]) func `flushes on its way and arrives whole`(_ requests: Int)
    async throws
  {
    let size = 12 << 20
    let disk = MemoryDisk(byteCount: size)
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: UInt64(size), mode: .simple)
      var left = 6
      try disk.serve(side) { _ in
        left -= 1
        return side.number < 3 && left == 0
      }
    }
    defer { server.stop() }
    // Room for two checkpoints and what is in flight, not for the whole disk.
    let client = try await connect(server, replayByteCountMax: (4 + requests) << 20)
    let target = RemoteDisk(client, checkpointByteCount: 2 << 20)
    let source = NumberedDisk(byteCount: UInt64(size))
    let report = try await Copier(from: source, to: target, requestsMax: requests).run()
    #expect(report.dataByteCount == UInt64(size))
    #expect(disk.durableBytes == NumberedDisk.bytes(ByteRange(start: 0, end: UInt64(size))))
    #expect(disk.history.count { $0 == 3 } >= 3)
  }
}

@Suite struct `A client that does not reconnect` {
  @Test func `fails what was in flight and everything after it`() async throws {
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: 1 << 20, mode: .simple)
      _ = try side.receiveRequest()
    }
    defer { server.stop() }
    let client = try await connect(server, reconnectSeconds: nil)
    for _ in 0..<2 {
      guard case .lost = await fault({ try await client.write([1], at: 0) }) else {
        Issue.record("a lost write was not reported")
        return
      }
    }
    guard case .lost = await fault({ try await client.flush() }) else {
      Issue.record("a flush of a lost connection was no error")
      return
    }
  }

  @Test func `stops asking a server that shuts down`() async throws {
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: 1 << 20, mode: .simple)
      try side.reply(try side.receiveRequest(), error: 108)
      let last = try side.receiveRequest()
      guard last.command == 2 else { throw WireError.violation("no DISC") }
    }
    defer { server.stop() }
    let client = try await connect(server, reconnectSeconds: nil)
    let seen = await fault { _ = try await client.read(at: 0, byteCount: 1) }
    #expect(seen == .failed(.read, ServerFailure(number: 108)))
    #expect(
      await fault { _ = try await client.read(at: 0, byteCount: 1) }
        == .lost("the server is shutting down"))
  }
}

@Suite struct `A daemon that is killed and started again` {
  @Test(arguments: [20, 60, 150])
  func `is not noticed by who copies through it`(_ milliseconds: Int) async throws {
    let folder = try TemporaryFolder()
    let image = folder.path("disk.raw")
    try run("qemu-img", "create", "-q", "-f", "raw", image, "16M")
    let socket = folder.path("nbd.sock")
    func start() throws -> Daemon {
      try? FileManager.default.removeItem(atPath: socket)
      return try Daemon(
        requireTool("nbdkit"), ["-f", "-U", socket, "file", image], socketPath: socket,
        readiness: .socketAnswers)
    }
    var daemon = try start()
    let client = try await NBDConnection.connect(
      NBDURI(endpoint: .unix(path: socket)),
      ClientOptions(
        openSecondsMax: 5, reconnect: .init(secondsMax: 20, firstDelayMilliseconds: 20)))
    let writing = Task {
      try await withThrowingTaskGroup(of: Void.self) { group in
        for index in 0..<256 {
          if index >= 8 { try await group.next() }
          group.addTask {
            try await client.write(
              [UInt8](repeating: UInt8(index % 251 + 1), count: 65_536),
              at: UInt64(index) * 65_536)
          }
        }
        try await group.waitForAll()
      }
      try await client.flush()
    }
    for _ in 0..<3 {
      try await Task.sleep(for: .milliseconds(milliseconds))
      kill(daemon.processID, SIGKILL)
      daemon = try start()
    }
    try await writing.value
    try await client.disconnect()
    let wanted = (0..<256).flatMap { [UInt8](repeating: UInt8($0 % 251 + 1), count: 65_536) }
    #expect(FileManager.default.contents(atPath: image) == Data(wanted))
  }
}
