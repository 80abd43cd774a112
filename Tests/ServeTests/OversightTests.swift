// SPDX-License-Identifier: Apache-2.0
//
// What a running server tells about itself, and how a client of it is ended.
// Source: stratad(8), "CONTROL SOCKET"; strata(1).

import Foundation
import TestSupport
import Testing

private let allocation = "base:allocation"

@Suite struct `The status of an export` {
  @Test func `counts what was done, command by command`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    let client = try WireClient.entered(path: fixture.socket, contexts: [allocation])
    for offset in [0, 4_096, 8_192] as [UInt64] { _ = try client.read(offset, 4_096) }
    #expect(try client.write(0, [UInt8](repeating: 1, count: 8_192)) == 0)
    #expect(try client.write(8_192, [UInt8](repeating: 2, count: 8_192)) == 0)
    #expect(try client.call(.trim, offset: 0, length: 65_536).error == 0)
    #expect(try client.call(.blockStatus, offset: 0, length: 65_536).error == 0)
    #expect(try client.flush() == 0)
    #expect(try client.read(1 << 20, 4_096).error != 0)  // past the end

    let status = try fixture.status()
    #expect(status["export"].text == "disk.raw")
    #expect(status["disk-bytes"].number == 1 << 20)
    #expect(status["read-only"].isTrue == false)
    let expected: [String: (Int, Int, Int)] = [
      "read": (4, 12_288, 1), "write": (2, 16_384, 0), "trim": (1, 65_536, 0),
      "flush": (1, 0, 0), "block-status": (1, 65_536, 0), "cache": (0, 0, 0),
      "write-zeroes": (0, 0, 0),
    ]
    #expect(status["commands"].names == Set(expected.keys))
    for (name, (requests, bytes, errors)) in expected {
      #expect(status["commands"][name]["requests"].number == requests, "\(name)")
      #expect(status["commands"][name]["bytes"].number == bytes, "\(name)")
      #expect(status["commands"][name]["errors"].number == errors, "\(name)")
    }
    #expect(status["requests"]["total"].number == 9)
    #expect(status["requests"]["errors"].number == 1)
    #expect(status["requests"]["bytes"].number == 12_288 + 16_384 + 2 * 65_536)
    #expect(status["requests"]["in-flight"].number == 0)
    #expect(status["connections"]["now"].number == 1)
    #expect(status["connections"]["total"].number == 1)
    #expect(status["flushes"].number == 1)
    #expect(server.stop() == 0)
  }

  @Test func `counts system calls, and the kinds add up`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    let client = try WireClient.entered(path: fixture.socket)
    let before = try fixture.status()["system-calls"]
    for _ in 0..<50 { _ = try client.read(0, 4_096) }
    let status = try fixture.status()
    let after = status["system-calls"]
    // One request at a time: each is received, submitted and sent by a call of its own.
    for kind in ["io-submit", "receive", "send"] {
      let count = try #require(after[kind].number) - #require(before[kind].number)
      #expect(50...60 ~= count, "\(kind): \(count)")
    }
    let kinds = after.names.subtracting(["total"])
    #expect(kinds.compactMap { after[$0].number }.reduce(0, +) == after["total"].number)
    #expect(try #require(status["disk"]["completions"].number) >= 50)
    _ = server
  }

  @Test func `counts clusters that writes take, and pages that wait for a flush`() throws {
    let fixture = try ServeFixture()
    let image = fixture.folder.path("disk.qcow2")
    try runTool("qemu-img", "create", "-q", "-f", "qcow2", image, "16M")
    let server = try ServedProcess(
      stratad: [image, "--socket", fixture.socket, "--control", fixture.control]
    ).waitUntilReady()
    let client = try WireClient.entered(path: fixture.socket)
    #expect(try client.write(0, [UInt8](repeating: 1, count: 4_096)) == 0)
    #expect(try client.write(1 << 20, [UInt8](repeating: 1, count: 131_072)) == 0)
    #expect(try client.write(0, [UInt8](repeating: 2, count: 4_096)) == 0)
    let dirty = try fixture.status()
    #expect(dirty["allocations"]["clusters"].number == 3)
    #expect(dirty["allocations"]["runs"].number == 2)
    #expect(try #require(dirty["table-cache"]["dirty-pages"].number) > 0)
    #expect(try client.flush() == 0)
    let clean = try fixture.status()["table-cache"]
    #expect(clean["dirty-pages"].number == 0)
    #expect(try #require(clean["bytes"].number) > 0)
    #expect(clean["bytes-max"].number == 32 << 20)
    #expect(server.stop() == 0)
  }

  @Test func `counts a request of an unknown kind as an error`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    let client = try WireClient.entered(path: fixture.socket)
    #expect(try client.wait(client.send(77)).error != 0)
    let status = try fixture.status()
    #expect(status["requests"]["unknown"].number == 1)
    #expect(status["requests"]["total"].number == 1)
    #expect(status["requests"]["errors"].number == 1)
    _ = server
  }

  @Test func `tells how often polling paid`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled("--poll", "1000")
    let client = try WireClient.entered(path: fixture.socket)
    for _ in 0..<20 { _ = try client.read(0, 4_096) }
    let spin = try fixture.status()["spin"]
    #expect(try #require(spin["hits"].number) > 0)
    _ = server
  }

  @Test func `is shown to people in columns`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    let client = try WireClient.entered(path: fixture.socket)
    _ = try client.read(0, 4_096)
    let result = try runTool(ServedProcess.path(of: "strata"), "status", fixture.control)
    #expect(result.code == 0)
    let lines = result.output.split(separator: "\n")
    #expect(lines.first == "export       disk.raw, 1 MiB")
    #expect(lines.contains("command  requests  per second  bytes  errors"))
    #expect(lines.contains { $0.hasPrefix("read            1") })
    #expect(lines.contains { $0.hasPrefix("system calls per request: ") })
    let json = try runTool(ServedProcess.path(of: "strata"), "status", fixture.control, "--json")
    #expect(try Answer(json.output)["commands"]["read"]["requests"].number == 1)
    _ = server
  }
}

@Suite struct `The clients of an export` {
  @Test func `are listed with who they are and what they agreed on`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    let first = try WireClient.entered(path: fixture.socket, contexts: [allocation])
    let second = try WireSocket(connectingTo: fixture.socket)
    _ = try second.receive(18)
    #expect(try first.write(0, [UInt8](repeating: 1, count: 4_096)) == 0)
    _ = try first.read(1 << 20, 4_096)
    let clients = try fixture.clients()
    try #require(clients.count == 2)
    #expect(clients[0]["client"].number == 1)
    #expect(clients[0]["peer"]["kind"].text == "unix")
    #expect(clients[0]["peer"]["uid"].number == Int(getuid()))
    #expect(clients[0]["peer"]["gid"].number == Int(getgid()))
    #expect(clients[0]["peer"]["pid"].number == Int(getpid()))
    #expect(clients[0]["phase"].text == "transmission")
    #expect(clients[0]["structured-replies"].isTrue == true)
    #expect(clients[0]["contexts"].list.map(\.text) == [allocation])
    #expect(clients[0]["requests"].number == 2)
    #expect(clients[0]["errors"].number == 1)
    #expect(clients[0]["in-flight"].number == 0)
    #expect(try #require(clients[0]["bytes-received"].number) > 4_096 + 2 * 28)
    #expect(clients[1]["client"].number == 2)
    #expect(clients[1]["phase"].text == "handshake")
    #expect(clients[1]["bytes-sent"].number == 18)
    #expect(clients[1]["bytes-received"].number == 0)
    #expect(clients[1]["structured-replies"].isTrue == nil)
    _ = server
  }

  @Test func `show what they hold while they do not take their replies`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    let client = try WireClient.entered(path: fixture.socket, structured: false)
    for _ in 0..<4 { try client.send(.read, offset: 0, length: 1 << 20) }
    let deadline = Date(timeIntervalSinceNow: 5)
    var shown = try fixture.clients()[0]
    while shown["requests"].number != 4 && Date() < deadline { shown = try fixture.clients()[0] }
    let inFlight = try #require(shown["in-flight"].number)
    #expect(1...4 ~= inFlight)
    #expect(shown["buffered-bytes"].number == inFlight << 20)
    #expect(try fixture.status()["requests"]["in-flight"].number == inFlight)
    _ = server
  }

  @Test func `over TCP are their addresses`() throws {
    let fixture = try ServeFixture()
    let server = try ServedProcess(stratad: [
      fixture.image, "--format", "raw", "--tcp", "127.0.0.1:0", "--print-drive", "--control",
      fixture.control,
    ]).waitUntilReady()
    let port = try #require(server.outputText.firstMatch(of: /nbd:127\.0\.0\.1:([0-9]+),/)).output.1
    let client = try ServedProcess(["socat", "-u", "TCP4:127.0.0.1:\(port)", "STDOUT"])
    try fixture.waitForClients(1)
    let peer = try fixture.clients()[0]["peer"]
    #expect(peer["kind"].text == "tcp")
    #expect(try #require(peer["address"].text).hasPrefix("127.0.0.1:"))
    client.stop()
  }

  @Test func `are shown to people in columns`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    let program = try ServedProcess.path(of: "strata")
    #expect(try runTool(program, "clients", fixture.control).output == "no clients\n")
    let client = try WireClient.entered(path: fixture.socket)
    let lines = try runTool(program, "clients", fixture.control).output.split(separator: "\n")
    try #require(lines.count == 2)
    #expect(lines[0].hasPrefix("client  peer "))
    #expect(lines[1].hasPrefix("     1  uid \(getuid()), gid \(getgid()), pid \(getpid())  "))
    #expect(lines[1].contains("transmission  disk.raw  structured"))
    _ = (server, client)
  }
}

@Suite struct `A kicked client` {
  private func kick(_ fixture: ServeFixture, _ client: Int) throws -> Answer {
    try ControlConnection.ask(#"{"ask":"kick","client":\#(client)}"#, at: fixture.control)
  }

  @Test func `finds its connection ended, and the others go on`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    let first = try WireClient.entered(path: fixture.socket)
    let second = try WireClient.entered(path: fixture.socket)
    #expect(try first.write(4_096, [UInt8](repeating: 0xa5, count: 4_096)) == 0)
    #expect(try kick(fixture, 1)["kicked"].number == 1)
    #expect(try first.socket.receiveUntilEnd() == [])
    #expect(try second.read(4_096, 4_096).data.bytes == [UInt8](repeating: 0xa5, count: 4_096))
    #expect(try fixture.clients().map { $0["client"].number } == [2])
    // Its number is not used again.
    let third = try WireClient.entered(path: fixture.socket)
    #expect(try fixture.clients().map { $0["client"].number } == [2, 3])
    _ = third
    #expect(server.stop() == 0)
  }

  @Test func `may be one that negotiates, or that never takes its replies`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    let silent = try WireSocket(connectingTo: fixture.socket)
    let stalled = try WireClient.entered(path: fixture.socket, structured: false)
    for _ in 0..<16 { try stalled.send(.read, offset: 0, length: 1 << 20) }
    try fixture.waitForClients(2)
    #expect(try kick(fixture, 1)["kicked"].number == 1)
    #expect(try kick(fixture, 2)["kicked"].number == 2)
    try fixture.waitForClients(0)
    #expect(try fixture.status()["requests"]["in-flight"].number == 0)
    #expect(try silent.receiveUntilEnd().count == 18)
    let start = Date()
    #expect(server.stop() == 0)
    #expect(Date().timeIntervalSince(start) < 2)
  }

  @Test func `in the middle of a write leaves nothing behind`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    let client = try WireClient.entered(path: fixture.socket)
    let header = WireClient.header(
      WireCommand.write.rawValue, cookie: 1, offset: 0, length: 65_536)
    try client.socket.send(header + [UInt8](repeating: 7, count: 1_000))
    let deadline = Date(timeIntervalSinceNow: 5)
    while try fixture.clients()[0]["in-flight"].number != 1, Date() < deadline { usleep(1_000) }
    #expect(try kick(fixture, 1)["kicked"].number == 1)
    try fixture.waitForClients(0)
    #expect(try fixture.status()["requests"]["in-flight"].number == 0)
    #expect(server.stop() == 0)
    let bytes = try Data(contentsOf: URL(fileURLWithPath: fixture.image))
    #expect(bytes.allSatisfy { $0 == 0 })
  }

  @Test func `with requests on the disk leaves none of them, and a whole image`() throws {
    let fixture = try ServeFixture()
    let image = fixture.folder.path("disk.qcow2")
    try runTool("qemu-img", "create", "-q", "-f", "qcow2", image, "64M")
    let server = try ServedProcess(
      stratad: [image, "--socket", fixture.socket, "--control", fixture.control]
    ).waitUntilReady()
    for round in 1...20 {
      let client = try WireClient.entered(path: fixture.socket)
      let writes = (0..<64).map { number in
        WireClient.header(
          WireCommand.write.rawValue, cookie: UInt64(number),
          offset: UInt64((round + 3 * number) % 512) * 98_304, length: 65_536)
          + [UInt8](repeating: UInt8(round), count: 65_536)
      }
      _ = try client.socket.sendSome(writes.flatMap(\.self)[...])
      #expect(try kick(fixture, round)["kicked"].number == round)
      try fixture.waitForClients(0)
    }
    #expect(try fixture.status()["requests"]["in-flight"].number == 0)
    #expect(try fixture.status()["disk"]["in-flight"].number == 0)
    #expect(server.stop() == 0)
    #expect(try runTool("qemu-img", "check", "-q", image).code == 0)
  }

  @Test func `that does not exist is an error that names it`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    #expect(try kick(fixture, 7)["error"].text == "there is no client 7")
    let result = try runTool(ServedProcess.path(of: "strata"), "kick", fixture.control, "7")
    #expect(result.code == 1)
    #expect(result.error == "strata: \(fixture.control): there is no client 7\n")
    _ = server
  }

  @Test func `is ended from the command line`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    let client = try WireClient.entered(path: fixture.socket)
    let result = try runTool(ServedProcess.path(of: "strata"), "kick", fixture.control, "1")
    #expect(result.code == 0)
    #expect(result.output == "client 1 was ended\n")
    #expect(try client.socket.receiveUntilEnd() == [])
    _ = server
  }
}
