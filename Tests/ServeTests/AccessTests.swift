// SPDX-License-Identifier: Apache-2.0
//
// Who may use an export: by user and group, by number of connections, by what TLS has proved.
// Source: stratad(8), "Access"; unix(7), "SO_PEERCRED".

import Foundation
import TestSupport
import Testing

/// Runs nbdinfo as another user of this machine.
private func size(
  asUser user: UInt32, group: UInt32, _ uri: String
) throws -> (code: Int32, output: String, error: String) {
  try runTool(
    "setpriv", "--reuid", "\(user)", "--regid", "\(group)", "--clear-groups", "nbdinfo", "--size",
    uri)
}

@Suite(.enabled(if: getuid() == 0, "needs to become other users"))
struct `An export for some users` {
  private func serve(_ fixture: ServeFixture, _ more: String...) throws -> ServedProcess {
    chmod(fixture.folder.root, 0o755)
    return try ServedProcess(
      stratad: fixture.arguments + ["--socket-mode", "0666"] + more
    ).waitUntilReady()
  }

  // CVE-2013-6410: a list is of numbers, not of beginnings.
  @Test func `CVE-2013-6410: is for those whose number is listed, and not for those that begin so`()
    throws
  {
    let fixture = try ServeFixture()
    let server = try serve(fixture, "--allow-uid", "1234")
    let uri = "nbd+unix:///?socket=\(fixture.socket)"
    #expect(try size(asUser: 1_234, group: 9, uri).output == "1048576\n")
    for other in [123, 12_345, 1_235, 0] as [UInt32] {
      let result = try size(asUser: other, group: 1_234, uri)
      #expect(result.code != 0 && result.output == "", "user \(other)")
    }
    #expect(server.stop() == 0)
  }

  @Test func `is for groups, too, and tells the others why`() throws {
    let fixture = try ServeFixture()
    let server = try serve(fixture, "--allow-uid", "nobody", "--allow-gid", "4321")
    let uri = "nbd+unix:///?socket=\(fixture.socket)"
    #expect(try size(asUser: 7, group: 4_321, uri).output == "1048576\n")
    #expect(try size(asUser: 65_534, group: 7, uri).output == "1048576\n")
    let client = try WireClient(path: fixture.socket)
    try client.greet()
    try client.sendOption(3)
    let reply = try client.receiveOptionReply()
    #expect(reply.type == 0x8000_0002)
    #expect(
      String(decoding: reply.payload, as: UTF8.self)
        == "not allowed: user 0, group 0 may not use the export")
    #expect(server.stop() == 0)
  }

  @Test func `is not seen by the others, who see the rest`() throws {
    let fixture = try ServeFixture()
    let other = fixture.disk("other.raw")
    let server = try serve(fixture, "--export", "secret=\(other),format=raw,allow-uid=1234")
    let uri = "nbd+unix:///?socket=\(fixture.socket)"
    let listed = try runTool("nbdinfo", "--list", uri).output
    #expect(listed.contains("\"disk.raw\""))
    #expect(!listed.contains("secret"))
    let client = try WireClient(path: fixture.socket)
    try client.greet()
    try client.sendOption(7, wire(UInt32(6)) + Array("secret".utf8) + wire(UInt16(0)))
    #expect(try client.receiveOptionReply().type == 0x8000_0002)
    try client.go("", requests: [])
    #expect(
      try size(asUser: 1_234, group: 9, "nbd+unix:///secret?socket=\(fixture.socket)").output
        == "1048576\n")
    #expect(server.stop() == 0)
  }

  @Test func `is refused to clients that come over the network`() throws {
    let fixture = try ServeFixture()
    let server = try ServedProcess(
      stratad: [
        fixture.image, "--format", "raw", "--tcp", "127.0.0.1:0", "--print-drive", "--allow-uid",
        "0",
      ]
    ).waitUntilReady()
    let line = try #require(server.outputText.split(separator: "\n").first)
    let address = try #require(line.dropFirst("-drive file=nbd:".count).split(separator: ",").first)
    let result = try runTool("nbdinfo", "--size", "nbd://\(address)")
    #expect(result.code != 0)
    #expect(result.error.contains("policy"), "\(result.error)")
    #expect(server.stop() == 0)
  }

  @Test func `is not served at all when a user does not exist`() throws {
    let fixture = try ServeFixture()
    let message = try ServeFixture.refusal(fixture.arguments + ["--allow-uid", "no such user"])
    #expect(message.contains("--allow-uid: there is no user 'no such user'"))
  }
}

@Suite struct `Clients of one user` {
  @Test func `are told when they are too many, and let in again when one has left`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled("--max-connections-per-peer", "2")
    let first = try WireClient.entered(path: fixture.socket)
    let second = try WireClient.entered(path: fixture.socket)
    let third = try WireClient(path: fixture.socket)
    try third.greet()
    try third.sendOption(3)
    let reply = try third.receiveOptionReply()
    #expect(reply.type == 0x8000_0002)
    #expect(
      String(decoding: reply.payload, as: UTF8.self)
        == "not allowed: 2 connections from the same place are open")
    third.socket.abandon()
    try first.disconnect()
    try fixture.waitForClients(1)
    #expect(try WireClient.entered(path: fixture.socket).read(0, 1).error == 0)
    _ = second
    #expect(server.stop() == 0)
  }
}

@Suite struct `Clients that never negotiate` {
  // CVE-2024-7409
  @Test func `keep nobody out, however many they are`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve("--max-connections", "2", "--handshake-timeout", "3600")
    var silent: [WireSocket] = []
    for _ in 0..<1_200 { silent.append(try WireSocket(connectingTo: fixture.socket)) }
    let client = try WireClient.entered(path: fixture.socket)
    #expect(try client.read(0, 512).error == 0)
    #expect(try WireClient.entered(path: fixture.socket).read(0, 512).error == 0)
    _ = silent
    #expect(server.stop() == 0)
  }
}

@Suite struct `A client that does nothing` {
  @Test func `is ended when it sent nothing for the time that it has`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve("--idle-timeout", "1")
    let idle = try WireClient.entered(path: fixture.socket)
    let busy = try WireClient.entered(path: fixture.socket)
    let start = Date()
    while !idle.socket.hasInput(within: 0.05) {
      #expect(try busy.read(0, 512).error == 0)
      try #require(Date().timeIntervalSince(start) < 15, "the idle client is still there")
    }
    #expect(try idle.socket.receiveUntilEnd() == [])
    #expect(Date().timeIntervalSince(start) >= 0.9)
    #expect(try busy.read(0, 512).error == 0)
    #expect(server.stop() == 0)
  }

  @Test func `is ended when it takes none of its replies, and not when it merely waits`() throws {
    let fixture = try ServeFixture()
    guard truncate(fixture.image, 64 << 20) == 0 else { throw ServeError("truncate") }
    let server = try fixture.serveControlled("--unread-timeout", "1")
    let silent = try WireClient.entered(path: fixture.socket)
    let greedy = try WireClient.entered(path: fixture.socket)
    for offset in 0..<4 {
      _ = try greedy.send(.read, offset: UInt64(offset) << 24, length: 16 << 20)
    }
    try fixture.waitForClients(1, seconds: 15)
    #expect(try silent.read(0, 512).error == 0)
    #expect(server.stop() == 0)
  }
}
