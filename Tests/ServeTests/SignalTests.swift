// SPDX-License-Identifier: Apache-2.0
//
// How an export stops.

import Foundation
import TestSupport
import Testing

@Suite struct `A signal to stop` {
  @Test(arguments: [SIGTERM, SIGINT])
  func `ends an idle server with 0`(signal: Int32) throws {
    let server = try ServeFixture().serve()
    #expect(server.stop(with: signal) == 0)
    #expect(server.errorText == "")
  }

  // CVE-2024-7409: a stop with sockets open that never negotiate.
  @Test func `ends a server with silent clients within two seconds`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve()
    let clients = try (0..<50).map { _ in try WireSocket(connectingTo: fixture.socket) }
    let start = Date()
    #expect(server.stop() == 0)
    #expect(Date().timeIntervalSince(start) < 2)
    _ = clients
  }

  @Test func `ends a server with silent clients beyond its limit within two seconds`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve("--max-connections", "4")
    let clients = try (0..<20).map { _ in try WireSocket(connectingTo: fixture.socket) }
    let start = Date()
    #expect(server.stop() == 0)
    #expect(Date().timeIntervalSince(start) < 2)
    _ = clients
  }

  @Test func `is not SIGPIPE`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve()
    kill(server.processID, SIGPIPE)
    for _ in 0..<20 { _ = try WireSocket(connectingTo: fixture.socket) }
    #expect(server.isAlive)
    #expect(server.stop() == 0)
  }

  @Test func `frees the image for others`() throws {
    let fixture = try ServeFixture()
    #expect(try fixture.serve().stop() == 0)
    #expect(try fixture.serve().stop() == 0)
  }

  @Test func `ends a server whose client never takes its replies within four seconds`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve()
    let client = try stalledClient(fixture)
    let start = Date()
    #expect(server.stop() == 0)
    #expect(Date().timeIntervalSince(start) < 4)
    _ = client
  }

  @Test func `for the second time is obeyed at once`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve()
    let client = try stalledClient(fixture)
    kill(server.processID, SIGTERM)
    usleep(300_000)
    #expect(server.isAlive)
    let start = Date()
    #expect(server.stop() == 1)
    #expect(Date().timeIntervalSince(start) < 0.5)
    #expect(server.errorText.contains("stopped at once by a second signal"))
    _ = client
  }

  @Test func `comes after the writes that were answered are in the file`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve()
    let client = try WireClient.entered(path: fixture.socket)
    #expect(try client.write(4_096, [UInt8](repeating: 0xa5, count: 8_192)) == 0)
    #expect(server.stop() == 0)
    let bytes = try Data(contentsOf: URL(fileURLWithPath: fixture.image))
    #expect(bytes[4_096..<12_288].allSatisfy { $0 == 0xa5 })
    #expect(bytes[12_288] == 0)
  }

  @Test func `lets a write under way end, and refuses what comes after it with ESHUTDOWN`() throws {
    // proto.md "NBD_ESHUTDOWN"
    for extended in [false, true] {
      let fixture = try ServeFixture()
      let server = try fixture.serve()
      let client = try WireClient.entered(path: fixture.socket, extended: extended)
      let data = [UInt8](repeating: 0xa5, count: 8_192)
      let write = client.prepare(1, offset: 4_096, length: 8_192, payload: data)
      try client.socket.send(Array(write.bytes.dropLast(4_096)))
      usleep(100_000)
      kill(server.processID, SIGTERM)
      usleep(100_000)
      let read = client.prepare(0, offset: 0, length: 512)
      let refused = client.prepare(1, offset: 0, length: 512, payload: Array(data[..<512]))
      try client.socket.send(Array(write.bytes.suffix(4_096)) + read.bytes + refused.bytes)
      #expect(try client.wait(read.cookie).error == WireErrno.shutdown)
      #expect(try client.wait(refused.cookie).error == WireErrno.shutdown)
      #expect(try client.wait(write.cookie).error == 0)
      #expect(try client.socket.receiveUntilEnd().isEmpty)
      #expect(try server.waitForExit() == 0)
      let bytes = try Data(contentsOf: URL(fileURLWithPath: fixture.image))
      #expect(bytes[4_096..<12_288].allSatisfy { $0 == 0xa5 })
      #expect(bytes[0] == 0)
    }
  }

  @Test func `is told to a client in the middle of an option by ERR_SHUTDOWN`() throws {
    // proto.md "NBD_REP_ERR_SHUTDOWN"
    let fixture = try ServeFixture()
    let server = try fixture.serve()
    let client = try WireClient(path: fixture.socket)
    try client.greet()
    let option = WireClient.option(7, WireClient.infoData(""))
    try client.socket.send(Array(option.dropLast(3)))
    usleep(100_000)
    kill(server.processID, SIGTERM)
    usleep(100_000)
    try client.socket.send(Array(option.suffix(3)))
    #expect(try client.receiveAnswer(to: 7).type == OptionAnswer.shutdown)
    #expect(try client.socket.receiveUntilEnd().isEmpty)
    #expect(try server.waitForExit() == 0)
  }

  @Test func `ends a server within two seconds though a client never ends its request`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve()
    let client = try WireClient.entered(path: fixture.socket)
    try client.socket.send(client.prepare(1, offset: 0, length: 8_192).bytes + [1, 2, 3])
    usleep(100_000)
    let start = Date()
    #expect(server.stop() == 0)
    #expect(Date().timeIntervalSince(start) < 2.5)
  }

  @Test func `gives up a request as long as the disk with ESHUTDOWN`() throws {
    let fixture = try ServeFixture()
    try run("qemu-img", "create", "-q", "-f", "raw", fixture.folder.path("base"), "1T")
    try run(
      "qemu-img", "create", "-q", "-f", "qcow2", "-b", fixture.folder.path("base"), "-F", "raw",
      fixture.folder.path("disk"))
    let server = try ServedProcess(stratad: [
      fixture.folder.path("disk"), "--format", "qcow2", "--socket", fixture.socket,
    ]).waitUntilReady()
    let client = try WireClient.entered(path: fixture.socket, extended: true)
    let request = client.prepareWide(6, length: 1 << 40)
    try client.socket.send(request.bytes)
    usleep(200_000)
    let start = Date()
    kill(server.processID, SIGTERM)
    #expect(try client.wait(request.cookie).error == WireErrno.shutdown)
    #expect(try server.waitForExit() == 0)
    #expect(Date().timeIntervalSince(start) < 3)
    try run("qemu-img", "check", "-q", fixture.folder.path("disk"))
  }

  /// A client with more replies to come than the socket's buffers hold.
  private func stalledClient(_ fixture: ServeFixture) throws -> WireClient {
    let client = try WireClient.entered(path: fixture.socket, structured: false)
    for _ in 0..<16 { try client.send(.read, offset: 0, length: 1 << 20) }
    usleep(300_000)
    return client
  }
}
