// SPDX-License-Identifier: Apache-2.0
//
// `strata nbd`: what it prints, what it copies, and how it ends. QEMU's and libnbd's tools are the
// judges. This file starts servers and programs.

import Foundation
import TestSupport
import Testing

/// `strata` beside the daemon under test.
private func strata(_ arguments: String...) throws -> String { try strata(arguments) }

private func strata(_ arguments: [String]) throws -> String {
  let path = URL(fileURLWithPath: try daemonPath()).deletingLastPathComponent().path + "/strata"
  return try runTool(path, ["nbd"] + arguments)
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

/// A raw file of 16 MiB with data, zeroes and holes, of odd lengths.
private func makeSource(_ path: String, byteCount: Int = (16 << 20) - 512) throws {
  try run("qemu-img", "create", "-q", "-f", "raw", path, "\(byteCount)")
  try run(
    "qemu-io", "-f", "raw", "-c", "write -P 1 0 300k", "-c", "write -P 2 5M 1M", "-c",
    "write -P 3 7000k 1k", "-c", "write -P 4 12M 12345", path)
}

private func kit(_ folder: TemporaryFolder, _ name: String, _ arguments: String...) throws -> Daemon
{
  let socket = folder.path(name)
  return try Daemon(
    requireTool("nbdkit"), ["-f", "-U", socket] + arguments, socketPath: socket,
    readiness: .socketAnswers)
}

private func uri(_ daemon: Daemon) -> String { "nbd+unix:///?socket=\(daemon.socketPath)" }
private func uri(_ server: PeerServer) -> String { "nbd+unix:///?socket=\(server.socketPath)" }

/// Bytes that a file occupies.
private func allocated(_ path: String) throws -> Int {
  var status = stat()
  guard stat(path, &status) == 0 else { throw WireError.system("stat", errno: errno) }
  return Int(status.st_blocks) * 512
}

@Suite struct `strata nbd copy` {
  @Test(arguments: Peer.allCases)
  func `brings every byte into a file and back, over each server`(_ peer: Peer) throws {
    let folder = try TemporaryFolder()
    let source = folder.path("source.raw")
    try makeSource(source)
    let daemon = try peer.start(in: folder)
    let uri = "nbd+unix:///\(peer.exportName)?socket=\(daemon.socketPath)"
    let copy = folder.path("copy.raw")
    #expect(try strata("copy", source, uri).contains("copied"))
    #expect(try strata("copy", "-q", uri, copy) == "")
    try run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, copy)
    daemon.stop()
    // nbd-server has no block status, so its copy is all data.
    if peer != .nbdServer {
      #expect(try allocated(copy) < 4 << 20)
      let before = try run("qemu-img", "map", "-f", "raw", "--output=json", source)
      let after = try run("qemu-img", "map", "-f", "raw", "--output=json", copy)
      #expect(before.contains("\"zero\": true") && after.contains("\"zero\": true"))
    }
  }

  @Test func `keeps holes on both sides, extent by extent`() throws {
    let folder = try TemporaryFolder()
    let source = folder.path("source.raw")
    let byteCount = (16 << 20) - 4096
    try makeSource(source, byteCount: byteCount)
    let first = try kit(folder, "a.sock", "file", source)
    let target = folder.path("target.raw")
    try run("qemu-img", "create", "-q", "-f", "raw", target, "16M")
    try run("qemu-io", "-f", "raw", "-c", "write -P 9 0 16M", target)
    let second = try kit(folder, "b.sock", "file", target)
    _ = try strata("copy", "--requests", "3", uri(first), uri(second))
    try run("truncate", "-s", "\(byteCount)", target)
    try run("cmp", source, target)
    let map = { try run("qemu-img", "map", "-f", "raw", "--output=json", $0 as String) }
    #expect(try map(target) == map(source))
  }

  @Test func `ends with 1 when the source fails, and leaves no file that looks complete`() throws {
    // CVE-2022-0485
    let folder = try TemporaryFolder()
    let target = folder.path("target.raw")
    let daemon = try kit(
      folder, "a.sock", "--filter=error", "pattern", "32M", "error-pread-rate=50%")
    #expect(try failure("copy", uri(daemon), target).contains("read failed: EIO"))
    #expect(!FileManager.default.fileExists(atPath: target))
    #expect(!FileManager.default.fileExists(atPath: target + ".partial"))
  }

  @Test(arguments: ["error-pwrite-rate=10%", "error-zero-rate=100%"])
  func `ends with 1 when the target fails`(_ rate: String) throws {
    let folder = try TemporaryFolder()
    let source = folder.path("source.raw")
    try makeSource(source)
    let daemon = try kit(folder, "a.sock", "--filter=error", "memory", "16M", rate)
    var text = ""
    for _ in 0..<10 where !text.contains("failed") {
      text = try failure("copy", source, uri(daemon))
    }
    #expect(text.contains("failed: EIO"))
  }

  @Test func `refuses a file that is there, and replaces it when told to`() throws {
    let folder = try TemporaryFolder()
    let daemon = try kit(folder, "a.sock", "data", "1 2 3")
    let target = folder.path("target")
    #expect(
      try failure("copy", uri(daemon), folder.path("no/such")).contains(
        "\(folder.path("no/such")).partial: create: No such file"))
    try Data([9]).write(to: URL(fileURLWithPath: target))
    #expect(try failure("copy", uri(daemon), target).contains("--overwrite"))
    #expect(FileManager.default.contents(atPath: target) == Data([9]))
    _ = try strata("copy", "--overwrite", uri(daemon), target)
    #expect(FileManager.default.contents(atPath: target) == Data([1, 2, 3]))
  }

  @Test func `of nothing makes nothing`() throws {
    let folder = try TemporaryFolder()
    let daemon = try kit(folder, "a.sock", "null", "0")
    let target = folder.path("target")
    #expect(try strata("copy", uri(daemon), target) == "copied 0 bytes of data and 0 of zeroes\n")
    #expect(FileManager.default.contents(atPath: target) == Data())
    #expect(try strata("map", "--json", uri(daemon)) == "[]\n")
    #expect(try strata("ping", "--count", "3", uri(daemon)).hasPrefix("3 round trips"))
  }

  @Test func `refuses a target that is too small or read-only, before it writes`() throws {
    let folder = try TemporaryFolder()
    let big = try kit(folder, "a.sock", "pattern", "2M")
    let small = try kit(folder, "b.sock", "memory", "1M")
    let fixed = try kit(folder, "c.sock", "-r", "memory", "4M")
    #expect(try failure("copy", uri(big), uri(small)).contains("do not hold"))
    #expect(try failure("copy", uri(big), uri(fixed)).contains("read-only"))
  }

  @Test func `holds its requests while a server is away, when told to`() throws {
    let folder = try TemporaryFolder()
    let source = folder.path("source.raw")
    try makeSource(source)
    let target = folder.path("target.raw")
    // nbdkit's exit-last filter would end it; here the delay keeps the copy long enough.
    var daemon = try kit(folder, "a.sock", "--filter=delay", "file", source, "rdelay=200ms")
    let copied = Lines()
    let done = DispatchSemaphore(value: 0)
    let address = uri(daemon)
    Thread.detachNewThread {
      do {
        copied.text = try strata(
          "copy", "--requests", "1", "--reconnect", "20", address, target)
      } catch { copied.text = "\(error)" }
      done.signal()
    }
    // The target is made when the source is connected; then come seven reads of 200 ms.
    let deadline = Deadline(seconds: 60)
    while deadline.secondsLeft > 0,
      !FileManager.default.fileExists(atPath: target + ".partial")
    { usleep(5_000) }
    kill(daemon.processID, SIGKILL)
    usleep(50_000)
    try FileManager.default.removeItem(atPath: folder.path("a.sock"))
    daemon = try kit(folder, "a.sock", "file", source)
    #expect(done.wait(timeout: .now() + 30) == .success)
    #expect(copied.text.contains("copied"), Comment(rawValue: copied.text))
    try run("cmp", source, target)
  }
}

/// A text that another thread sets before it signals.
private final class Lines: @unchecked Sendable { var text = "" }

@Suite struct `strata nbd` {
  @Test func `info and list print what nbdinfo prints`() throws {
    let folder = try TemporaryFolder()
    let daemon = try Peer.qemuNBD.start(in: folder)
    let ours = try strata("info", "--json", uri(daemon))
    let theirs = try run("nbdinfo", "--json", uri(daemon))
    let mine = try #require(
      try JSONSerialization.jsonObject(with: Data(ours.utf8)) as? [String: Any])
    let other = try #require(
      try JSONSerialization.jsonObject(with: Data(theirs.utf8)) as? [String: Any])
    for key in ["protocol", "TLS", "structured"] {
      #expect("\(mine[key] ?? "-")" == "\(other[key] ?? "+")", Comment(rawValue: key))
    }
    let export = try #require((mine["exports"] as? [[String: Any]])?.first)
    let reference = try #require((other["exports"] as? [[String: Any]])?.first)
    for (key, value) in reference where !["content", "export-size-str"].contains(key) {
      #expect("\(export[key] ?? "-")" == "\(value)", Comment(rawValue: key))
    }
    let list = try strata("list", uri(daemon))
    #expect(list.contains("export-size: 16777216 (16 MiB)"))
    #expect(list.contains("protocol: newstyle-fixed without TLS, using structured packets"))
  }

  @Test func `list shows no control characters of a server`() throws {
    let server = try ScriptedServer { side in
      try side.send(Array("NBDMAGICIHAVEOPT".utf8), wire(UInt16(3)))
      _ = try side.receive(4)
      while true {
        let (option, _) = try side.receiveOption()
        if option == 3 {
          try side.answer(3, 2, counted("na\u{1b}[2Jme") + Array("\u{1b}]0;title\u{7}\u{9b}x".utf8))
          try side.answer(3, 1)
        } else {
          try side.answer(option, 0x8000_0001)
        }
      }
    }
    defer { server.stop() }
    for option in [[], ["--json"]] {
      let text = try strata(["list"] + option + ["nbd+unix:///?socket=\(server.path)"])
      #expect(text.contains("title"))
      #expect(!text.unicodeScalars.contains { $0 == "\u{1b}" || $0 == "\u{7}" })
      #expect(option == ["--json"] || !text.unicodeScalars.contains { $0 == "\u{9b}" })
    }
  }

  @Test func `map prints the numbers of nbdinfo --map`() throws {
    let folder = try TemporaryFolder()
    let source = folder.path("source.raw")
    try makeSource(source)
    let daemon = try kit(folder, "a.sock", "file", source)
    let words = { (text: String) in text.split { " \n".contains($0) }.map(String.init) }
    #expect(
      words(try strata("map", uri(daemon))) == words(try run("nbdinfo", "--map", uri(daemon))))
    let ours = try JSONSerialization.jsonObject(
      with: Data(try strata("map", "--json", uri(daemon)).utf8))
    let theirs = try JSONSerialization.jsonObject(
      with: Data(try run("nbdinfo", "--map", "--json", uri(daemon)).utf8))
    #expect((ours as? NSArray) == (theirs as? NSArray))
    let part = try strata("map", "--offset", "5M", "--length", "1M", uri(daemon))
    #expect(words(part) == ["5242880", "1048576", "0", "data"])
  }

  @Test func `map shows several contexts side by side`() throws {
    let folder = try TemporaryFolder()
    let base = folder.path("base.raw")
    let image = folder.path("overlay.qcow2")
    let socket = folder.path("nbd.sock")
    try run("qemu-img", "create", "-q", "-f", "raw", base, "1M")
    try run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", image)
    try run("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 64k", image)
    let daemon = try Daemon(daemonPath(), [image, "--socket", socket], socketPath: socket)
    let lines = try strata("map", uri(daemon)).split(separator: "\n").map {
      $0.split(separator: " ").map(String.init)
    }
    #expect(
      lines == [
        ["offset", "length", "base:allocation", "qemu:allocation-depth"],
        ["0", "65536", "0", "data", "1", "local"],
        ["65536", "983040", "3", "hole,zero", "2", "backing", "depth", "2"],
      ])
    #expect(daemon.stop() == 0)
  }

  @Test func `ping counts its round trips`() throws {
    let folder = try TemporaryFolder()
    let daemon = try kit(folder, "a.sock", "memory", "1M")
    let text = try strata("ping", "--count", "50", uri(daemon))
    #expect(text.hasPrefix("50 round trips: min "))
    let json = try strata("ping", "--count", "5", "--json", uri(daemon))
    let value = try #require(
      try JSONSerialization.jsonObject(with: Data(json.utf8)) as? [String: Int])
    #expect(value["count"] == 5)
    #expect((value["min_us"] ?? 1) <= (value["p99_us"] ?? 0))
  }

  @Test func `says what is wrong in one line`() throws {
    let cases = [
      ("nbd://h:99999/", "1 to 65535"), ("nbds+unix:///?socket=/x", "say tls-hostname=NAME"),
      ("nbd+unix:///?socket=/nonexistent/x", "No such file"),
      ("nbd://127.0.0.1:1/", "Connection refused"), ("disk.raw", "no scheme"),
    ]
    for (uri, words) in cases {
      let text = try failure("info", uri)
      #expect(text.contains("strata: \(uri): ") && text.contains(words), Comment(rawValue: text))
    }
  }
}
