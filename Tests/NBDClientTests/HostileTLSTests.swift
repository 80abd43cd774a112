// SPDX-License-Identifier: Apache-2.0
//
// Servers that are wrong about TLS, before it, while it begins and inside it.
// Spec: proto.md, "TLS support", "Security considerations". This file starts servers.

import Foundation
import NBDClient
import NBDProtocol
import TestSupport
import Testing

private let key = [UInt8](repeating: 0x5a, count: 16)

/// A client with a shared key, so that a server needs no certificate.
private struct KeyClient {
  let folder: TemporaryFolder
  let uri: NBDURI

  init(_ server: ScriptedServer) throws {
    folder = try TemporaryFolder()
    let path = folder.path("keys")
    try "alice:\(String(repeating: "5a", count: 16))\n".write(
      toFile: path, atomically: false, encoding: .utf8)
    uri = try NBDURI("nbds+unix://alice@/?socket=\(server.path)&tls-psk-file=\(path)")
  }
}

private let proof = ServerProof.key(identity: "alice", bytes: key)

/// A server that talks TLS with the key, and what it then does.
private func secureServer(
  _ script: @escaping @Sendable (ServerSide) throws -> Void
) throws -> ScriptedServer {
  try ScriptedServer { side in
    try side.startTLS(proof)
    try script(side)
  }
}

@Suite struct `A server that is wrong about TLS` {
  @Test func `and answers in clear behind its ACK is a violation`() async throws {
    // The class of CVE-2021-3716, from the other side.
    let server = try ScriptedServer { side in
      try side.send(Array("NBDMAGICIHAVEOPT".utf8), wire(UInt16(3)))
      _ = try side.receive(4)
      _ = try side.receiveOption()
      let ack = wire(UInt64(0x0003_e889_0455_65a9), UInt32(5), UInt32(1), UInt32(0))
      let injected = wire(UInt64(0x0003_e889_0455_65a9), UInt32(11), UInt32(1), UInt32(0))
      try side.send(ack + injected)
      side.waitForEnd()
    }
    defer { server.stop() }
    let client = try KeyClient(server)
    let seen = await clientFault { _ = try await NBDConnection.connect(client.uri) }
    #expect(seen == .violated(.plaintextBehindTLS(byteCount: 20)))
  }

  @Test func `and speaks on in clear after its ACK is not understood`() async throws {
    let server = try ScriptedServer { side in
      try side.send(Array("NBDMAGICIHAVEOPT".utf8), wire(UInt16(3)))
      _ = try side.receive(4)
      _ = try side.receiveOption()
      try side.answer(5, 1)
      // The client's hello is here, so this cannot come behind the ACK.
      _ = try side.receive(1)
      try side.answer(11, 1)
      side.waitForEnd()
    }
    defer { server.stop() }
    let client = try KeyClient(server)
    await expectInsecure("TLS: handshake") { _ = try await NBDConnection.connect(client.uri) }
  }

  @Test func `and leaves, or says nothing, after its ACK is left`() async throws {
    let server = try ScriptedServer { side in
      try side.send(Array("NBDMAGICIHAVEOPT".utf8), wire(UInt16(3)))
      _ = try side.receive(4)
      _ = try side.receiveOption()
      try side.answer(5, 1)
      if side.number > 0 { side.waitForEnd() }
    }
    defer { server.stop() }
    let client = try KeyClient(server)
    guard
      case .lost(let text) = await clientFault({ _ = try await NBDConnection.connect(client.uri) })
    else {
      Issue.record("a server that left was no error")
      return
    }
    #expect(text.contains("during TLS"))
    let seen = await clientFault {
      _ = try await NBDConnection.connect(client.uri, ClientOptions(openSecondsMax: 1))
    }
    guard case .timedOut = seen else {
      Issue.record("\(String(describing: seen))")
      return
    }
  }

  @Test func `and does not know the key is refused, also when it shows a certificate instead`()
    async throws
  {
    let certificates = try CertificateFolder()
    let proofs: [ServerProof] = [
      .key(identity: "alice", bytes: [UInt8](repeating: 1, count: 16)),
      .certificates(folder: certificates.serverPath),
      .certificates(
        folder: certificates.serverPath, priority: "NORMAL:-VERS-ALL:+VERS-TLS1.2"),
    ]
    let server = try ScriptedServer { side in
      try side.startTLS(proofs[side.number])
      try side.negotiate(byteCount: 4096)
      side.waitForEnd()
    }
    defer { server.stop() }
    let client = try KeyClient(server)
    for _ in proofs {
      await expectInsecure("TLS: handshake") { _ = try await NBDConnection.connect(client.uri) }
    }
  }

  @Test func `and does not get past the handshake is not asked again and again`() async throws {
    let server = try ScriptedServer { side in
      guard side.number == 0 else { throw WireError.violation("a second connection") }
      try side.send(Array("NBDMAGICIHAVEOPT".utf8), wire(UInt16(3)))
      _ = try side.receive(4)
      _ = try side.receiveOption()
      try side.answer(5, 0x8000_0001)
      side.waitForEnd()
    }
    defer { server.stop() }
    let client = try KeyClient(server)
    await expectInsecure("TLS is required") {
      _ = try await NBDConnection.connect(
        client.uri, ClientOptions(openSecondsMax: 60, keepsTryingToOpen: true))
    }
  }

  @Test func `and gives TLS up when the client reconnects ends the connection for good`()
    async throws
  {
    let server = try ScriptedServer { side in
      if side.number == 0 {
        try side.startTLS(proof)
        try side.negotiate(byteCount: 4096)
        _ = try side.receiveRequest()
        return
      }
      // Whoever sits between the two hopes for this.
      try side.negotiate(byteCount: 4096, mode: .simple)
      let request = try side.receiveRequest()
      try side.reply(request, data: [UInt8](repeating: 66, count: Int(request.length)))
    }
    defer { server.stop() }
    let client = try KeyClient(server)
    let connection = try await NBDConnection.connect(
      client.uri, ClientOptions(reconnect: .init(secondsMax: 20, firstDelayMilliseconds: 10)))
    await expectInsecure("TLS is required") { _ = try await connection.read(at: 0, byteCount: 1) }
  }

  @Test func `and damages a record loses the connection, and the reason is told`() async throws {
    let server = try secureServer { side in
      try side.negotiate(byteCount: 4096)
      _ = try side.receiveRequest()
      side.tls = nil
      // A record of the right form with a wrong tag.
      try side.send([23, 3, 3, 0, 40] + [UInt8](repeating: 7, count: 40))
      side.waitForEnd()
    }
    defer { server.stop() }
    let client = try KeyClient(server)
    let connection = try await NBDConnection.connect(client.uri)
    guard
      case .lost(let text) = await clientFault({
        _ = try await connection.read(at: 0, byteCount: 1)
      })
    else {
      Issue.record("a damaged record was no error")
      return
    }
    #expect(text.contains("TLS: session") && text.contains("1 requests in flight"))
  }

  @Test(arguments: [true, false])
  func `and ends in the middle of an answer is lost, with a goodbye and without`(
    _ saysGoodbye: Bool
  ) async throws {
    let server = try secureServer { side in
      try side.negotiate(byteCount: 4096)
      let request = try side.receiveRequest()
      let header = wire(UInt32(0x668e_33ef), UInt16(1), UInt16(1), request.cookie, UInt32(4104))
      try side.send(header + wire(UInt64(0)) + [UInt8](repeating: 1, count: 100))
      if saysGoodbye { try side.tls?.sayGoodbye() }
    }
    defer { server.stop() }
    let client = try KeyClient(server)
    let connection = try await NBDConnection.connect(client.uri)
    guard
      case .lost(let text) = await clientFault({
        _ = try await connection.read(at: 0, byteCount: 4096)
      })
    else {
      Issue.record("a cut answer was no error")
      return
    }
    #expect(text.contains(saysGoodbye ? "the server ended TLS" : "without ending TLS"))
  }
}

@Suite struct `A goodbye inside TLS` {
  /// What the server saw, told to the test.
  private final class Sight: @unchecked Sendable {
    private let lock = NSCondition()
    private var value: Bool?

    func tell(_ value: Bool) {
      lock.withLock {
        self.value = value
        lock.broadcast()
      }
    }

    var isUntold: Bool { lock.withLock { value == nil } }

    func wait() -> Bool? {
      let limit = Date(timeIntervalSinceNow: 60)
      return lock.withLock {
        while value == nil { if !lock.wait(until: limit) { break } }
        return value
      }
    }
  }

  @Test func `is said behind DISC, and the server's is waited for`() async throws {
    let sight = Sight()
    let server = try secureServer { side in
      try side.negotiate(byteCount: 4096)
      let request = try side.receiveRequest()
      side.waitForEnd()
      // Spec: proto.md, "Terminating the transmission phase": the server closes TLS, then TCP.
      try side.tls?.sayGoodbye()
      sight.tell(request.command == 2 && side.tls?.wasBidden == true)
    }
    defer { server.stop() }
    let client = try KeyClient(server)
    try await NBDConnection.connect(client.uri).disconnect()
    #expect(sight.wait() == true)
  }

  @Test func `is said after a list, too`() async throws {
    let sight = Sight()
    let server = try secureServer { side in
      while true {
        let (option, _) = try side.receiveOption()
        try side.answer(option, 1)
        if option == 2 { break }
      }
      side.waitForEnd()
      sight.tell(side.tls?.wasBidden == true)
    }
    defer { server.stop() }
    let client = try KeyClient(server)
    #expect(try await NBDConnection.list(client.uri).exports.isEmpty)
    #expect(sight.wait() == true)
  }

  @Test func `is not waited for longer than a second`() async throws {
    let release = Sight()
    let server = try secureServer { side in
      try side.negotiate(byteCount: 4096)
      _ = release.wait()
    }
    defer {
      release.tell(true)
      server.stop()
    }
    let client = try KeyClient(server)
    // The server never says goodbye. Had it been waited for, this would take a minute.
    try await NBDConnection.connect(client.uri).disconnect()
    #expect(release.isUntold)
  }
}
