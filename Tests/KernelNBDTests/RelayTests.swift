// SPDX-License-Identifier: Apache-2.0
//
// What the kernel would see through a relay, seen by a test in its place; the server is stratad.
// This file starts servers and threads.

import Foundation
import LinuxIO
import NBDClient
import NBDProtocol
import TestSupport
import Testing

/// A relay in a thread of its own, between a server and `socket`.
private final class RelayedServer {
  let socket: WireSocket
  let daemon: Daemon
  let image: String
  private let over = DispatchSemaphore(value: 0)
  private let folder: TemporaryFolder

  static let byteCount = 16 << 20

  /// - Parameter isEncrypted: the server takes nobody without a shared key, and the relay has it.
  init(isEncrypted: Bool = false, bell: Int32 = -1) throws {
    folder = try TemporaryFolder()
    image = folder.path("disk.raw")
    var contents = Data(count: Self.byteCount)
    for index in stride(from: 0, to: Self.byteCount, by: 509) {
      contents[index] = UInt8(truncatingIfNeeded: index / 509)
    }
    try contents.write(to: URL(fileURLWithPath: image))
    let path = folder.path("nbd.sock")
    let keys = folder.path("keys.psk")
    try "alice:00112233445566778899aabbccddeeff\n".write(
      toFile: keys, atomically: false, encoding: .utf8)
    daemon = try Daemon(
      daemonPath(),
      [image, "--format", "raw", "--socket", path] + (isEncrypted ? ["--tls-psk", keys] : []),
      socketPath: path)
    let pair = try ByteSocket.pair()
    socket = WireSocket(adopting: pair.far)
    let (near, over) = (pair.near, over)
    let opened = DispatchSemaphore(value: 0)
    try OwnThread {
      defer {
        opened.signal()
        over.signal()
      }
      let relay = Relay()
      do {
        let connection = try enter(path, keys: isEncrypted ? keys : nil)
        #expect((connection.descriptor == nil) == isEncrypted)
        relay.add(connection, ByteSocket(adopting: near))
        opened.signal()
        relay.run(until: bell)
      } catch {
        Issue.record(error)
      }
    }.detach()
    guard opened.wait(timeout: .now() + 60) == .success else {
      throw WireError.ended("the relay's connection was not opened")
    }
  }

  /// Whether the relay comes to its end.
  func waitForEnd() -> Bool { over.wait(timeout: .now() + 20) == .success }

  func read(cookie: UInt64, at offset: Int, _ byteCount: Int) throws {
    try socket.send(request(.read, cookie, offset, byteCount))
  }

  func request(_ command: Command, _ cookie: UInt64, _ offset: Int, _ byteCount: Int) -> [UInt8] {
    var bytes: [UInt8] = []
    func append<Value: FixedWidthInteger>(_ value: Value) {
      for shift in stride(from: Value.bitWidth - 8, through: 0, by: -8) {
        bytes.append(UInt8(truncatingIfNeeded: value >> shift))
      }
    }
    append(UInt32(0x2560_9513))
    append(UInt16(0))
    append(command.rawValue)
    append(cookie)
    append(UInt64(offset))
    append(UInt32(byteCount))
    return bytes
  }

  /// Takes a simple reply without an error and returns its cookie.
  func takeReply() throws -> UInt64 {
    let header = try socket.receive(16)
    #expect(header[..<8] == [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0])
    return header[8...].reduce(0) { $0 << 8 | UInt64($1) }
  }
}

private func enter(_ path: String, keys: String? = nil) throws -> NegotiatedConnection {
  var options = ClientOptions(contexts: .none, modeMax: .simple)
  if let keys {
    options.tls.keyFile = keys
    options.tls.identity = "alice"
  }
  return try NegotiatedConnection.open(
    NBDURI(endpoint: .unix(path: path), exportName: ""), options)
}

@Suite struct `A relay` {
  @Test(arguments: [false, true])
  func `carries simple requests and replies as they are, in both directions`(isEncrypted: Bool)
    throws
  {
    let server = try RelayedServer(isEncrypted: isEncrypted)
    let contents = [UInt8]((0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 / 7) })
    try server.socket.send(server.request(.write, 1, 4_096, contents.count) + contents)
    #expect(try server.takeReply() == 1)
    try server.read(cookie: 2, at: 4_096, contents.count)
    #expect(try server.takeReply() == 2)
    #expect(try server.socket.receive(contents.count) == contents)
  }

  @Test(arguments: [false, true])
  func `waits for a side that does not receive, and loses nothing`(isEncrypted: Bool) throws {
    let server = try RelayedServer(isEncrypted: isEncrypted)
    let file = try #require(FileManager.default.contents(atPath: server.image))
    let portion = 256 << 10
    let cookies = 0..<RelayedServer.byteCount / portion
    // All are asked for before the first answer is taken: far more than sockets and the relay hold.
    for cookie in cookies {
      try server.read(cookie: UInt64(cookie), at: cookie * portion, portion)
    }
    var seen: Set<UInt64> = []
    for _ in cookies {
      let cookie = try server.takeReply()
      seen.insert(cookie)
      let start = Int(cookie) * portion
      #expect(try server.socket.receive(portion) == [UInt8](file[start..<start + portion]))
    }
    #expect(seen.count == cookies.count)
  }

  @Test(arguments: [false, true])
  func `ends when the client's end closes`(isEncrypted: Bool) throws {
    let server = try RelayedServer(isEncrypted: isEncrypted)
    try server.read(cookie: 1, at: 0, 512)
    #expect(try server.takeReply() == 1)
    server.socket.abandon()
    #expect(server.waitForEnd())
  }

  @Test(arguments: [false, true])
  func `ends when the server does, and closes the client's end`(isEncrypted: Bool) throws {
    let server = try RelayedServer(isEncrypted: isEncrypted)
    try server.read(cookie: 1, at: 0, 512)
    #expect(try server.takeReply() == 1)
    _ = try server.socket.receive(512)
    server.daemon.stop()
    #expect(server.waitForEnd())
    #expect(try server.socket.receiveUntilEnd() == [])
  }

  @Test func `pauses when its bell rings`() throws {
    let bell = try EventCounter(.polled)
    let server = try RelayedServer(bell: bell.descriptor)
    try server.read(cookie: 1, at: 0, 512)
    #expect(try server.takeReply() == 1)
    bell.signal()
    #expect(server.waitForEnd())
  }
}

@Suite struct `A connection for the kernel` {
  @Test func `agrees on simple replies although the server can more`() throws {
    let server = try RelayedServer()
    let connection = try enter(server.daemon.socketPath)
    #expect(connection.session.mode == .simple)
    #expect(connection.session.export.contexts.isEmpty)
    #expect(connection.session.byteCount == UInt64(RelayedServer.byteCount))
    #expect(connection.descriptor != nil)
  }
}
