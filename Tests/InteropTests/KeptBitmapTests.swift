// SPDX-License-Identifier: Apache-2.0
//
// Bitmaps that an image keeps, handed back and forth between QEMU and us, and after kill -9.
// Sources: qcow2.rst, "Bitmaps"; qemu-img(1), "bitmap". This file starts servers and clients.

import Foundation
import TestSupport
import Testing

private let diskByteCount = 64 << 20

/// An image that both may write.
private final class SharedImage {
  let folder: TemporaryFolder
  let path: String

  init(_ options: String...) throws {
    folder = try TemporaryFolder()
    path = folder.path("disk")
    try runTool(
      "qemu-img", ["create", "-q", "-f", "qcow2"] + options + [path, "\(diskByteCount)"])
  }

  @discardableResult func strata(_ words: String...) throws -> String {
    let folder = URL(fileURLWithPath: try daemonPath()).deletingLastPathComponent().path
    return try runTool(folder + "/strata", ["bitmap"] + words)
  }

  @discardableResult func qemu(_ words: String...) throws -> String {
    try runTool("qemu-img", ["bitmap"] + words)
  }

  func serve(_ arguments: String...) throws -> Daemon {
    try Daemon(
      daemonPath(),
      [path, "--format", "qcow2", "--socket", folder.path("s"), "--control", folder.path("c")]
        + arguments, socketPath: folder.path("s"))
  }

  /// Changes the disk by `commands` of qemu-io, through us or by QEMU itself.
  func change(_ target: String, _ format: String, _ commands: [String]) throws {
    let words = commands.flatMap { ["-c", $0] }
    let text = try runTool("qemu-io", ["-f", format, "-d", "unmap"] + words + [target])
    guard !text.contains("failed") else { throw WireError.violation(text) }
  }

  /// The dirty runs as QEMU's server tells them.
  func qemuRuns(_ name: String) throws -> [[Int]] {
    let socket = folder.path("q\(Int.random(in: 0..<1 << 40))")
    let server = try Daemon(
      requireTool("qemu-nbd"),
      ["-r", "-f", "qcow2", "-B", name, "-k", socket, "-e", "2", "-t", path],
      socketPath: socket, readiness: .socketAnswers)
    defer { server.stop() }
    let map = try run("nbdinfo", "--map=qemu:dirty-bitmap:\(name)", server.uri)
    var runs: [[Int]] = []
    for line in map.split(separator: "\n") {
      let words = line.split(separator: " ")
      if words[2] == "1" { runs.append([Int(words[0]) ?? -1, Int(words[1]) ?? -1]) }
    }
    return runs
  }

  /// The same as we tell them.
  func ourRuns(_ name: String) throws -> [[Int]] {
    try strata("map", path, name).split(separator: "\n").map { line in
      line.split(separator: " ").compactMap { Int($0) }
    }
  }

  func requireClean() throws {
    let text = try run("qemu-img", "check", path)
    #expect(text.contains("No errors"), Comment(rawValue: text))
  }
}

private func changes(_ seed: Int) -> [String] {
  var state = UInt64(seed)
  func random(_ limit: Int) -> Int {
    state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
    return Int(state >> 33) % limit
  }
  return (0..<12).map { number in
    let length = 1 + random(number % 4 == 0 ? 3 << 20 : 70_000)
    let offset = random(diskByteCount - length)
    let kind = ["write -P \(number + 1)", "write -z", "discard", "write -P 9"][random(4)]
    return "\(kind) \(offset) \(length)"
  }
}

@Suite struct `A bitmap of an image that QEMU and we write in turn` {
  @Test(arguments: [512, 4_096, 65_536, 1 << 20, 1 << 31])
  func `is the same for both, whoever made it`(granularity: Int) throws {
    let image = try SharedImage("-o", granularity == 512 ? "cluster_size=4096" : "cluster_size=64k")
    try image.qemu("--add", "-g", "\(granularity)", image.path, "theirs")
    try image.strata("add", "-g", "\(granularity)", image.path, "ours")
    for round in 0..<2 {
      try image.change(image.path, "qcow2", changes(round * 2 + granularity))
      let daemon = try image.serve()
      try image.change(daemon.uri, "raw", changes(round * 2 + 1 + granularity))
      #expect(daemon.stop() == 0)
      for name in ["theirs", "ours"] {
        let runs = try image.ourRuns(name)
        #expect(!runs.isEmpty)
        #expect(try image.qemuRuns(name) == runs)
      }
      #expect(try image.ourRuns("theirs") == image.ourRuns("ours"))
      try image.requireClean()
    }
  }

  @Test func `is changed by our verbs as by those of qemu-img`() throws {
    let ours = try SharedImage()
    let theirs = try SharedImage()
    for image in [ours, theirs] {
      try image.qemu("--add", "-g", "4096", image.path, "fine")
      try image.qemu("--add", "-g", "1048576", image.path, "coarse")
      try image.change(image.path, "qcow2", changes(5))
      try image.qemu("--add", "-g", "65536", image.path, "other")
    }
    try ours.strata("merge", ours.path, "other", "fine")
    try theirs.qemu("--merge", "fine", theirs.path, "other")
    try ours.strata("merge", ours.path, "fine", "coarse")
    try theirs.qemu("--merge", "coarse", theirs.path, "fine")
    try ours.strata("clear", ours.path, "coarse")
    try theirs.qemu("--clear", theirs.path, "coarse")
    try ours.strata("disable", ours.path, "other")
    try theirs.qemu("--disable", theirs.path, "other")
    for image in [ours, theirs] { try image.change(image.path, "qcow2", changes(6)) }
    try ours.strata("enable", ours.path, "other")
    try theirs.qemu("--enable", theirs.path, "other")
    for name in ["fine", "coarse", "other"] {
      #expect(try ours.qemuRuns(name) == theirs.qemuRuns(name))
      #expect(try ours.ourRuns(name) == theirs.ourRuns(name))
    }
    try ours.strata("remove", ours.path, "fine")
    try theirs.qemu("--remove", theirs.path, "fine")
    func bitmaps(_ image: SharedImage) throws -> Substring {
      let text = try run("qemu-img", "info", image.path)
      return try #require(text.firstRange(of: "bitmaps:").map { text[$0.lowerBound...] })
    }
    #expect(try bitmaps(ours) == bitmaps(theirs))
    try ours.requireClean()
  }

  @Test func `is read of what QEMU stored as all ones`() throws {
    let image = try SharedImage()
    try image.qemu("--add", "-g", "512", image.path, "b")
    try image.change(image.path, "qcow2", ["write -z 0 64M"])
    #expect(try image.ourRuns("b") == [[0, diskByteCount]])
    let daemon = try image.serve()
    try image.change(daemon.uri, "raw", ["write 0 1"])
    #expect(daemon.stop() == 0)
    #expect(try image.qemuRuns("b") == [[0, diskByteCount]])
    try image.requireClean()
  }
}

@Suite struct `A bitmap of an image that nobody else uses` {
  /// A loop with nothing to do wakes once a second: a change that waited for that would take one.
  @Test func `is changed at once`() throws {
    let image = try SharedImage()
    let daemon = try image.serve()
    defer { daemon.stop() }
    let start = ContinuousClock.now
    for _ in 0..<8 {
      try image.strata("add", "--persistent", image.folder.path("c"), "b")
      try image.strata("remove", image.folder.path("c"), "b")
    }
    #expect(ContinuousClock.now - start < .seconds(8), "16 changes waited for a second each")
  }
}

@Suite struct `A bitmap of an image after kill -9` {
  @Test(arguments: [1, 2, 3])
  func `covers all that was written, and may be wider by the region`(seed: Int) throws {
    let image = try SharedImage()
    try image.strata("add", image.path, "b")
    let before = try image.serve()
    try image.change(before.uri, "raw", ["write -P 1 1M 64k"])
    #expect(before.stop() == 0)
    let daemon = try image.serve()
    try image.change(daemon.uri, "raw", ["write -P 2 33M \(seed)", "write -P 3 50M 100k"])
    kill(daemon.processID, SIGKILL)
    daemon.stop()
    #expect(
      try image.ourRuns("b") == [[1 << 20, 65_536], [32 << 20, 32 << 20]])
    let text = try image.strata("list", image.path)
    #expect(text.contains("recovered (may be wider)"), Comment(rawValue: text))
    #expect(try run("qemu-img", "info", image.path).contains("in-use"))
    // Served again, it goes on from there, and is valid for QEMU afterwards.
    let again = try image.serve()
    try image.change(again.uri, "raw", ["write -P 4 20M 1"])
    #expect(again.stop() == 0)
    #expect(
      try image.qemuRuns("b")
        == [[1 << 20, 65_536], [20 << 20, 65_536], [32 << 20, 32 << 20]])
    try image.requireClean()
  }

  @Test func `is refused for a disk of no bytes, with the reason`() throws {
    let image = try SharedImage()
    try run("qemu-img", "create", "-q", "-f", "qcow2", image.path, "0")
    let error = #expect(throws: WireError.self) { try image.strata("add", image.path, "b") }
    #expect("\(error as Any)".contains("has nothing to record"))
    try image.requireClean()
  }

  @Test func `is lost where nothing was to wait for it`() throws {
    let image = try SharedImage()
    try image.strata("add", image.path, "b")
    let daemon = try image.serve("--bitmap-durability", "none")
    try image.change(daemon.uri, "raw", ["write -P 2 33M 1"])
    kill(daemon.processID, SIGKILL)
    daemon.stop()
    #expect(throws: (any Error).self) { try image.ourRuns("b") }
    #expect(try image.strata("list", image.path).contains("unusable"))
    try image.strata("remove", image.path, "b")
    #expect(try image.strata("list", image.path) == "no bitmaps\n")
  }
}
