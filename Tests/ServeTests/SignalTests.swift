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
}
