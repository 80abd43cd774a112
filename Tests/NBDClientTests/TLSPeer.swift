// SPDX-License-Identifier: Apache-2.0
//
// The servers that people use, with TLS: how each is started, and what a client has to say to it.
// This file starts servers.

import Foundation
import NBDClient
import NBDProtocol
import TestSupport

/// A server with TLS and how it proves itself.
enum TLSPeer: String, CaseIterable, Sendable {
  case qemuCertificates = "qemu-nbd --tls-creds (x509)"
  case qemuKeys = "qemu-nbd --tls-creds (psk)"
  case nbdkitCertificates = "nbdkit --tls=require --tls-certificates"
  case nbdkitKeys = "nbdkit --tls=require --tls-psk"
  case nbdServer = "nbd-server force_tls"
  case stratadCertificates = "stratad --tls-certificates"
  case stratadKeys = "stratad --tls-psk"

  /// The programs once each.
  static let byCertificate: [TLSPeer] = [
    .qemuCertificates, .nbdkitCertificates, .nbdServer, .stratadCertificates,
  ]

  var usesKeys: Bool {
    switch self {
    case .qemuKeys, .nbdkitKeys, .stratadKeys: true
    case .qemuCertificates, .nbdkitCertificates, .nbdServer, .stratadCertificates: false
    }
  }

  var exportName: String { self == .nbdServer ? "disk" : "" }
}

/// A running server with TLS, and what a client needs for it.
final class TLSServer {
  static let byteCount = 16 << 20

  let peer: TLSPeer
  let folder: TemporaryFolder
  let certificates: CertificateFolder
  private(set) var server: PeerServer

  init(
    _ peer: TLSPeer, certificates: CertificateFolder? = nil, verifiesClients: Bool = false
  ) throws {
    self.peer = peer
    folder = try TemporaryFolder()
    self.certificates = try certificates ?? CertificateFolder()
    try run("qemu-img", "create", "-q", "-f", "raw", folder.path("disk.raw"), "\(Self.byteCount)")
    try "\(Self.identity):\(Self.key)\n".write(
      toFile: folder.path("keys.psk"), atomically: false, encoding: .utf8)
    server = try Self.start(
      peer, folder, self.certificates.serverPath, verifiesClients: verifiesClients)
  }

  static let identity = "alice"
  private static let key = String(repeating: "5a", count: 16)

  var keyPath: String { folder.path("keys.psk") }

  /// The address without a word about TLS.
  var clear: NBDURI {
    NBDURI(endpoint: .unix(path: server.socketPath), exportName: peer.exportName)
  }

  /// The address as a client writes it.
  func uri(hostname: String? = "localhost") throws -> NBDURI {
    var uri = clear
    uri.requiresTLS = true
    if peer.usesKeys {
      uri.userName = Self.identity
      uri.tls.keyFile = keyPath
    } else {
      let name = "c\(UInt32.random(in: 0 ... .max))"
      // nbd-server lets nobody in without a certificate.
      uri.tls.certificatesFolder =
        try peer == .nbdServer ? certificates.client(name) : certificates.emptyClient(name)
      uri.tls.hostname = hostname
    }
    return uri
  }

  /// The same server again, at the same address.
  func restart() throws {
    server.stop()
    unlink(server.socketPath)
    server = try Self.start(peer, folder, certificates.serverPath, verifiesClients: false)
  }

  private static func start(
    _ peer: TLSPeer, _ folder: TemporaryFolder, _ certificates: String, verifiesClients: Bool
  ) throws -> PeerServer {
    let image = folder.path("disk.raw")
    let socket = folder.path("nbd.sock")
    let keys = folder.path("keys.psk")
    func daemon(_ tool: String, _ words: [String]) throws -> PeerServer {
      PeerServer(
        try Daemon(requireTool(tool), words, socketPath: socket, readiness: .socketAnswers))
    }
    func qemu(_ object: String) throws -> PeerServer {
      try daemon(
        "qemu-nbd",
        ["-t", "-e", "4", "-f", "raw", "-k", socket, "--object", object, "--tls-creds", "t", image])
    }
    let verifies = verifiesClients ? "on" : "off"
    switch peer {
    case .qemuCertificates:
      return try qemu(
        "tls-creds-x509,id=t,endpoint=server,dir=\(certificates),verify-peer=\(verifies)")
    case .qemuKeys:
      return try qemu("tls-creds-psk,id=t,endpoint=server,dir=\(folder.root)")
    case .nbdkitCertificates:
      return try daemon(
        "nbdkit",
        ["-f", "-U", socket, "--tls=require", "--tls-certificates", certificates]
          + (verifiesClients ? ["--tls-verify-peer"] : []) + ["file", image])
    case .nbdkitKeys:
      return try daemon(
        "nbdkit", ["-f", "-U", socket, "--tls=require", "--tls-psk", keys, "file", image])
    case .nbdServer:
      return try Peer.startNBDServer(
        image, socket, folder,
        """
        force_tls = true
        certfile = \(certificates)/server-cert.pem
        keyfile = \(certificates)/server-key.pem
        cacertfile = \(certificates)/ca-cert.pem
        """)
    case .stratadCertificates, .stratadKeys:
      let proof =
        peer == .stratadKeys
        ? ["--tls-psk", keys]
        : ["--tls-certificates", certificates] + (verifiesClients ? ["--tls-verify-peer"] : [])
      return PeerServer(
        try Daemon(
          daemonPath(), [image, "--format", "raw", "--socket", socket] + proof, socketPath: socket))
    }
  }
}
