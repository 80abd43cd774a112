// SPDX-License-Identifier: Apache-2.0
//
// Encrypted images that are served: keys, chains of which each layer has its own, and what is on
// the disk. QEMU's tools are the peers. Source: qcow2.rst, "Data encryption"; stratad(8).

import Foundation
import TestSupport
import Testing

/// A folder with encrypted images and their keys.
private struct Vault {
  let folder = try! TemporaryFolder()
  var socket: String { folder.path("s") }
  func path(_ name: String) -> String { folder.path(name) }

  /// Makes an image; `key` is its key, in the file NAME.key; nil: it is not encrypted.
  func create(
    _ name: String, key: String? = "secret", base: String? = nil, options: String = "",
    size: Int = 4 << 20
  ) throws {
    var words = [try ServedProcess.path(of: "strata"), "create", "-q", "-f", "qcow2"]
    if let key {
      try Data(key.utf8).write(to: URL(fileURLWithPath: path(name + ".key")))
      words += ["--key-file", path(name + ".key")]
      words += ["-o", "encrypt.format=luks,encrypt.iter-time=10" + options]
    }
    if let base { words += ["-b", base, "-F", "qcow2"] }
    let result = try runTool(words + [path(name), "\(size)"])
    guard result.code == 0 else { throw ServeError("\(words): \(result.error)") }
  }

  func serve(_ name: String, _ more: [String]) throws -> ServedProcess {
    try ServedProcess(stratad: [path(name), "--socket", socket] + more).waitUntilReady()
  }

  /// Runs qemu-io on an image and all below it, whose keys come from the top down.
  func io(_ name: String, keys: [String?], _ commands: String...) throws {
    var words = ["qemu-io"]
    var file = "driver=qcow2,file.filename=\(path(name))"
    var prefix = ""
    for (number, key) in keys.enumerated() {
      if let key {
        words += ["--object", "secret,id=s\(number),file=\(path(key))"]
        file += ",\(prefix)encrypt.key-secret=s\(number)"
      }
      prefix += "backing."
    }
    let result = try runTool(
      words + ["--image-opts", file] + commands.flatMap { ["-c", $0] })
    guard result.code == 0, !result.output.contains("failed") else {
      throw ServeError("\(commands): \(result.output)\(result.error)")
    }
  }

  func bytes(_ name: String) throws -> Data {
    try Data(contentsOf: URL(fileURLWithPath: path(name)))
  }
}

/// What an image with an encrypted data file is like besides.
enum DataFileOptions {
  static let all = [
    "", ",data_file_raw=on", ",extended_l2=on", ",data_file_raw=on,extended_l2=on",
  ]
}

private func pattern(_ byte: UInt8, _ count: Int) -> [UInt8] {
  .init(repeating: byte, count: count)
}

@Suite struct `A server of encrypted images` {
  @Test(arguments: ["native", "sync"])
  func `reads what QEMU wrote, and QEMU what it wrote`(engine: String) throws {
    let vault = Vault()
    try vault.create("disk")
    try vault.io("disk", keys: ["disk.key"], "write -P 7 0 1M", "write -P 9 3000000 5000")
    let server = try vault.serve(
      "disk", ["--key-file", vault.path("disk.key"), "--aio", engine])
    let client = try WireClient.entered(path: vault.socket)
    #expect(try client.read(0, 1 << 20).data == pattern(7, 1 << 20))
    #expect(try client.read(3_000_001, 100).data == pattern(9, 100))
    // Over an old place, into a new one, across the border of two.
    #expect(try client.write(1, pattern(1, 511)) == 0)
    #expect(try client.write(2_000_001, pattern(2, 3)) == 0)
    #expect(try client.write((1 << 20) - 5, pattern(3, 70_000)) == 0)
    #expect(try client.call(.writeZeroes, offset: 4_096, length: 1_000).error == 0)
    #expect(try client.read(4_000, 200).data == pattern(7, 96) + pattern(0, 104))
    #expect(try client.read(2_000_000, 5).data == [0, 2, 2, 2, 0])
    try client.disconnect()
    #expect(server.stop() == 0)
    try vault.io(
      "disk", keys: ["disk.key"], "read -P 7 0 1", "read -P 1 1 511", "read -P 7 512 3584",
      "read -P 0 4096 1000", "read -P 7 5096 100", "read -P 2 2000001 3",
      // The rest of a cluster that was never written reads as zeroes, which are encrypted ones.
      "read -P 0 2000004 30000", "read -P 3 1048571 70000", "read -P 0 1118571 1000")
  }

  @Test(arguments: ["native", "sync"], DataFileOptions.all)
  func `keeps what it encrypts in a data file, where QEMU reads it`(
    engine: String, options: String
  ) throws {
    let vault = Vault()
    try vault.create("disk", options: ",data_file=\(vault.path("data"))" + options)
    try vault.io("disk", keys: ["disk.key"], "write -P 7 0 1M", "write -P 9 3000000 5000")
    let server = try vault.serve(
      "disk", ["--key-file", vault.path("disk.key"), "--aio", engine])
    let client = try WireClient.entered(path: vault.socket)
    #expect(try client.read(0, 1 << 20).data == pattern(7, 1 << 20))
    #expect(try client.read(3_000_001, 100).data == pattern(9, 100))
    #expect(try client.write(1, pattern(1, 511)) == 0)
    #expect(try client.write(2_000_001, pattern(2, 3)) == 0)
    #expect(try client.write((1 << 20) - 5, pattern(3, 70_000)) == 0)
    #expect(try client.call(.writeZeroes, offset: 60_000, length: 90_000).error == 0)
    #expect(try client.call(.trim, offset: 262_144, length: 131_072).error == 0)
    #expect(
      try client.call(.writeZeroes, flags: 2, offset: 524_288, length: 131_072).error == 0)
    #expect(try client.write(540_000, pattern(4, 100)) == 0)
    #expect(try client.read(2_000_000, 5).data == [0, 2, 2, 2, 0])
    try client.disconnect()
    #expect(server.stop() == 0)
    try vault.io(
      "disk", keys: ["disk.key"], "read -P 1 1 511", "read -P 7 512 59488",
      "read -P 0 60000 90000", "read -P 7 150000 100", "read -P 0 262144 131072",
      "read -P 0 524288 15712", "read -P 4 540000 100", "read -P 0 540100 115260",
      "read -P 2 2000001 3", "read -P 0 2000004 30000", "read -P 3 1048571 70000")
    let data = try vault.bytes("data")
    #expect(data.count == 4 << 20)
    #expect(data.range(of: Data(pattern(7, 512))) == nil)
  }

  /// A power cut leaves the old entry: what it leads to must not be a hole, which reads as noise.
  @Test(arguments: DataFileOptions.all)
  func `does not touch the data file when encrypted clusters are trimmed and zeroed`(
    options: String
  ) throws {
    let vault = Vault()
    try vault.create("disk", options: ",data_file=\(vault.path("data"))" + options)
    try vault.io("disk", keys: ["disk.key"], "write -P 7 0 1M")
    let before = try vault.bytes("data")
    let server = try vault.serve("disk", ["--key-file", vault.path("disk.key")])
    let client = try WireClient.entered(path: vault.socket)
    #expect(try client.call(.trim, offset: 0, length: 131_072).error == 0)
    #expect(try client.call(.writeZeroes, offset: 196_608, length: 131_072).error == 0)
    #expect(
      try client.call(.writeZeroes, flags: 2, offset: 524_288, length: 131_072).error == 0)
    #expect(try client.read(0, 131_072).data == pattern(0, 131_072))
    try client.disconnect()
    #expect(server.stop() == 0)
    #expect(try vault.bytes("data") == before)
    try vault.io("disk", keys: ["disk.key"], "read -P 0 0 128k", "read -P 7 128k 64k")
  }

  @Test(arguments: DataFileOptions.all)
  func `grows a disk whose encrypted data file ends inside a cluster`(options: String) throws {
    let vault = Vault()
    try vault.create(
      "disk", options: ",data_file=\(vault.path("data"))" + options, size: 1_000 << 10)
    try vault.io("disk", keys: ["disk.key"], "write -P 7 900k 100k")
    let server = try vault.serve(
      "disk",
      ["--key-file", vault.path("disk.key"), "--control", vault.path("c")])
    let grown = try runTool([
      try ServedProcess.path(of: "strata"), "resize", vault.path("c"), "2M",
    ])
    #expect(grown.code == 0, "\(grown.error)")
    let client = try WireClient.entered(path: vault.socket)
    #expect(try client.read(1_000 << 10, 100_000).data == pattern(0, 100_000))
    #expect(try client.write((2 << 20) - 1, [5]) == 0)
    try client.disconnect()
    #expect(server.stop() == 0)
    try vault.io(
      "disk", keys: ["disk.key"], "read -P 7 900k 100k", "read -P 0 1000k 500k",
      "read -P 5 2097151 1")
  }

  @Test func `leaves nothing of the guest's on the disk in clear`() throws {
    let vault = Vault()
    try vault.create("disk")
    let words = Array("what nobody else is to read, nor its zeroes".utf8)
    let server = try vault.serve("disk", ["--key-file", vault.path("disk.key")])
    let client = try WireClient.entered(path: vault.socket)
    #expect(try client.write(777, words) == 0)
    #expect(try client.write(70_000, words) == 0)
    try client.disconnect()
    #expect(server.stop() == 0)
    let file = try vault.bytes("disk")
    #expect(file.range(of: Data(words)) == nil)
    #expect(file.range(of: Data("secret".utf8)) == nil)
  }

  @Test func `opens each layer of a chain with the key that is named for it`() throws {
    let vault = Vault()
    try vault.create("base", key: "one")
    try vault.io("base", keys: ["base.key"], "write -P 5 0 2M")
    try vault.create("middle", key: nil, base: "base")
    try vault.io("middle", keys: [nil, "base.key"], "write -P 6 64k 64k")
    try vault.create("top", key: "two", base: "middle", options: ",encrypt.cipher-mode=cbc")
    let before = try vault.bytes("base")
    let server = try vault.serve(
      "top",
      ["--key-file", "base=\(vault.path("base.key"))", "--key-file", "=\(vault.path("top.key"))"])
    let client = try WireClient.entered(path: vault.socket)
    // Copy on write from a layer with another key, and from one without.
    #expect(try client.write(1_000, pattern(1, 1_000)) == 0)
    #expect(try client.write(66_000, pattern(2, 1_000)) == 0)
    #expect(try client.read(0, 1_000).data == pattern(5, 1_000))
    #expect(try client.read(65_536, 464).data == pattern(6, 464))
    try client.disconnect()
    #expect(server.stop() == 0)
    #expect(try vault.bytes("base") == before)
    try vault.io(
      "top", keys: ["top.key", nil, "base.key"], "read -P 5 0 1000", "read -P 1 1000 1000",
      "read -P 5 2000 63000", "read -P 6 65536 464", "read -P 2 66000 1000",
      "read -P 6 67000 60000", "read -P 5 131072 1M", "read -P 0 2M 1M")
  }

  @Test func `takes a key from a descriptor that it inherits`() throws {
    let vault = Vault()
    try vault.create("disk")
    let descriptor = open(vault.path("disk.key"), O_RDONLY)
    defer { close(descriptor) }
    let server = try ServedProcess(
      stratad: [vault.path("disk"), "--socket", vault.socket, "--key-fd", "3"],
      descriptor3: descriptor
    ).waitUntilReady()
    let client = try WireClient.entered(path: vault.socket)
    #expect(try client.write(5, [1, 2]) == 0)
    #expect(try client.read(4, 4).data == [0, 1, 2, 0])
    #expect(server.stop() == 0)
  }

  @Test func `takes keys from a configuration file`() throws {
    let vault = Vault()
    try vault.create("disk")
    try Data(
      """
      [export disk]
      image = \(vault.path("disk"))
      key-file = disk=\(vault.path("disk.key"))
      """.utf8
    ).write(to: URL(fileURLWithPath: vault.path("conf")))
    let server = try ServedProcess(
      stratad: ["--config", vault.path("conf"), "--socket", vault.socket]
    ).waitUntilReady()
    #expect(server.stop() == 0)
  }

  @Test func `serves nothing without the right key, and says why`() throws {
    let vault = Vault()
    try vault.create("base", key: "one")
    try vault.create("top", key: "two", base: "base")
    try vault.create("plain", key: nil)
    try Data("two\n".utf8).write(to: URL(fileURLWithPath: vault.path("line.key")))
    let before = try vault.bytes("top")
    func refusal(_ image: String, _ words: String...) throws -> String {
      try ServeFixture.refusal([vault.path(image), "--socket", vault.socket] + words)
    }
    let top = vault.path("top.key")
    #expect(try refusal("top").contains("top: the image is encrypted (LUKS), and there is no key"))
    #expect(
      try refusal("top", "--key-file", vault.path("line.key"))
        .contains("top: the key opens none of the 1 key slots in use; check the key"))
    #expect(
      try refusal("top", "--key-file", "top=\(top)")
        .contains("base: the image is encrypted (LUKS), and there is no key"))
    #expect(try refusal("top", "--key-file", top).contains("base: the key opens none of"))
    #expect(try refusal("plain", "--key-file", top).contains("no encrypted image"))
    #expect(
      try refusal(
        "top", "--key-file", top, "--key-file", "base=\(vault.path("base.key"))", "--key-file",
        "bsae=\(top)"
      ).contains("bsae: there is a key for it, but no encrypted image"))
    #expect(try refusal("top", "--key-file", vault.path("none")).contains("cannot be read"))
    #expect(try refusal("top", "--key-fd", "77").contains("cannot be read"))
    #expect(!ServeFixture.exists(vault.socket))
    #expect(try vault.bytes("top") == before)
  }

  @Test(arguments: [
    (0, "magic"), (7, "LUKS version"), (8, "cipher"), (40, "mode"), (72, "hash"), (108, "key"),
    (112, "opens none"), (132, "opens none"), (164, "iterations"), (208, "key slot 0"),
    (212, "iterations"), (216, "opens none"), (248, "key slot 0"), (252, "stripes"),
    (4_096, "opens none"),
  ])
  func `refuses a damaged encryption header by its field`(offset: Int, words: String) throws {
    let vault = Vault()
    try vault.create("disk")
    var file = try vault.bytes("disk")
    let area = file[120..<128].reduce(0) { $0 << 8 | Int($1) }
    file[area + offset] ^= 0xc0
    try file.write(to: URL(fileURLWithPath: vault.path("disk")))
    let text = try ServeFixture.refusal([
      vault.path("disk"), "--socket", vault.socket, "--key-file", vault.path("disk.key"),
    ])
    #expect(text.contains(words), "\(text)")
  }

  @Test func `holds keys in memory that no core file and no other process sees`() throws {
    let vault = Vault()
    try vault.create("disk")
    let server = try vault.serve("disk", ["--key-file", vault.path("disk.key")])
    // Memory of a process that cannot be dumped belongs to root (proc(5)).
    let status = try String(
      contentsOfFile: "/proc/\(server.processID)/limits", encoding: .utf8)
    let line = status.split(separator: "\n").first { $0.hasPrefix("Max core file size") }
    #expect(line?.split(separator: " ").dropFirst(4).first == "0")
    #expect(server.stop() == 0)
  }
}
