// SPDX-License-Identifier: Apache-2.0
//
// The client inside TLS, against the servers that people use. Who a server is, and what happens
// when it is somebody else, is in PastFaultTests and HostileTLSTests. This file starts servers.

import Foundation
import NBDClient
import NBDProtocol
import TestSupport
import Testing

/// The fault of `body`; nil when it has none.
func clientFault(_ body: () async throws -> Void) async -> NBDClientFault? {
  do {
    try await body()
    return nil
  } catch {
    return error as? NBDClientFault
  }
}

/// Expects that TLS was refused, in these words.
func expectInsecure(
  _ words: String, sourceLocation: SourceLocation = #_sourceLocation,
  _ body: () async throws -> Void
) async {
  let seen = await clientFault(body)
  guard case .insecure(let text) = seen, text.contains(words) else {
    Issue.record("\(words): \(String(describing: seen))", sourceLocation: sourceLocation)
    return
  }
}

@Suite struct `Inside TLS, against` {
  @Test(arguments: TLSPeer.allCases)
  func `each server, what was written is read, over many records at once`(
    _ peer: TLSPeer
  ) async throws {
    let server = try TLSServer(peer)
    let client = try await NBDConnection.connect(try server.uri())
    #expect(client.session.isEncrypted)
    #expect(client.byteCount == UInt64(TLSServer.byteCount))
    // Several times what the client's and the session's buffers hold, in both directions.
    try await withThrowingTaskGroup(of: Void.self) { group in
      for index in 0..<16 {
        group.addTask {
          let bytes = [UInt8](repeating: UInt8(index + 1), count: (1 << 20) - index)
          try await client.write(bytes, at: UInt64(index) << 20)
        }
      }
      try await group.waitForAll()
    }
    try await client.flush()
    try await withThrowingTaskGroup(of: Bool.self) { group in
      for index in 0..<16 {
        group.addTask {
          let count = (1 << 20) - index
          let bytes = try await client.read(at: UInt64(index) << 20, byteCount: count)
          return bytes == [UInt8](repeating: UInt8(index + 1), count: count)
        }
      }
      for try await isEqual in group { #expect(isEqual) }
    }
    try await client.disconnect()
  }

  @Test(arguments: TLSPeer.allCases)
  func `each server, the list is asked for inside TLS`(_ peer: TLSPeer) async throws {
    let server = try TLSServer(peer)
    let list = try await NBDConnection.list(try server.uri())
    #expect(list.isEncrypted)
    #expect(list.exports.count == 1)
  }

  @Test(arguments: TLSPeer.allCases)
  func `each server, a client without TLS is told what is missing`(_ peer: TLSPeer) async throws {
    let server = try TLSServer(peer)
    guard
      case .refused(let words) = await clientFault({
        _ = try await NBDConnection.connect(server.clear)
      })
    else {
      Issue.record("a client without TLS was let in")
      return
    }
    #expect(words.contains("requires TLS"))
  }

  @Test(arguments: [TLSPeer.qemuCertificates, .nbdkitCertificates, .stratadCertificates])
  func `a server that asks for certificates, ours is shown, and its lack is told`(
    _ peer: TLSPeer
  ) async throws {
    let server = try TLSServer(peer, verifiesClients: true)
    var uri = try server.uri()
    guard let fault = await clientFault({ _ = try await NBDConnection.connect(uri) }) else {
      Issue.record("a client without a certificate was let in")
      return
    }
    // With TLS 1.3 the server's no comes after our handshake: as an alert, as the end, or from
    // stratad as an option's error with the reason.
    #expect("\(fault)".contains(peer == .stratadCertificates ? "a certificate is needed" : "TLS"))
    uri.tls.certificatesFolder = try server.certificates.client("alice")
    let client = try await NBDConnection.connect(uri)
    try await client.write([1, 2, 3], at: 0)
    try await client.disconnect()
  }

  @Test(arguments: TLSPeer.allCases)
  func `a server that comes back, the client reconnects inside TLS`(_ peer: TLSPeer) async throws {
    let server = try TLSServer(peer)
    let client = try await NBDConnection.connect(
      try server.uri(), ClientOptions(reconnect: .init(secondsMax: 30)))
    try await client.write([7], at: 4096)
    try await client.flush()
    try server.restart()
    #expect(try await client.read(at: 4096, byteCount: 1) == [7])
    try await client.disconnect()
  }

  @Test func `a server on TCP, its name and its address are both in the certificate`() async throws
  {
    let certificates = try CertificateFolder()
    let folder = try TemporaryFolder()
    let kit = try NBDKitOnTCP(
      folder, ["--tls=require", "--tls-certificates", certificates.serverPath])
    let credentials = try certificates.emptyClient("empty")
    for host in ["localhost", "127.0.0.1"] {
      let uri = try NBDURI("nbds://\(host):\(kit.port)/?tls-certificates=\(credentials)")
      let client = try await NBDConnection.connect(uri)
      #expect(client.session.isEncrypted)
      try await client.disconnect()
    }
    // The same machine by an address that the certificate does not have.
    let other = try NBDURI("nbds://127.0.0.2:\(kit.port)/?tls-certificates=\(credentials)")
    await expectInsecure("does not match the expected: 127.0.0.2") {
      _ = try await NBDConnection.connect(other)
    }
    // uri.md "tls-hostname": "when DNS does not properly resolve the server's hostname"
    var named = other
    named.tls.hostname = "localhost"
    try await NBDConnection.connect(named).disconnect()
  }

  @Test func `a server whose certificate has no IP address, its number is not a name`()
    async throws
  {
    let certificates = try CertificateFolder(
      serverNames: ["dns_name = localhost", "dns_name = 127.0.0.1"])
    let folder = try TemporaryFolder()
    let kit = try NBDKitOnTCP(
      folder, ["--tls=require", "--tls-certificates", certificates.serverPath])
    let credentials = try certificates.emptyClient("empty")
    let uri = try NBDURI("nbds://127.0.0.1:\(kit.port)/?tls-certificates=\(credentials)")
    await expectInsecure("does not match the expected") {
      _ = try await NBDConnection.connect(uri)
    }
  }
}

@Suite struct `Wishes about TLS` {
  @Test func `offered: TLS where the server has it, plain text where not`() async throws {
    var options = ClientOptions()
    options.tls.use = .offered
    let with = try TLSServer(.nbdkitKeys)
    options.tls.keyFile = with.keyPath
    options.tls.identity = TLSServer.identity
    let first = try await NBDConnection.connect(with.clear, options)
    #expect(first.session.isEncrypted)
    try await first.disconnect()
    let folder = try TemporaryFolder()
    let without = try Peer.qemuNBD.start(in: folder)
    let uri = NBDURI(endpoint: .unix(path: without.socketPath))
    let second = try await NBDConnection.connect(uri, options)
    #expect(!second.session.isEncrypted)
    try await second.disconnect()
    // nbds: stays what it is.
    var secure = uri
    secure.requiresTLS = true
    await expectInsecure("TLS is required") { _ = try await NBDConnection.connect(secure, options) }
  }

  @Test func `credentials among the options require TLS, whatever the scheme`() async throws {
    let folder = try TemporaryFolder()
    let server = try Peer.nbdkit.start(in: folder)
    var options = ClientOptions()
    let certificates = try CertificateFolder()
    options.tls.certificatesFolder = try certificates.emptyClient("empty")
    options.tls.hostname = "localhost"
    await expectInsecure("TLS is required") {
      _ = try await NBDConnection.connect(
        NBDURI(endpoint: .unix(path: server.socketPath)), options)
    }
  }

  @Test func `that make no sense are refused before anybody is called`() async throws {
    let certificates = try CertificateFolder()
    let folder = certificates.serverPath
    let empty = try certificates.emptyClient("empty")
    let half = try certificates.client("half")
    try FileManager.default.removeItem(atPath: "\(half)/client-key.pem")
    let temporary = try TemporaryFolder()
    let keys = temporary.path("keys")
    try "a:0102030405060708090a0b0c0d0e0f10\nb:0102030405060708090a0b0c0d0e0f10\n".write(
      toFile: keys, atomically: false, encoding: .utf8)
    // Nobody listens there: a call would be `unreachable`.
    let cases: [(query: String, words: String)] = [
      ("", "say tls-hostname=NAME"),
      ("&tls-hostname=h&tls-certificates=/nowhere", "/nowhere/ca-cert.pem"),
      ("&tls-hostname=h&tls-certificates=\(half)", "one is missing"),
      ("&tls-type=anon", "not supported"),
      ("&tls-type=psk", "tls-psk-file"),
      ("&tls-psk-file=/nowhere", "/nowhere"),
      ("&tls-psk-file=\(folder)/server-cert.pem", "line 1"),
      ("&tls-psk-file=\(keys)", "several identities"),
      ("&tls-psk-file=\(keys)&tls-certificates=\(empty)", "not both"),
    ]
    for (query, words) in cases {
      let uri = try NBDURI("nbds+unix:///?socket=/nowhere/nbd.sock\(query)")
      guard
        case .unsupported(let text) = await clientFault({ _ = try await NBDConnection.connect(uri) }
        )
      else {
        Issue.record("\(query) was taken")
        continue
      }
      #expect(text.contains(words), "\(query)")
    }
    let plain = try NBDURI("nbd+unix:///?socket=/nowhere/nbd.sock&tls-certificates=\(empty)")
    guard
      case .unsupported(let text) = await clientFault({ _ = try await NBDConnection.connect(plain) }
      )
    else {
      Issue.record("a wish about TLS had no effect, silently")
      return
    }
    #expect(text.contains("only nbds: asks for TLS"))
  }

  @Test func `to check nothing are heard, and certificates are then taken from anybody`()
    async throws
  {
    let certificates = try CertificateFolder()
    try certificates.signServerByItself()
    let server = try TLSServer(.nbdkitCertificates, certificates: certificates)
    var uri = try server.uri()
    uri.tls.verifiesPeer = false
    let client = try await NBDConnection.connect(uri)
    #expect(client.session.isEncrypted)
    try await client.disconnect()
  }

  @Test func `about the version are kept`() async throws {
    let server = try TLSServer(.stratadCertificates)
    for (priority, words) in [
      ("NORMAL:-VERS-ALL:+VERS-TLS1.2", nil), ("NORMAL:-VERS-ALL:+VERS-TLS1.1:%COMPAT", "TLS"),
    ] as [(String, String?)] {
      var options = ClientOptions()
      options.tls.priority = priority
      let seen = await clientFault {
        try await NBDConnection.connect(try server.uri(), options).disconnect()
      }
      #expect((seen == nil) == (words == nil), "\(priority): \(String(describing: seen))")
    }
  }
}

/// nbdkit on a port of 127.0.0.0/8 that nobody else has.
final class NBDKitOnTCP {
  let port: UInt16
  private let daemon: Daemon

  init(_ folder: TemporaryFolder, _ words: [String]) throws {
    for _ in 0..<20 {
      let port = UInt16.random(in: 20_000..<60_000)
      let started = Result {
        try Daemon(
          requireTool("nbdkit"),
          ["-f", "-i", "0.0.0.0", "-p", "\(port)", "-P", folder.path("pid")] + words
            + ["memory", "1M"],
          socketPath: folder.path("log"), readiness: .fileAppears(folder.path("pid")))
      }
      // Somebody else may have the port.
      guard case .success(let daemon) = started else { continue }
      (self.port, self.daemon) = (port, daemon)
      return
    }
    throw WireError.ended("nbdkit found no port")
  }
}
