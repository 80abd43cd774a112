// SPDX-License-Identifier: Apache-2.0
//
// Snapshots of a running server's disks: over the control socket and as `strata snapshot`.
// Sources: stratad(8); strata(1); decision 0031.

import Foundation
import TestSupport
import Testing

private let mebibyte = 1 << 20

private struct Bench {
  let fixture: ServeFixture
  let image: String
  var control: String { fixture.control }

  init(_ options: String = "cluster_size=65536", size: String = "4M") throws {
    fixture = try ServeFixture()
    image = fixture.folder.path("disk.qcow2")
    try tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, image, size)
  }

  func serve(_ more: String...) throws -> ServedProcess {
    try ServedProcess(
      stratad: [image, "--socket", fixture.socket, "--control", control] + more
    ).waitUntilReady()
  }

  func client() throws -> WireClient { try WireClient.entered(path: fixture.socket) }

  func tool(_ words: String...) throws {
    let result = try runTool(words)
    guard result.code == 0 else { throw ServeError("\(words): \(result)") }
  }

  /// Runs `strata snapshot`.
  func strata(_ words: String...) throws -> (code: Int32, output: String, error: String) {
    try runTool([try ServedProcess.path(of: "strata"), "snapshot"] + words)
  }

  func ask(_ line: String) throws -> Answer { try ControlConnection.ask(line, at: control) }

  /// What QEMU reads from a snapshot.
  func disk(of snapshot: String) throws -> [UInt8] {
    let raw = image + ".raw"
    try tool("qemu-img", "convert", "-U", "-l", snapshot, "-O", "raw", image, raw)
    return [UInt8](try Data(contentsOf: URL(fileURLWithPath: raw)))
  }
}

private func bytes(_ byte: UInt8, _ count: Int) -> [UInt8] { .init(repeating: byte, count: count) }

@Suite struct `Snapshots of a server's disk` {
  @Test func `are taken, listed and deleted while clients write`() throws {
    let bench = try Bench()
    let server = try bench.serve()
    let client = try bench.client()
    #expect(try client.write(0, bytes(1, mebibyte)) == 0)
    let made = try bench.strata("create", bench.control, "one")
    #expect(made.code == 0 && made.output == "snapshot 1\n", "\(made)")
    #expect(try client.write(0, bytes(2, 1_000)) == 0)
    #expect(try bench.strata("create", bench.control, "two").output == "snapshot 2\n")
    #expect(try client.write(0, bytes(3, 1_000)) == 0)
    let listed = try bench.strata("list", bench.control)
    let looked = try bench.strata("list", "-U", bench.image)
    #expect(listed.output == looked.output && listed.output.contains("two"), "\(listed)")
    let json = try bench.strata("list", "--output", "json", bench.control)
    #expect(json.output == (try bench.strata("list", "-U", "--output", "json", bench.image).output))
    // QEMU reads them beside the server.
    #expect(try bench.disk(of: "one")[..<mebibyte] == bytes(1, mebibyte)[...])
    #expect(try bench.disk(of: "two")[..<1_001] == (bytes(2, 1_000) + [1])[...])
    #expect(try bench.strata("delete", bench.control, "one").code == 0)
    #expect(try bench.strata("list", bench.control).output.contains("one") == false)
    #expect(try client.read(0, mebibyte).data == bytes(3, 1_000) + bytes(1, mebibyte - 1_000))
    try client.disconnect()
    #expect(server.stop() == 0)
    try bench.tool("qemu-img", "check", bench.image)
    #expect(try bench.disk(of: "two")[..<1_001] == (bytes(2, 1_000) + [1])[...])
  }

  @Test func `answer in lines of JSON, with the time for which clients were held`() throws {
    let bench = try Bench()
    let server = try bench.serve()
    let made = try bench.ask(#"{"ask":"snapshot-create","name":"a"}"#)
    #expect(made["snapshot"].text == "1" && made["held-milliseconds"].number != nil)
    let list = try bench.ask(#"{"ask":"snapshots"}"#)["snapshots"].list
    #expect(list.map { $0["name"].text } == ["a"] && list.map { $0["id"].text } == ["1"])
    #expect(try bench.ask(#"{"ask":"snapshot-delete","snapshot":"1"}"#)["snapshot"].text == "1")
    #expect(try bench.ask(#"{"ask":"snapshots"}"#)["snapshots"].list.isEmpty)
    for (line, reason) in [
      (#"{"ask":"snapshot-delete","snapshot":"a"}"#, "no snapshot with the id or name 'a'"),
      (#"{"ask":"snapshot-create","name":""}"#, "1 to 255 bytes"),
      (#"{"ask":"snapshot-create"}"#, "needs \"name\""),
      (#"{"ask":"snapshot-apply","snapshot":"a"}"#, "detach first"),
      (#"{"ask":"snapshot-create","name":"a","export":"x"}"#, "there is no export"),
    ] {
      let text = try bench.ask(line)["error"].text ?? ""
      #expect(text.contains(reason), "\(line): \(text)")
    }
    #expect(server.stop() == 0)
  }

  @Test func `are not for every export`() throws {
    let bench = try Bench()
    var server = try bench.serve("--read-only")
    #expect(try bench.strata("create", bench.control, "a").error.contains("is read-only"))
    #expect(server.stop() == 0)
    server = try bench.fixture.serveControlled()
    #expect(try bench.strata("create", bench.control, "a").error.contains("raw"))
    #expect(try bench.strata("list", bench.control).output == "")
    #expect(server.stop() == 0)
    let narrow = try Bench("cluster_size=65536,refcount_bits=1")
    server = try narrow.serve()
    #expect(try narrow.client().write(0, [1]) == 0)
    #expect(try narrow.strata("create", narrow.control, "a").error.contains("shared as often"))
    #expect(try narrow.client().write(0, [2]) == 0)
    #expect(server.stop() == 0)
    let data = try Bench("data_file=\(bench.image).data")
    server = try data.serve("--allow-data-file", "\(bench.image).data")
    #expect(
      try data.strata("create", data.control, "a").error.contains("external data file has no"))
    #expect(server.stop() == 0)
  }

  @Test func `do not go back under their clients, and an image is named by -f alone`() throws {
    let bench = try Bench()
    let server = try bench.serve()
    let applied = try bench.strata("apply", bench.control, "one")
    #expect(applied.code != 0 && applied.error.contains("detach first"), "\(applied)")
    #expect(try bench.strata("create", "-f", "qcow2", bench.control, "a").code != 0)
    #expect(try bench.strata("list", "--export", "x", "-U", bench.image).code != 0)
    // A verb on the file knows that it is served.
    #expect(try bench.strata("create", bench.image, "a").error.contains("in use"))
    #expect(server.stop() == 0)
  }

  /// The locks of QEMU keep a second server away from a file that is written, in one process too.
  @Test func `are read by nobody who locks the file before it is free`() throws {
    let bench = try Bench()
    let server = try bench.serve()
    #expect(try bench.strata("create", bench.control, "one").code == 0)
    let refusal = try ServeFixture.refusal(
      [bench.image, "--socket", bench.fixture.socket + "2", "--snapshot", "one"])
    #expect(refusal.contains("in use"), "\(refusal)")
    #expect(server.stop() == 0)
  }

  @Test func `are of the export that is named`() throws {
    let bench = try Bench()
    let other = bench.image + "2"
    try bench.tool("qemu-img", "create", "-q", "-f", "qcow2", other, "1M")
    let server = try ServedProcess(
      stratad: [
        "--export", "a=\(bench.image)", "--export", "b=\(other)", "--socket",
        bench.fixture.socket, "--control", bench.control,
      ]
    ).waitUntilReady()
    #expect(try bench.strata("create", "--export", "b", bench.control, "s").code == 0)
    #expect(try bench.strata("create", bench.control, "s").error.contains("say which"))
    #expect(try bench.strata("list", "--export", "a", bench.control).output == "")
    #expect(try bench.strata("list", "--export", "b", bench.control).output.contains("s"))
    #expect(server.stop() == 0)
  }

  @Test func `leave bitmaps that the image keeps as wide as they were`() throws {
    let bench = try Bench()
    let server = try bench.serve()
    let strata = try ServedProcess.path(of: "strata")
    try bench.tool(strata, "bitmap", "add", "--persistent", bench.control, "b")
    let client = try bench.client()
    #expect(try client.write(0, bytes(1, 1_000)) == 0)
    #expect(try bench.strata("create", bench.control, "one").code == 0)
    #expect(try client.write(UInt64(2 * mebibyte), bytes(2, 1_000)) == 0)
    try bench.tool(strata, "bitmap", "add", "--persistent", bench.control, "c")
    #expect(try bench.strata("delete", bench.control, "one").code == 0)
    #expect(try client.write(UInt64(3 * mebibyte), bytes(3, 1_000)) == 0)
    try client.disconnect()
    #expect(server.stop() == 0)
    try bench.tool("qemu-img", "check", bench.image)
    for (name, runs) in [
      ("b", "0 65536\n2097152 65536\n3145728 65536\n"), ("c", "3145728 65536\n"),
    ] {
      let map = try runTool(strata, "bitmap", "map", bench.image, name)
      #expect(map.output == runs, "\(map)")
    }
  }

  @Test func `are taken with bitmaps that a crash left in use, however they are kept now`() throws {
    let bench = try Bench()
    let strata = try ServedProcess.path(of: "strata")
    let first = try bench.serve()
    try bench.tool(strata, "bitmap", "add", "--persistent", bench.control, "b")
    #expect(try bench.client().write(0, bytes(1, 1_000)) == 0)
    first.stop(with: SIGKILL)
    let server = try bench.serve("--bitmap-durability", "none")
    let made = try bench.strata("create", bench.control, "one")
    #expect(made.code == 0, "\(made)")
    #expect(server.stop() == 0)
    // Without -r: QEMU 7.2 forgets all snapshots of an image with bitmaps when it repairs it, also
    // of one that it has made itself.
    try bench.tool("qemu-img", "check", bench.image)
    #expect(try bench.strata("list", bench.image).output.contains("one"))
    #expect(try runTool(strata, "bitmap", "map", bench.image, "b").output.hasPrefix("0 "))
  }

  @Test func `of an encrypted disk are as secret as it is`() throws {
    let bench = try Bench()
    let key = bench.image + ".key"
    try Data("secret".utf8).write(to: URL(fileURLWithPath: key))
    let strata = try ServedProcess.path(of: "strata")
    let secret = bench.image + "2"
    try bench.tool(
      strata, "create", "-q", "-f", "qcow2", "--key-file", key, "-o",
      "encrypt.format=luks,encrypt.iter-time=10", secret, "4M")
    let server = try ServedProcess(
      stratad: [
        secret, "--socket", bench.fixture.socket, "--control", bench.control, "--key-file", key,
      ]
    ).waitUntilReady()
    let client = try bench.client()
    #expect(try client.write(0, bytes(1, mebibyte)) == 0)
    #expect(try bench.strata("create", bench.control, "one").code == 0)
    #expect(try client.write(1_000, bytes(2, 1_000)) == 0)
    #expect(try client.read(0, 2_000).data == bytes(1, 1_000) + bytes(2, 1_000))
    try client.disconnect()
    #expect(server.stop() == 0)
    let then = try ServedProcess(
      stratad: [
        secret, "--socket", bench.fixture.socket, "--key-file", key, "--snapshot", "one",
      ]
    ).waitUntilReady()
    #expect(try bench.client().read(0, mebibyte).data == bytes(1, mebibyte))
    #expect(then.stop() == 0)
  }
}
