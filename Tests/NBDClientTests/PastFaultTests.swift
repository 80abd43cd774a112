// SPDX-License-Identifier: Apache-2.0
//
// Past faults of NBD clients, each replayed on ours under its number. What other tests say in
// general is here once more as that server did it. This file starts servers.

import Foundation
import NBDClient
import NBDProtocol
import TestSupport
import Testing

/// What a server was sent, whoever sent it.
private final class Received: @unchecked Sendable {
  private let lock = NSLock()
  private var value: [UInt8] = []

  var bytes: [UInt8] { lock.withLock { value } }

  /// Takes so many bytes.
  func take(_ count: Int, _ side: ServerSide) throws {
    let bytes = try side.receive(count)
    lock.withLock { value += bytes }
  }

  /// Takes all that comes until the client goes.
  func drain(_ side: ServerSide) {
    while let byte = try? side.receive(1) { lock.withLock { value += byte } }
  }
}

private func connect(_ server: ScriptedServer) async throws -> NBDConnection {
  try await NBDConnection.connect(NBDURI(endpoint: .unix(path: server.path)))
}

/// What `strata nbd` says when it fails.
private func failure(_ arguments: String...) throws -> String {
  let path = URL(fileURLWithPath: try daemonPath()).deletingLastPathComponent().path + "/strata"
  do {
    _ = try runTool(path, ["nbd"] + arguments)
    return "it did not fail"
  } catch {
    return "\(error)"
  }
}

private func expectViolation(
  sourceLocation: SourceLocation = #_sourceLocation, _ body: () async throws -> Void
) async {
  let seen = await clientFault(body)
  guard case .violated = seen else {
    Issue.record("\(String(describing: seen))", sourceLocation: sourceLocation)
    return
  }
}

private let greeting = Array("NBDMAGICIHAVEOPT".utf8)
private let startTLS = Array("IHAVEOPT".utf8) + wire(UInt32(5), UInt32(0))

@Suite struct `Replayed on the client:` {
  @Test func `CVE-2017-2630, a list whose names pass their replies or have gigabytes`()
    async throws
  {
    let replies: [[UInt8]] = [
      wire(UInt32(9)) + Array("disk".utf8),
      wire(UInt32.max) + Array("disk".utf8),
      wire(UInt32(1 << 31)),
      counted([UInt8](repeating: 0x61, count: 4097)),
      counted("disk") + [UInt8](repeating: 0x62, count: 4097),
      [],
    ]
    let server = try ScriptedServer { side in
      try side.send(greeting, wire(UInt16(3)))
      _ = try side.receive(4)
      while true {
        let (option, _) = try side.receiveOption()
        guard option == 3 else {
          try side.answer(option, 0x8000_0001)
          continue
        }
        if side.number < replies.count { try side.answer(3, 2, replies[side.number]) }
        // The last one announces a description of 2 GiB.
        try side.send(
          wire(UInt64(0x0003_e889_0455_65a9), UInt32(3), UInt32(2), UInt32(1 << 31)))
        return side.waitForEnd()
      }
    }
    defer { server.stop() }
    for _ in 0...replies.count {
      await expectViolation {
        _ = try await NBDConnection.list(NBDURI(endpoint: .unix(path: server.path)))
      }
    }
  }

  @Test func `CVE-2019-14842, a server without TLS gets STARTTLS and nothing else`() async throws {
    let received = [Received(), Received(), Received(), Received(), Received(), Received()]
    let option = wire(UInt64(0x0003_e889_0455_65a9), UInt32(5))
    let server = try ScriptedServer { side in
      switch side.number {
      // A greeting that was stripped of fixed newstyle, with and without NO_ZEROES.
      case 0: try side.send(greeting, wire(UInt16(0)))
      case 1: try side.send(greeting, wire(UInt16(2)))
      // An oldstyle one, complete.
      case 2:
        try side.send(
          Array("NBDMAGIC".utf8), wire(UInt64(0x4202_8186_1253), UInt64(4096), UInt32(1)),
          [UInt8](repeating: 0, count: 124))
      // ERR_UNSUP, ERR_POLICY, and an error that nobody knows.
      default:
        let error: UInt32 = [0x8000_0001, 0x8000_0002, 0x8000_7777][side.number - 3]
        try side.send(greeting, wire(UInt16(3)))
        try received[side.number].take(4 + startTLS.count, side)
        try side.send(option, wire(error, UInt32(0)))
      }
      received[side.number].drain(side)
    }
    defer { server.stop() }
    let folder = try TemporaryFolder()
    let keys = folder.path("keys")
    try "a:000102030405060708090a0b0c0d0e0f\n".write(
      toFile: keys, atomically: false, encoding: .utf8)
    let uri = try NBDURI("nbds+unix:///disk?socket=\(server.path)&tls-psk-file=\(keys)")
    for (number, sight) in received.enumerated() {
      await expectInsecure("TLS is required") { _ = try await NBDConnection.connect(uri) }
      let deadline = Deadline(seconds: 10)
      let wanted = number < 3 ? [] : wire(UInt32(3)) + startTLS
      while sight.bytes.count < wanted.count, deadline.secondsLeft > 0 { usleep(1_000) }
      #expect(sight.bytes == wanted, "server \(number)")
    }
    // The same for a list, and as a program: another status than 0, and the reason.
    let other = try Peer.nbdkit.start(in: folder)
    let address = "nbds+unix:///?socket=\(other.socketPath)&tls-psk-file=\(keys)"
    for verb in ["list", "info", "map", "ping"] {
      let text = try failure(verb, address)
      #expect(text.contains("ended with 1: ") && text.contains("TLS is required"), "\(text)")
    }
  }

  @Test func `libnbd f75f602 (2019-10), chunks at offsets before and behind the request`()
    async throws
  {
    let offsets: [UInt64] = [.max, .max - 511, 0, 512 - 1, 1024 + 1, 1 << 63]
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: 1 << 20)
      let request = try side.receiveRequest()
      let data = [UInt8](repeating: 9, count: 512)
      switch side.number {
      case 0..<6: try side.chunk(request, 1, wire(offsets[side.number]) + data)
      case 6:  // the same part twice
        try side.chunk(request, 1, wire(UInt64(512)) + data, isDone: false)
        try side.chunk(request, 1, wire(UInt64(512)) + data)
      case 7: try side.chunk(request, 2, wire(UInt64(512), UInt32(513)))
      default: try side.chunk(request, 2, wire(UInt64.max - 1, UInt32(8)))
      }
      side.waitForEnd()
    }
    defer { server.stop() }
    for _ in 0..<9 {
      let client = try await connect(server)
      await expectViolation { _ = try await client.read(at: 512, byteCount: 512) }
    }
  }

  @Test func `CVE-2021-20286, a server that dies after each byte of its handshake`() async throws {
    let ack = { (option: UInt32) in
      wire(UInt64(0x0003_e889_0455_65a9), option, UInt32(1), UInt32(0))
    }
    let export = wire(
      UInt64(0x0003_e889_0455_65a9), UInt32(7), UInt32(3), UInt32(12), UInt16(0), UInt64(4096),
      UInt16(1))
    let whole = greeting + wire(UInt16(3)) + ack(11) + export + ack(7)
    let server = try ScriptedServer { side in
      // In two parts: no answer comes before its question.
      try side.send(Array(whole[..<min(side.number, 18)]))
      guard side.number > 18 else { return }
      _ = try side.receive(4 + 16)
      try side.send(Array(whole[18..<min(side.number, 38)]))
      guard side.number > 38 else { return }
      _ = try side.receiveOption()
      try side.send(Array(whole[38..<side.number]))
      if side.number == whole.count { side.waitForEnd() }
    }
    defer { server.stop() }
    let options = ClientOptions(contexts: .none)
    let uri = NBDURI(endpoint: .unix(path: server.path))
    for count in 0..<whole.count {
      let seen = await clientFault { _ = try await NBDConnection.connect(uri, options) }
      switch seen {
      case .refused, .lost: break
      default: Issue.record("after \(count) bytes: \(String(describing: seen))")
      }
    }
    try await NBDConnection.connect(uri, options).disconnect()
  }

  @Test(arguments: ["error-pread-rate=1%", "error-pwrite-rate=1%"])
  func `CVE-2022-0485, one request in a hundred that fails ends a copy`(_ rate: String) throws {
    let folder = try TemporaryFolder()
    let isRead = rate.contains("pread")
    let socket = folder.path("kit.sock")
    let kit = try Daemon(
      requireTool("nbdkit"),
      ["-f", "-U", socket, "--filter=error", isRead ? "pattern" : "memory", "1G", rate],
      socketPath: socket, readiness: .socketAnswers)
    let uri = "nbd+unix:///?socket=\(socket)"
    let file = folder.path("disk.raw")
    if isRead {
      // 1024 requests, one in a hundred of which fails: all go well once in 30,000 times.
      let text = try failure("copy", uri, file)
      #expect(text.contains("ended with 1: ") && text.contains("read failed: EIO"), "\(text)")
      #expect(!FileManager.default.fileExists(atPath: file))
      #expect(!FileManager.default.fileExists(atPath: file + ".partial"))
    } else {
      try run("dd", "if=/dev/urandom", "of=\(file)", "bs=1M", "count=1", "status=none")
      // The same MiB a thousand times: data, and no hole, wherever it is looked at.
      try run(
        "sh", "-c",
        "for i in 1 2 3 4 5 6 7 8 9 10; do cat \(file) \(file) > \(file).2; "
          + "mv \(file).2 \(file); done")
      let text = try failure("copy", file, uri)
      #expect(text.contains("ended with 1: ") && text.contains("write failed: EIO"), "\(text)")
    }
    _ = kit.stop()
  }

  @Test func `CVE-2023-5871, extents that cannot be`() async throws {
    @Sendable func extents(_ id: UInt32, _ pairs: [(UInt32, UInt32)]) -> [UInt8] {
      wire(id) + pairs.flatMap { wire($0.0, $0.1) }
    }
    let payloads = [
      extents(7, [(0, 0)]), extents(7, [(4096, 0), (0, 0)]), extents(7, []),
      extents(8, [(4096, 0)]), extents(7, [(65_536, 0), (1, 0)]),
      extents(7, [(4096, 0)]) + [0],
    ]
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: 1 << 20, contexts: [(7, "base:allocation")])
      let request = try side.receiveRequest()
      if side.number < payloads.count {
        try side.chunk(request, 5, payloads[side.number])
      } else if side.number == payloads.count {
        // 64-bit extents where nobody agreed on extended headers.
        try side.chunk(request, 6, wire(UInt32(7), UInt32(1), UInt64(4096), UInt64(0)))
      } else {
        // Flags of a chunk that nobody knows.
        try side.send(
          wire(UInt32(0x668e_33ef), UInt16(3), UInt16(5), request.cookie, UInt32(12)),
          extents(7, [(4096, 0)]))
      }
      side.waitForEnd()
    }
    defer { server.stop() }
    for _ in 0..<payloads.count + 2 {
      let client = try await connect(server)
      await expectViolation { _ = try await client.blockStatus(at: 0, byteCount: 65_536) }
    }
  }

  @Test func `CVE-2023-5215, sizes that are negative elsewhere`() async throws {
    let sizes: [UInt64] = [0, 1, (1 << 63) - 1, 1 << 63, .max]
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: sizes[side.number])
      side.waitForEnd()
    }
    defer { server.stop() }
    for size in sizes {
      guard size < 1 << 63 else {
        let seen = await clientFault { _ = try await connect(server) }
        #expect(seen == .violated(.sizeTooLarge(byteCount: size)))
        continue
      }
      let client = try await connect(server)
      #expect(client.byteCount == size)
      try await client.disconnect()
    }
  }

  @Test(arguments: TLSPeer.byCertificate)
  func `CVE-2024-7383, a server that is somebody else is refused, and why`(
    _ peer: TLSPeer
  ) async throws {
    let server = try TLSServer(peer)
    let good = try server.uri()
    try await NBDConnection.connect(good).disconnect()
    // Another authority, and that of this system, which is what nobody checked.
    try server.certificates.makeAuthority("other")
    var uri = good
    uri.tls.certificatesFolder = try server.certificates.emptyClient("stranger", authority: "other")
    await expectInsecure("issuer is unknown") { _ = try await NBDConnection.connect(uri) }
    uri.tls.certificatesFolder = nil
    let system = await clientFault { _ = try await NBDConnection.connect(uri) }
    switch system {
    case .insecure(let text): #expect(text.contains("issuer is unknown"))
    case .unsupported(let text): #expect(text.contains("system's authorities"))  // has none
    default: Issue.record("\(String(describing: system))")
    }
    // Another name, by the address and by the user.
    uri = good
    uri.tls.hostname = "localhost.example"
    await expectInsecure("does not match the expected: localhost.example") {
      _ = try await NBDConnection.connect(uri)
    }
    // Revoked.
    let folder = try server.certificates.emptyClient("informed")
    try server.certificates.revokeServer(for: folder)
    uri = good
    uri.tls.certificatesFolder = folder
    await expectInsecure("revoked") { _ = try await NBDConnection.connect(uri) }
  }

  @Test func `CVE-2024-7383, certificates that are expired, self-signed or for clients`()
    async throws
  {
    let expired = try CertificateFolder(serverValidity: .expired)
    let selfSigned = try CertificateFolder()
    try selfSigned.signServerByItself()
    let purpose = try CertificateFolder(serverPurpose: "tls_www_client")
    for (certificates, words) in [
      (expired, "expired"), (selfSigned, "NOT trusted"), (purpose, "purpose"),
    ] {
      // nbdkit is not choosy about its own certificate.
      let server = try TLSServer(.nbdkitCertificates, certificates: certificates)
      let uri = try server.uri()
      await expectInsecure(words) { _ = try await NBDConnection.connect(uri) }
    }
  }

  @Test func `NBD gh-135, an option reply of 4 GiB`() async throws {
    let server = try ScriptedServer { side in
      try side.send(greeting, wire(UInt16(3)))
      _ = try side.receive(4)
      let (option, _) = try side.receiveOption()
      let type: UInt32 = side.number == 0 ? 1 : 0x8000_0001
      try side.send(wire(UInt64(0x0003_e889_0455_65a9), option, type, UInt32.max))
      side.waitForEnd()
    }
    defer { server.stop() }
    for _ in 0..<2 { await expectViolation { _ = try await connect(server) } }
  }

  @Test func `qemu-block 2023-05, a chunk of 2 GiB`() async throws {
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: 1 << 20)
      let request = try side.receiveRequest()
      try side.send(
        wire(
          UInt32(0x668e_33ef), UInt16(1), UInt16(side.number == 0 ? 1 : 0x8001), request.cookie,
          UInt32(1 << 31)))
      side.waitForEnd()
    }
    defer { server.stop() }
    for _ in 0..<2 {
      let client = try await connect(server)
      await expectViolation { _ = try await client.read(at: 0, byteCount: 512) }
    }
  }
}
