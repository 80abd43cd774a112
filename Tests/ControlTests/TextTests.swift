// SPDX-License-Identifier: Apache-2.0
//
// What users write, and what they read: endpoints, sizes, drive options.

import LinuxIO
import Testing

@testable import Control

@Suite struct `A TCP endpoint` {
  @Test(
    arguments: [
      ("127.0.0.1:10809", "127.0.0.1", 10_809), ("host:0", "host", 0),
      ("[::1]:65535", "::1", 65_535),
      ("*:1", nil, 1), (":1", nil, 1),
    ] as [(String, String?, UInt16)])
  func `is a host and a port`(text: String, host: String?, port: UInt16) throws {
    let endpoint = try #require(TCPEndpoint(parsing: text))
    #expect(endpoint.host == host)
    #expect(endpoint.port == port)
  }

  @Test(arguments: [
    "", "host", "10809", "host:", "host:65536", "host:-1", "host:+1", "host:1x", "::1:10809",
    "[]:1",
    "[host]:1", "[::1]",
  ])
  func `is nothing else`(text: String) { #expect(TCPEndpoint(parsing: text) == nil) }
}

@Suite struct `The drive option` {
  @Test func `names the UNIX socket`() {
    #expect(
      DriveLine.text(unixPath: "/run/vm1.sock")
        == "-drive file=nbd:unix:/run/vm1.sock,format=raw,if=virtio")
  }

  // QEMU's option syntax: a comma in a value is doubled.
  @Test func `doubles commas`() {
    #expect(
      DriveLine.text(unixPath: "/run/a,b", needsTLS: true)
        == "-drive file.driver=nbd,file.server.type=unix,file.server.path=/run/a,,b,"
        + "file.tls-creds=tls0,format=raw,if=virtio")
    #expect(
      DriveLine.text(unixPath: "/run/a,b,,c")
        == "-drive file=nbd:unix:/run/a,,b,,,,c,format=raw,if=virtio")
  }

  @Test func `puts an IPv6 address in brackets`() throws {
    let address = try SocketAddress.resolve(host: "::1", port: 10_809)[0]
    #expect(DriveLine.text(tcp: address) == "-drive file=nbd:[::1]:10809,format=raw,if=virtio")
    #expect(
      DriveLine.text(tcp: address, needsTLS: true)
        == "-drive file.driver=nbd,file.server.type=inet,file.server.host=::1,"
        + "file.server.port=10809,file.tls-creds=tls0,format=raw,if=virtio")
  }
}

@Suite struct `A loopback address` {
  @Test(arguments: ["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1"])
  func `is reached from this machine only`(host: String) throws {
    #expect(try SocketAddress.resolve(host: host, port: 1)[0].isLoopback)
  }

  @Test(arguments: ["0.0.0.0", "128.0.0.1", "10.0.0.1", "::", "::2", "::ffff:10.0.0.1", "fe80::1"])
  func `is none of these`(host: String) throws {
    #expect(try !SocketAddress.resolve(host: host, port: 1)[0].isLoopback)
  }

  @Test func `is not what every address of the machine means`() throws {
    #expect(try SocketAddress.resolve(host: nil, port: 1).allSatisfy { !$0.isLoopback })
  }
}
