// SPDX-License-Identifier: Apache-2.0
//
// The rules as `strata lint` judges them, all of them for each disk, in clear and inside TLS. What
// stratad promises beyond them is in the other files here.

import Foundation
import NBDLint
import TLS
import TestSupport
import Testing

/// A disk and a way to it, which is asked every rule.
private struct LintedKind: CustomTestStringConvertible, Sendable {
  enum Secret: String, Sendable { case none, certificates, keys }

  var disk = DiskKind.raw
  var secret = Secret.none
  var isOnTCP = false
  var words: [String] = []

  var testDescription: String {
    "\(disk) \(words.joined(separator: " ")) \(isOnTCP ? "TCP" : "UNIX") TLS: \(secret)"
  }

  var isFirst: Bool { disk == .raw && secret == .none && !isOnTCP && words.isEmpty }

  static let all = [
    LintedKind(),
    LintedKind(disk: .qcow2),
    LintedKind(words: ["--read-only"]),
    LintedKind(words: ["--block-size", "4096"]),
    LintedKind(isOnTCP: true),
    LintedKind(secret: .certificates),
    LintedKind(disk: .qcow2, secret: .keys, isOnTCP: true),
    LintedKind(secret: .keys, words: ["--read-only"]),
    LintedKind(secret: .certificates, isOnTCP: true, words: ["--block-size", "4096"]),
  ]
}

/// One of them, served.
private final class LintedServer {
  let server: LintServer
  let daemon: Daemon
  private let folder: TemporaryFolder

  init(_ kind: LintedKind) throws {
    folder = try TemporaryFolder()
    // More than 4 GiB of nothing, for what is about lengths of 64 bits.
    let image = try ServedDisk.makeImage(kind.disk, byteCount: 9 << 30, in: folder)
    var words = kind.words
    var tls: TLSClientPlan?
    var certificates: CertificateFolder?
    switch kind.secret {
    case .none: break
    case .keys:
      let path = folder.path("keys.psk")
      try "lint:\(String(repeating: "5a", count: 16))\n".write(
        toFile: path, atomically: false, encoding: .utf8)
      words += ["--tls-psk", path]
      let key = [UInt8](repeating: 0x5a, count: 16)
      tls = TLSClientPlan(.keys(PSKTable(identity: Array("lint".utf8), key: key)), host: nil)
    case .certificates:
      let made = try CertificateFolder()
      words += ["--tls-certificates", made.serverPath, "--tls-verify-peer"]
      tls = try Self.plan(ofClient: made.client("lint"))
      certificates = made
    }
    // A second export, and a promise about silent clients where that costs its seconds only once.
    let second = folder.path("second.raw")
    guard FileManager.default.createFile(atPath: second, contents: Data(count: 1 << 20)) else {
      throw WireError.system("create", errno: errno)
    }
    words += ["--export-name", ServedDisk.exportName, "--export", "second=\(second),format=raw"]
    if kind.isFirst { words += ["--handshake-timeout", "5"] }
    let socket = folder.path("nbd.sock")
    let listening =
      kind.isOnTCP ? ["--tcp", "127.0.0.1:0", "--print-drive"] : ["--socket", socket]
    // The certificates are read before it is ready.
    daemon = try withExtendedLifetime(certificates) {
      try Daemon(
        daemonPath(), [image, "--format", kind.disk.rawValue] + listening + words,
        socketPath: socket)
    }
    let address: LintPlace.Address =
      kind.isOnTCP
      ? .tcp(host: "127.0.0.1", port: try Self.port(of: daemon)) : .unix(path: socket)
    server = LintServer(
      place: LintPlace(address, export: ServedDisk.exportName), deadlineSeconds: 20,
      handshakeSecondsMax: kind.isFirst ? 5 : nil, tls: tls,
      rawFilePath: kind.disk == .raw ? image : nil)
  }

  /// The port in "-drive file=nbd:127.0.0.1:12345,…", which the daemon printed; with TLS it says
  /// "…server.port=12345,…".
  private static func port(of daemon: Daemon) throws -> UInt16 {
    let text = daemon.errorText
    for mark in ["nbd:127.0.0.1:", "server.port="] {
      guard let range = text.range(of: mark) else { continue }
      if let port = UInt16(text[range.upperBound...].prefix { $0.isNumber }) { return port }
    }
    throw WireError.violation("no port in \(text)")
  }

  private static func plan(ofClient folder: String) throws -> TLSClientPlan {
    func read(_ name: String) throws -> [UInt8] {
      Array(try Data(contentsOf: URL(fileURLWithPath: "\(folder)/\(name)")))
    }
    let files = TLSCredentials.CertificateFiles(
      authorities: try read("ca-cert.pem"), certificate: try read("client-cert.pem"),
      key: try read("client-key.pem"))
    return TLSClientPlan(.certificates(files, verifiesPeer: true), host: "localhost")
  }
}

@Suite(.serialized) struct `each rule of lint` {
  @Test(arguments: LintedKind.all)
  private func `is kept`(_ kind: LintedKind) throws {
    let linted = try LintedServer(kind)
    var run = LintRun(server: linted.server, mayWrite: true)
    try run.prepare()
    #expect((run.survey.tlsVersion == nil) == (kind.secret == .none))
    var passed: Set<String> = []
    var skipped: [String] = []
    for check in LintCatalogue.checks {
      let outcome = run.judge(check).outcome
      switch outcome {
      case .pass: passed.insert(check.id)
      case .skipped: skipped.append(check.id)
      case .fail, .destructiveSkipped: Issue.record("\(check.id): \(outcome)")
      }
    }
    #expect(passed.contains("meta.other-export"))
    #expect(passed.contains("load.handshake-timeout") == kind.isFirst)
    let isReadOnly = kind.words == ["--read-only"]
    #expect(passed.count >= (isReadOnly ? 135 : 170), "not judged: \(skipped)")
    if kind.secret != .none {
      #expect(
        passed.isSuperset(of: [
          "tls.starttls", "tls.starttls-data", "tls.forced", "tls.plain-inject",
          "tls.second-starttls", "tls.state-dropped",
        ]))
    }
    if !isReadOnly { #expect(passed.isSuperset(of: ["ext.wz-64bit", "ext.block-status-64bit"])) }
    if !isReadOnly, kind.disk == .raw {
      #expect(passed.isSuperset(of: ["wz.no-hole-allocates", "wz.sparse"]))
    }
    #expect(linted.daemon.stop() == 0)
  }
}
