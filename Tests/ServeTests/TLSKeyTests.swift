// SPDX-License-Identifier: Apache-2.0
//
// Keys that server and clients share.

import Foundation
import TestSupport
import Testing

@Suite struct `A server with shared keys` {
  private let fixture: TLSFixture
  private static let aliceKey = String(repeating: "0f", count: 32)
  private static let bobKey = String(repeating: "f0", count: 32)
  private static let keys = "alice:\(aliceKey)\nbob:\(bobKey)\n"

  init() throws { fixture = try TLSFixture() }

  /// A folder with keys.psk for a client.
  private func client(_ identity: String, _ key: String) throws -> String {
    let path = fixture.serve.folder.path("client-\(identity)-\(key.prefix(4))")
    try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
    try "\(identity):\(key)\n".write(
      toFile: "\(path)/keys.psk", atomically: false, encoding: .utf8)
    return path
  }

  private func size(_ identity: String, _ key: String) throws -> String {
    let keys = try client(identity, key) + "/keys.psk"
    return try runTool("nbdinfo", "--size", fixture.uri(keys: keys, identity: identity)).output
  }

  @Test func `serves qemu-io and nbdinfo of each identity`() throws {
    let server = try fixture.start(keys: Self.keys)
    let words = fixture.qemu(keys: try client("alice", Self.aliceKey), identity: "alice")
    let io = try runTool(
      ["qemu-io", "-c", "write -P 0x5a 4k 300k", "-c", "read -P 0x5a 4k 300k"] + words)
    #expect(io.code == 0, "\(io.output)\(io.error)")
    #expect(try size("bob", Self.bobKey) == "1048576\n")
    #expect(server.stop() == 0)
  }

  @Test func `refuses unknown identities and wrong keys, and goes on`() throws {
    let server = try fixture.start(keys: Self.keys)
    #expect(try size("mallory", Self.aliceKey) == "")
    #expect(try size("alice", Self.bobKey) == "")
    #expect(try size("alice", Self.aliceKey) == "1048576\n")
    #expect(server.stop() == 0)
  }

  @Test func `lets in the identities that it was given`() throws {
    let server = try fixture.start(keys: Self.keys, "--tls-allow-psk-identity", "bob")
    #expect(try size("bob", Self.bobKey) == "1048576\n")
    #expect(try size("alice", Self.aliceKey) == "")
    #expect(server.stop() == 0)
  }

  @Test func `tells the identity that it does not let in why`() throws {
    let server = try fixture.start(keys: Self.keys, "--tls-allow-psk-identity", "bob")
    let keys = try client("alice", Self.aliceKey) + "/keys.psk"
    let result = try runTool(
      "/usr/bin/python3", "-c",
      """
      import nbd, sys
      h = nbd.NBD()
      h.set_debug(True)
      h.set_tls(nbd.TLS_REQUIRE)
      h.set_tls_username('alice')
      h.set_tls_psk_file(sys.argv[2])
      try:
          h.connect_unix(sys.argv[1])
      except nbd.Error as error:
          print(error)
      """, fixture.socket, keys)
    #expect(
      (result.output + result.error).contains("this identity may not use the export"),
      "\(result)")
    #expect(server.stop() == 0)
  }

  @Test func `reads its keys before it gives up its privileges, and shows them nowhere`() throws {
    let path = fixture.serve.folder.path("secret.psk")
    try Self.keys.write(toFile: path, atomically: false, encoding: .utf8)
    chmod(path, 0o600)
    let server = try ServedProcess(stratad: fixture.serve.arguments + ["--tls-psk", path])
      .waitUntilReady()
    try FileManager.default.removeItem(atPath: path)
    #expect(try size("bob", Self.bobKey) == "1048576\n")
    let words = try String(
      contentsOfFile: "/proc/\(server.processID)/cmdline", encoding: .utf8)
    #expect(!words.contains(Self.aliceKey))
    #expect(server.stop() == 0)
    #expect(!(server.errorText + server.outputText).contains("0f0f"))
  }

  @Test func `does not start with a file that holds no keys, and does not repeat what it holds`()
    throws
  {
    let path = fixture.serve.folder.path("wrong.psk")
    try "alice:secret-but-not-hexadecimal\n".write(
      toFile: path, atomically: false, encoding: .utf8)
    let text = try ServeFixture.refusal(fixture.serve.arguments + ["--tls-psk", path])
    #expect(text.contains("\(path): line 1: its key is not hexadecimal; write it with psktool(1)"))
    #expect(!text.contains("secret-but"))
  }
}
