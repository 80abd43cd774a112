// SPDX-License-Identifier: Apache-2.0
//
// Which servers an image can make us talk to: those that the user has allowed, and no file of
// ours by way of a server's image. Source: tools/decisions/0017; CVE-2024-4467 is of this kind.

import Foundation
import TestSupport
import Testing

/// A socket that notes whether anybody has come.
private final class Witness {
  private let descriptor: Int32

  init(path: String) throws {
    descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_NONBLOCK.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    let result = withUnsafePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    guard result == 0, listen(descriptor, 8) == 0 else { throw ServeError("no witness") }
  }

  deinit { close(descriptor) }

  var wasDialled: Bool {
    let client = accept(descriptor, nil, nil)
    guard client >= 0 else { return false }
    close(client)
    return true
  }
}

@Suite struct `A server that an image names` {
  /// An overlay, made by QEMU, on an export that nobody should ask for.
  private func overlay(
    on query: String = "", _ folder: TemporaryFolder
  ) throws -> (uri: String, path: String, witness: Witness) {
    let uri = "nbd+unix:///base?socket=\(folder.path("w"))\(query)"
    let path = folder.path("disk")
    try run(
      "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", uri, "-F", "raw", path, "1M")
    return (uri, path, try Witness(path: folder.path("w")))
  }

  @Test func `is not dialled by stratad unless that is allowed in words`() throws {
    let folder = try TemporaryFolder()
    let (uri, path, witness) = try overlay(folder)
    for words in [[], ["--allow-remote-base", "nbd+unix:///other?socket=\(folder.path("w"))"]] {
      let refusal = try ServeFixture.refusal([path, "--socket", folder.path("s")] + words)
      #expect(
        refusal
          == "stratad: \(path): its backing file '\(uri)' is not opened: it names a server, which"
          + " images may do only where that is allowed; if you trust it, say --allow-remote-base"
          + " '\(uri)'\n")
    }
    #expect(!witness.wasDialled)
  }

  @Test func `is not dialled for one export because another one may`() throws {
    let folder = try TemporaryFolder()
    let (uri, path, witness) = try overlay(folder)
    let other = folder.path("other")
    try run("qemu-img", "create", "-q", "-f", "raw", other, "1M")
    let refusal = try ServeFixture.refusal([
      "--export", "a=\(other),format=raw,allow-remote-base=\(uri)", "--export", "b=\(path)",
      "--socket", folder.path("s"),
    ])
    #expect(refusal.contains("\(path): its backing file '\(uri)' is not opened"))
    #expect(!witness.wasDialled)
  }

  @Test(arguments: [["info", "--backing-chain"], ["map"]])
  func `is not dialled by verbs on images either`(words: [String]) throws {
    let folder = try TemporaryFolder()
    let (_, path, witness) = try overlay(folder)
    let result = try runTool([try ServedProcess.path(of: "strata")] + words + [path])
    #expect(result.code == 1)
    #expect(result.error.contains("--allow-remote-base"))
    #expect(try runTool(ServedProcess.path(of: "strata"), "info", path).code == 0)
    #expect(try runTool(ServedProcess.path(of: "strata"), "check", path).code == 0)
    #expect(!witness.wasDialled)
  }

  @Test func `is not dialled for files of ours that its URI names, whatever is allowed`() throws {
    let folder = try TemporaryFolder()
    let (_, path, witness) = try overlay(on: "&tls-certificates=/root", folder)
    let refusal = try ServeFixture.refusal(
      [path, "--socket", folder.path("s"), "--allow-remote-base", "any"])
    #expect(refusal.contains("it names files of this machine for TLS"))
    #expect(!witness.wasDialled)
  }

  @Test func `is not dialled because the user names another one for a new overlay's base`() throws {
    let folder = try TemporaryFolder()
    let (_, path, witness) = try overlay(folder)
    let bench = try RemoteBench()
    try FileManager.default.copyItem(atPath: path, toPath: bench.folder.path("base"))
    try bench.serveBase()
    let strata = try ServedProcess.path(of: "strata")
    let result = try runTool(
      strata, "create", "-f", "qcow2", "-b", bench.uri, "-F", "qcow2", folder.path("new"))
    #expect(result.code == 1)
    #expect(result.error.contains("is not opened: it names a server"))
    #expect(!ServeFixture.exists(folder.path("new")))
    #expect(!witness.wasDialled)
  }

  @Test func `may not name a file of this machine in its turn`() throws {
    let bench = try RemoteBench()
    try run(
      "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw",
      bench.folder.path("base"), "1M")
    try bench.serveBase()
    let own = ["--format", "qcow2", "--socket", bench.folder.path("s"), "--read-only"]
    let direct = try ServeFixture.refusal([bench.uri] + own)
    #expect(direct.contains("an image that is kept elsewhere may not name one"))
    try run(
      "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", bench.uri, "-F", "qcow2",
      bench.folder.path("disk"), "1M")
    let indirect = try ServeFixture.refusal(
      [bench.folder.path("disk"), "--allow-remote-base", "any"] + own)
    #expect(indirect.contains("an image that is kept elsewhere may not name one"))
  }

  @Test func `is opened when its URI is written otherwise and means the same`() throws {
    let bench = try RemoteBench()
    try bench.makeRaw("base", RemoteBench.contents(1 << 20))
    try bench.serveBase()
    try bench.makeOverlay()
    let other = bench.uri.replacing("base.sock", with: "%62ase.sock")
    let daemon = try ServedProcess(
      stratad: [
        bench.folder.path("disk"), "--socket", bench.folder.path("s"), "--allow-remote-base", other,
      ]
    ).waitUntilReady()
    #expect(daemon.stop() == 0)
  }

  @Test(arguments: [
    ("nbd://", "--allow-remote-base"), ("x", "--allow-remote-base"), ("0", "--remote-timeout"),
  ])
  func `is allowed by a right URI only`(value: String, option: String) throws {
    let fixture = try ServeFixture()
    let word = value == "nbd://" ? "nbd+unix:///" : value
    let refusal = try ServeFixture.refusal(fixture.arguments + [option, word])
    #expect(refusal.hasPrefix("stratad: \(option): "))
  }
}

@Suite struct `Verbs on an export` {
  @Test func `print what qemu-img prints`() throws {
    let bench = try RemoteBench()
    try bench.makeRaw("base", RemoteBench.contents(1 << 20))
    try bench.serveBase()
    try bench.makeOverlay()
    let strata = try ServedProcess.path(of: "strata")
    let disk = bench.folder.path("disk")
    let allowed = ["--allow-remote-base", "any"]
    for (words, options) in [
      (["info", bench.uri], [String]()), (["info", "--output=json", bench.uri], []),
      (["map", "--output=json", bench.uri], []), (["map", bench.uri], []),
      (["info", "--backing-chain", disk], allowed), (["map", "--output=json", disk], allowed),
    ] {
      let ours = try runTool([strata] + words + options)
      let theirs = try runTool(["qemu-img"] + words)
      #expect(ours.code == 0, "\(words): \(ours.error)")
      // Key order and blanks of JSON are no matter.
      #expect(normal(ours.output) == normal(theirs.output), "\(words)")
    }
  }

  private func normal(_ text: String) -> String {
    do {
      let value = try JSONSerialization.jsonObject(with: Data(text.utf8))
      let data = try JSONSerialization.data(withJSONObject: value, options: .sortedKeys)
      return String(decoding: data, as: UTF8.self)
    } catch {
      return text
    }
  }

  @Test func `say what is wrong with it`() throws {
    let strata = try ServedProcess.path(of: "strata")
    let folder = try TemporaryFolder()
    let gone = "nbd+unix:///x?socket=\(folder.path("nobody"))"
    let missing = try runTool(strata, "info", gone)
    #expect(missing.code == 1)
    #expect(
      missing.error
        == "strata: \(gone): connect: No such file or directory; check that the server runs and"
        + " has the export\n")
    let wrong = try runTool(strata, "info", "nbd+unix:///x")
    #expect(wrong.code == 1)
    #expect(wrong.error.contains("the query has no socket=PATH"))
  }
}
