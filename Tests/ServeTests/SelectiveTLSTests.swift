// SPDX-License-Identifier: Apache-2.0
//
// TLS that differs from export to export, and rules that change while the server runs.
// Spec: proto.md, "SELECTIVETLS"; stratad(8), "Access", "SIGNALS".

import Foundation
import TestSupport
import Testing

@Suite struct `A server with TLS for some of its exports` {
  private let fixture: TLSFixture
  private static let key = String(repeating: "0f", count: 32)

  init() throws { fixture = try TLSFixture() }

  private func start(_ more: String..., hasOpen: Bool = true) throws -> ServedProcess {
    let other = fixture.serve.disk("open.raw")
    let open = hasOpen ? ["--export", "open=\(other),format=raw,tls=off"] : []
    let path = fixture.serve.folder.path("server.psk")
    try "alice:\(Self.key)\nbob:\(Self.key)\n".write(
      toFile: path, atomically: false, encoding: .utf8)
    return try ServedProcess(
      stratad: fixture.serve.arguments + [
        "--tls-psk", path, "--control", fixture.serve.control,
      ] + open + more
    ).waitUntilReady()
  }

  private func uri(_ export: String, _ identity: String) throws -> String {
    let path = fixture.serve.folder.path("keys-\(identity).psk")
    try "\(identity):\(Self.key)\n".write(toFile: path, atomically: false, encoding: .utf8)
    return "nbds+unix://\(identity)@/\(export)?socket=\(fixture.socket)&tls-psk-file=\(path)"
  }

  @Test func `shows and gives without TLS what needs none, and all of them with it`() throws {
    let server = try start()
    let plain = try runTool("nbdinfo", "--list", "nbd+unix:///?socket=\(fixture.socket)").output
    #expect(plain.contains("\"open\"") && !plain.contains("disk.raw"))
    let secret = try runTool("nbdinfo", "--list", try uri("", "alice")).output
    #expect(secret.contains("\"open\"") && secret.contains("disk.raw"))
    #expect(try WireClient.entered(path: fixture.socket, export: "open").size == 1 << 20)
    #expect(server.stop() == 0)
  }

  @Test func `answers a name that needs TLS like one that does not exist`() throws {
    let server = try start()
    let client = try WireClient(path: fixture.socket)
    try client.greet()
    func texts(_ option: UInt32, _ tail: [UInt8]) throws -> [(UInt32, String)] {
      try ["disk.raw", "no-such.raw"].map { name in
        try client.sendOption(
          option, wire(UInt32(name.utf8.count)) + Array(name.utf8) + tail)
        let reply = try client.receiveOptionReply()
        return (reply.type, reply.text.replacing(name, with: "NAME"))
      }
    }
    for option in [6, 7] as [UInt32] {
      let answers = try texts(option, wire(UInt16(0)))
      #expect(answers[0] == answers[1])
      #expect(answers[0].0 == 0x8000_0005)
    }
    // Not TLS_REQD: that is for INFO and GO alone.
    let answers = try texts(9, wire(UInt32(0)))
    #expect(answers[0] == answers[1])
    #expect(answers[0].0 == 0x8000_0006)
    #expect(server.stop() == 0)
  }

  @Test func `lets each identity into its own export`() throws {
    let other = fixture.serve.disk("bobs.raw", byteCount: 2 << 20)
    let server = try start(
      "--tls-allow-psk-identity", "alice", "--export",
      "bobs=\(other),format=raw,tls-allow-psk-identity=bob", hasOpen: false)
    func size(_ export: String, _ identity: String) throws -> String {
      try runTool("nbdinfo", "--size", try uri(export, identity)).output
    }
    #expect(try size("disk.raw", "alice") == "1048576\n")
    #expect(try size("disk.raw", "bob") == "")
    #expect(try size("bobs", "bob") == "2097152\n")
    #expect(try size("bobs", "alice") == "")
    #expect(server.stop() == 0)
  }

  @Test func `reads its keys again when it is told to, and keeps them when they are wrong`() throws
  {
    let server = try start()
    let path = fixture.serve.folder.path("server.psk")
    let strata = try ServedProcess.path(of: "strata")
    #expect(try runTool("nbdinfo", "--size", try uri("disk.raw", "bob")).code == 0)
    try "alice:\(Self.key)\n".write(toFile: path, atomically: true, encoding: .utf8)
    #expect(try runTool("nbdinfo", "--size", try uri("disk.raw", "bob")).code == 0)
    let reloaded = try runTool(strata, "reload", fixture.serve.control)
    #expect(reloaded.output == "reloaded\n", "\(reloaded)")
    #expect(try runTool("nbdinfo", "--size", try uri("disk.raw", "bob")).code != 0)
    #expect(try runTool("nbdinfo", "--size", try uri("disk.raw", "alice")).code == 0)
    try "nonsense\n".write(toFile: path, atomically: true, encoding: .utf8)
    let refused = try runTool(strata, "reload", fixture.serve.control)
    #expect(refused.code == 1)
    #expect(refused.error.contains("all stays as it was: \(path)"), "\(refused)")
    #expect(try runTool("nbdinfo", "--size", try uri("disk.raw", "alice")).code == 0)
    #expect(server.stop() == 0)
  }
}

@Suite struct `A list of names in a file` {
  @Test func `counts a second after it has changed`() throws {
    let fixture = try TLSFixture()
    let folder = try CertificateFolder()
    let list = fixture.serve.folder.path("names")
    try "# nobody yet\n".write(toFile: list, atomically: true, encoding: .utf8)
    let server = try fixture.start(folder, "--tls-verify-peer", "--tls-allow-dn-file", list)
    let uri = fixture.uri(certificates: try folder.client("alice"))
    #expect(try runTool("nbdinfo", "--size", uri).code != 0)
    try "CN=nobody\n  *CN=*  \n".write(toFile: list, atomically: true, encoding: .utf8)
    let deadline = Date(timeIntervalSinceNow: 15)
    while try runTool("nbdinfo", "--size", uri).code != 0 {
      try #require(Date() < deadline, "the list was not read again")
      usleep(100_000)
    }
    #expect(server.stop() == 0)
  }
}

@Suite(.enabled(if: getuid() == 0, "needs privileges to give up"))
struct `Certificates that only root may read` {
  @Test func `are read again after privileges were given up, on SIGHUP`() throws {
    let fixture = try TLSFixture()
    let folder = try CertificateFolder()
    let key = "\(folder.serverPath)/server-key.pem"
    chmod(key, 0o600)
    chown(key, 0, 0)
    let server = try fixture.start(folder)
    let uri = fixture.uri(certificates: try folder.client("alice"))
    #expect(try runTool("nbdinfo", "--size", uri).code == 0)
    let good = try Data(contentsOf: URL(fileURLWithPath: key))
    try Data("broken".utf8).write(to: URL(fileURLWithPath: key))
    kill(server.processID, SIGHUP)
    let deadline = Date(timeIntervalSinceNow: 15)
    while !server.errorText.contains("server-key.pem") && !server.errorText.contains("key") {
      try #require(Date() < deadline, "nothing was said about the broken key")
      usleep(20_000)
    }
    #expect(try runTool("nbdinfo", "--size", uri).code == 0)
    try good.write(to: URL(fileURLWithPath: key))
    kill(server.processID, SIGHUP)
    #expect(try runTool("nbdinfo", "--size", uri).code == 0)
    #expect(server.stop() == 0)
  }
}
