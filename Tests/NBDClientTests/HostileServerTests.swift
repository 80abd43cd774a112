// SPDX-License-Identifier: Apache-2.0
//
// Servers that lie, stall, or leave, against the whole client. The bounds of each field are in
// NBDProtocolTests; here it is that nothing hangs, crashes or is believed.

import Foundation
import NBDClient
import NBDProtocol
import TestSupport
import Testing

private func uri(_ server: ScriptedServer) -> NBDURI {
  NBDURI(endpoint: .unix(path: server.path))
}

private func fault(_ body: () async throws -> Void) async -> NBDClientFault? {
  do {
    try await body()
    return nil
  } catch {
    return error as? NBDClientFault
  }
}

@Suite struct `A hostile server` {
  @Test func `that says nothing is left after the time to open`() async throws {
    // Had the client waited for the server's end, it would say so.
    let server = try ScriptedServer { $0.waitForEnd() }
    defer { server.stop() }
    let seen = await fault {
      _ = try await NBDConnection.connect(uri(server), ClientOptions(openSecondsMax: 1))
    }
    guard case .timedOut = seen else {
      Issue.record("\(String(describing: seen))")
      return
    }
  }

  @Test func `that dribbles its handshake is left after the same time`() async throws {
    let server = try ScriptedServer { side in
      for byte in Array("NBDMAGICIHAVEOPT".utf8) {
        try side.send([byte])
        usleep(200_000)
      }
    }
    defer { server.stop() }
    let seen = await fault {
      _ = try await NBDConnection.connect(uri(server), ClientOptions(openSecondsMax: 1))
    }
    guard case .timedOut = seen else {
      Issue.record("\(String(describing: seen))")
      return
    }
  }

  @Test func `that is silent while the client goes does not hold it`() async throws {
    let server = try ScriptedServer { $0.waitForEnd() }
    defer { server.stop() }
    let opening = Task {
      try await NBDConnection.connect(uri(server), ClientOptions(openSecondsMax: 60))
    }
    try await Task.sleep(for: .milliseconds(100))
    opening.cancel()
    #expect(await fault { _ = try await opening.value } == .closed)
  }

  @Test func `that breaks the protocol loses all requests at once, and for good`() async throws {
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: 1 << 20)
      let request = try side.receiveRequest()
      var wrong = request
      wrong.cookie = 77
      try side.chunk(wrong, 0)
      side.waitForEnd()
    }
    defer { server.stop() }
    // Reconnecting to such a server would be no help.
    let client = try await NBDConnection.connect(
      uri(server), ClientOptions(reconnect: .init(secondsMax: 5)))
    for _ in 0..<2 {
      let seen = await fault { _ = try await client.read(at: 0, byteCount: 512) }
      #expect(seen == .violated(.unknownCookie(77)))
    }
  }

  @Test func `that answers before it was asked is a violation`() async throws {
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: 1 << 20)
      try side.send(wire(UInt32(0x668e_33ef), UInt16(1), UInt16(0), UInt64(1), UInt32(0)))
      side.waitForEnd()
    }
    defer { server.stop() }
    let seen = await fault {
      let client = try await NBDConnection.connect(uri(server))
      try await client.flush()
    }
    guard case .violated = seen else {
      Issue.record("\(String(describing: seen))")
      return
    }
  }

  @Test func `that closes after each byte of an answer is an error each time`() async throws {
    // CVE-2021-20286; the six cut points of fault injectors
    let data: [UInt8] = [1, 2, 3, 4]
    let whole = 20 + 8 + data.count
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: 1 << 20)
      let request = try side.receiveRequest()
      let bytes =
        wire(UInt32(0x668e_33ef), UInt16(1), UInt16(1), request.cookie, UInt32(12), UInt64(0))
        + data
      try side.send(Array(bytes[..<side.number]))
    }
    defer { server.stop() }
    for _ in 0..<whole {
      let client = try await NBDConnection.connect(uri(server))
      guard case .lost = await fault({ _ = try await client.read(at: 0, byteCount: 4) }) else {
        Issue.record("a cut answer was no error")
        return
      }
    }
    let client = try await NBDConnection.connect(uri(server))
    #expect(try await client.read(at: 0, byteCount: 4) == data)
  }

  @Test func `that never answers counts as lost after the time for that, if there is one`()
    async throws
  {
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: 1 << 20)
      side.waitForEnd()
    }
    defer { server.stop() }
    let client = try await NBDConnection.connect(uri(server), ClientOptions(replySecondsMax: 1))
    guard case .timedOut = await fault({ _ = try await client.read(at: 0, byteCount: 4) }) else {
      Issue.record("a silent server was waited for")
      return
    }
  }
}

@Suite struct `An address` {
  @Test func `that is abstract is reached`() async throws {
    let server = try ScriptedServer(isAbstract: true) { side in
      try side.negotiate(byteCount: 4096)
      side.waitForEnd()
    }
    defer { server.stop() }
    let text = server.path.replacingOccurrences(of: "\0", with: "%00")
    let client = try await NBDConnection.connect(try NBDURI("nbd+unix:///?socket=\(text)"))
    #expect(client.byteCount == 4096)
    try await client.disconnect()
  }

  @Test(arguments: ["127.0.0.1", "localhost"])
  func `on TCP is reached by number and by name`(_ host: String) async throws {
    let disk = MemoryDisk(byteCount: 1 << 20)
    let server = try ScriptedServer(
      tcp: { side in
        try side.negotiate(byteCount: 1 << 20, mode: .simple)
        try disk.serve(side)
      }, isTCP: true)
    defer { server.stop() }
    // "localhost" may be ::1 first, where nobody listens: the next address is tried.
    let client = try await NBDConnection.connect(try NBDURI("nbd://\(host):\(server.port)"))
    try await client.write([UInt8](repeating: 3, count: 1 << 20), at: 0)
    #expect(try await client.read(at: 1 << 19, byteCount: 2) == [3, 3])
    try await client.disconnect()
  }

  @Test func `where nobody answers yet is tried again, when asked to`() async throws {
    let server = try ScriptedServer(delaySeconds: 0.5) { side in
      try side.negotiate(byteCount: 4096)
      side.waitForEnd()
    }
    defer { server.stop() }
    guard case .unreachable = await fault({ _ = try await NBDConnection.connect(uri(server)) })
    else {
      Issue.record("nobody answered, and that was no error")
      return
    }
    let client = try await NBDConnection.connect(
      uri(server), ClientOptions(openSecondsMax: 20, keepsTryingToOpen: true))
    try await client.disconnect()
    let nowhere = NBDURI(endpoint: .unix(path: server.path + ".not"))
    let start = ContinuousClock.now
    guard
      case .unreachable = await fault({
        _ = try await NBDConnection.connect(
          nowhere, ClientOptions(openSecondsMax: 1, keepsTryingToOpen: true))
      })
    else {
      Issue.record("nobody answered, and that was no error")
      return
    }
    #expect(ContinuousClock.now - start > .milliseconds(900))
  }
}

@Suite struct `A request` {
  @Test func `that breaks a rule of the export is not sent`() async throws {
    let server = try ScriptedServer { side in
      // Read-only, and nothing but READ.
      try side.negotiate(byteCount: 4096, flags: 3, blocks: [512, 4096, 4096])
      let request = try side.receiveRequest()
      guard request.command == 2 else { throw WireError.violation("\(request.command) was sent") }
      try side.send([1])
    }
    defer { server.stop() }
    let client = try await NBDConnection.connect(uri(server))
    let faults = [
      await fault { try await client.write([1], at: 0) },
      await fault { try await client.trim(at: 0, byteCount: 512) },
      await fault { try await client.writeZeroes(at: 0, byteCount: 512) },
      await fault { try await client.cache(at: 0, byteCount: 512) },
      await fault { _ = try await client.blockStatus(at: 0, byteCount: 512) },
      await fault { _ = try await client.read(at: 1, byteCount: 512) },
      await fault { _ = try await client.read(at: 0, byteCount: 100) },
      await fault { _ = try await client.read(at: 4096, byteCount: 512) },
      await fault { _ = try await client.read(at: .max - 511, byteCount: 512) },
      await fault { _ = try await client.read(at: 0, byteCount: 8192) },
    ]
    for (index, fault) in faults.enumerated() {
      guard case .request = fault else {
        Issue.record("\(index): \(String(describing: fault))")
        continue
      }
    }
    try await client.flush()  // nothing to do: the export says so
    try await client.disconnect()
    #expect(await fault { _ = try await client.read(at: 0, byteCount: 512) } == .closed)
  }

  @Test func `longer than a payload is several`() async throws {
    let disk = MemoryDisk(byteCount: 1 << 20)
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: 1 << 20, mode: .simple, blocks: [1, 4096, 4096])
      try disk.serve(side)
    }
    defer { server.stop() }
    let client = try await NBDConnection.connect(uri(server))
    let bytes = (0..<10_000).map { UInt8(truncatingIfNeeded: $0 &* 7) }
    try await client.write(bytes, at: 99)
    #expect(try await client.read(at: 99, byteCount: 10_000) == bytes)
    #expect(disk.history == [1, 1, 1, 0, 0, 0])
    try await client.disconnect()
  }

  @Test func `in extended mode carries PAYLOAD_LEN on writes, and 64 bits`() async throws {
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: 1 << 40, mode: .extended)
      let write = try side.receiveRequest()
      guard write.flags == 0x20 else { throw WireError.violation("flags \(write.flags)") }
      try side.chunk(write, 0)
      let zeroes = try side.receiveRequest()
      guard zeroes.length == 1 << 40, zeroes.flags == 0 else {
        throw WireError.violation("\(zeroes.length)")
      }
      try side.chunk(zeroes, 0)
      side.waitForEnd()
    }
    defer { server.stop() }
    let client = try await NBDConnection.connect(uri(server))
    #expect(client.session.mode == .extended)
    try await client.write([1, 2], at: 3)
    try await client.writeZeroes(at: 0, byteCount: 1 << 40)
    try await client.disconnect()
  }

  @Test func `that is cancelled ends at once, and its answer is dropped`() async throws {
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: 1 << 20, mode: .simple)
      let slow = try side.receiveRequest()
      let fast = try side.receiveRequest()
      try side.reply(slow, data: [1])
      try side.reply(fast, data: [2])
      side.waitForEnd()
    }
    defer { server.stop() }
    let client = try await NBDConnection.connect(uri(server))
    let slow = Task { try await client.read(at: 0, byteCount: 1) }
    try await Task.sleep(for: .milliseconds(100))
    slow.cancel()
    #expect(await fault { _ = try await slow.value } == .cancelled)
    #expect(try await client.read(at: 1, byteCount: 1) == [2])
    let late = Task {
      while !Task.isCancelled { await Task.yield() }
      return try await client.read(at: 2, byteCount: 1)
    }
    late.cancel()
    #expect(await fault { _ = try await late.value } == .cancelled)
  }

  @Test func `beyond the number that may wait is refused`() async throws {
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: 1 << 20, mode: .simple)
      side.waitForEnd()
    }
    defer { server.stop() }
    let client = try await NBDConnection.connect(
      uri(server), ClientOptions(requestsInFlightMax: 2, requestsMax: 4))
    let waiting = (0..<4).map { index in
      Task { try await client.read(at: UInt64(index), byteCount: 1) }
    }
    try await Task.sleep(for: .milliseconds(200))
    #expect(
      await fault { _ = try await client.read(at: 9, byteCount: 1) }
        == .tooManyRequests(max: 4))
    for task in waiting { task.cancel() }
    for task in waiting { #expect(await fault { _ = try await task.value } == .cancelled) }
  }
}
