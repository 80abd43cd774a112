// SPDX-License-Identifier: Apache-2.0
//
// TCP is for this machine unless TLS is required or the user insists.

import Foundation
import TestSupport
import Testing

@Suite struct `TCP` {
  private func arguments(_ fixture: ServeFixture, _ endpoint: String) -> [String] {
    [fixture.image, "--format", "raw", "--tcp", endpoint, "--print-drive"]
  }

  @Test(arguments: ["127.0.0.1:0", "localhost:0"])
  func `on loopback serves at a port that the system chooses`(endpoint: String) throws {
    let fixture = try ServeFixture()
    let server = try ServedProcess(stratad: arguments(fixture, endpoint)).waitUntilReady()
    let line = try #require(server.outputText.split(separator: "\n").first)
    let address = try #require(line.dropFirst("-drive file=nbd:".count).split(separator: ",").first)
    #expect(try runTool("nbdinfo", "--size", "nbd://\(address)").output == "1048576\n")
    #expect(server.stop() == 0)
  }

  @Test(arguments: ["0.0.0.0:0", "*:0", ":0", "[::]:0"])
  func `beyond loopback is refused without the word`(endpoint: String) throws {
    let fixture = try ServeFixture()
    let text = try ServeFixture.refusal(arguments(fixture, endpoint))
    #expect(
      text.contains(
        "TLS is not required; say --tls required, listen on 127.0.0.1 or --socket, or say"
          + " --tcp-without-tls"))
  }

  @Test func `beyond loopback serves with the word`() throws {
    let fixture = try ServeFixture()
    let server = try ServedProcess(stratad: arguments(fixture, "*:0") + ["--tcp-without-tls"])
    #expect(try server.waitUntilReady().stop() == 0)
  }

  @Test(arguments: ["10809", "localhost:", "localhost:70000", "::1:10809", ":"])
  func `needs a host and a port`(endpoint: String) throws {
    let fixture = try ServeFixture()
    let text = try ServeFixture.refusal(
      [fixture.image, "--format", "raw", "--tcp=\(endpoint)"], code: 2)
    #expect(text.contains("HOST:PORT"))
  }

  @Test func `needs a port that is free`() throws {
    let fixture = try ServeFixture()
    let first = try ServedProcess(stratad: arguments(fixture, "127.0.0.1:0")).waitUntilReady()
    let line = try #require(first.outputText.split(separator: "\n").first)
    let address = try #require(line.dropFirst("-drive file=nbd:".count).split(separator: ",").first)
    let other = try ServeFixture()
    let text = try ServeFixture.refusal(arguments(other, String(address)))
    #expect(text.contains("TCP \(address): the address is taken"))
  }

  @Test func `needs an address of this machine`() throws {
    let fixture = try ServeFixture()
    let text = try ServeFixture.refusal(
      arguments(fixture, "192.0.2.1:0") + ["--tcp-without-tls"])
    #expect(text.contains("name an address of this machine"))
  }
}
