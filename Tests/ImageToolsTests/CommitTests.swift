// SPDX-License-Identifier: Apache-2.0
//
// `strata commit`, with qemu-img commit as the judge. Source: qemu-img(1), "commit".

import Foundation
import Testing

extension Workbench {
  /// Runs qemu-io with commands in which a `_` stands for a blank.
  fileprivate func write(_ image: String, _ commands: String...) throws {
    let list = commands.flatMap { ["-c", $0.replacingOccurrences(of: "_", with: " ")] }
    let result = try run(["qemu-io", "-f", "qcow2"] + list + [image])
    guard result.exitCode == 0, !result.output.contains("failed") else {
      throw WorkbenchError("\(commands): \(result.output)\(result.errors)")
    }
  }

  /// A base with data at its start and an overlay that changes it in all ways.
  fileprivate func makePair(
    base: String, _ baseSize: String, overlay: String, _ overlaySize: String
  ) throws {
    let (format, options) =
      base == "raw" ? ("raw", "") : ("qcow2", base.isEmpty ? "" : "-o \(base)")
    try prepare("qemu-img create -q -f \(format) \(options) base \(baseSize)")
    try run(["qemu-io", "-f", format, "-c", "write -P 1 0 3M", "base"])
    let more = overlay.isEmpty ? "" : "-o \(overlay)"
    try prepare(
      "qemu-img create -q -f qcow2 \(more) -b base -F \(format) overlay \(overlaySize)")
    try write(
      "overlay", "write_-P_2_100k_300k", "write_-z_1M_200k", "discard_1300k_128k",
      "write_-P_3_1700k_5k", "write_-P_4_3500k_400k", "write_-z_3600k_64k", "flush")
  }

  fileprivate func commit(_ words: String) throws {
    let result = try strata("commit \(words)")
    guard result.exitCode == 0 else { throw WorkbenchError("commit \(words): \(result.errors)") }
    #expect(result.output == "Image committed.\n")
  }

  fileprivate func expectClean(_ names: String...) throws {
    for name in names {
      let check = try run("qemu-img check -q -f qcow2 \(name)")
      #expect(check.exitCode == 0, "\(name): \(check)")
    }
  }
}

@Suite struct `commit writes an overlay into its base` {
  struct Pair: Sendable, CustomTestStringConvertible {
    let base: String
    let baseSize: String
    let overlay: String
    let overlaySize: String

    var testDescription: String { "\(base) \(baseSize) below \(overlay) \(overlaySize)" }
  }

  static let pairs = [
    Pair(base: "raw", baseSize: "4M", overlay: "", overlaySize: "4M"),
    Pair(base: "raw", baseSize: "3M", overlay: "cluster_size=4k", overlaySize: "4M"),
    Pair(base: "", baseSize: "4M", overlay: "", overlaySize: "4M"),
    Pair(base: "", baseSize: "3M", overlay: "", overlaySize: "5M"),
    Pair(base: "", baseSize: "9M", overlay: "cluster_size=2M", overlaySize: "5M"),
    Pair(base: "cluster_size=512", baseSize: "3M", overlay: "", overlaySize: "4M"),
    Pair(base: "compat=0.10", baseSize: "4M", overlay: "compat=0.10", overlaySize: "4M"),
    Pair(
      base: "extended_l2=on", baseSize: "4M", overlay: "extended_l2=on,cluster_size=16k",
      overlaySize: "4M"),
    Pair(
      base: "refcount_bits=1,lazy_refcounts=on", baseSize: "4M",
      overlay: "refcount_bits=64,lazy_refcounts=on,cluster_size=512", overlaySize: "4M"),
    Pair(base: "data_file=data", baseSize: "4M", overlay: "", overlaySize: "4M"),
    Pair(base: "data_file=data,data_file_raw=on", baseSize: "4M", overlay: "", overlaySize: "4M"),
  ]

  @Test(arguments: pairs) func `as qemu-img does, and empties the overlay`(pair: Pair) throws {
    let bench = try Workbench()
    try bench.makePair(
      base: pair.base, pair.baseSize, overlay: pair.overlay, pair.overlaySize)
    let format = pair.base == "raw" ? "raw" : "qcow2"
    try bench.prepare("qemu-img convert -f qcow2 -O raw overlay disk")
    // QEMU's turn on copies, in a folder of their own so that names stay right.
    try bench.prepare("mkdir theirs", "cp base overlay theirs")
    if bench.exists("data") { try bench.prepare("cp data theirs") }
    try bench.prepare("qemu-img commit -q -f qcow2 theirs/overlay")
    try bench.commit("overlay")
    #expect(try bench.areSame("base", format, "theirs/base", format))
    #expect(try bench.areSame("overlay", "qcow2", "disk", "raw"))
    if format == "qcow2" { try bench.expectClean("base") }
    try bench.expectClean("overlay")
    // All of the disk comes from below, also for QEMU.
    let map = try bench.run("qemu-img map -f qcow2 --output=json overlay").output
    #expect(!map.contains("\"depth\": 0, \"present\": true"), "\(map)")
    let size = try bench.bytes(of: "overlay").count
    let theirs = try bench.bytes(of: "theirs/overlay").count
    #expect(size <= max(theirs, 8 * 65_536) * 2, "\(size) bytes, QEMU's has \(theirs)")
    // And it goes on from there.
    try bench.write("overlay", "write_-P_9_0_1M")
    try bench.commit("-f qcow2 overlay")
    let read = try bench.run(["qemu-io", "-f", format, "-r", "-c", "read -P 9 0 1M", "base"])
    #expect(read.exitCode == 0 && !read.output.contains("failed"))
    try bench.expectClean("overlay")
  }

  @Test func `and with -d leaves the overlay as it is, to the byte`() throws {
    let bench = try Workbench()
    try bench.makePair(base: "", "4M", overlay: "", "4M")
    let before = try bench.bytes(of: "overlay")
    try bench.commit("-d overlay")
    #expect(try bench.bytes(of: "overlay") == before)
    #expect(try bench.areSame("overlay", "qcow2", "base", "qcow2"))
    try bench.expectClean("base")
  }

  @Test func `with -b into one further down, which keeps all above it`() throws {
    let bench = try Workbench()
    try bench.makePair(base: "", "4M", overlay: "", "4M")
    try bench.prepare("qemu-img create -q -f qcow2 -b overlay -F qcow2 top")
    try bench.write("top", "write_-P_7_50k_90k", "write_-z_110k_20k")
    try bench.prepare("qemu-img convert -f qcow2 -O raw top disk")
    let before = try [bench.bytes(of: "top"), bench.bytes(of: "overlay")]
    try bench.commit("-b base top")
    #expect(try [bench.bytes(of: "top"), bench.bytes(of: "overlay")] == before)
    #expect(try bench.areSame("base", "qcow2", "disk", "raw"))
    #expect(try bench.areSame("top", "qcow2", "disk", "raw"))
    try bench.expectClean("base")
    let refused = try bench.strata("commit -b disk top")
    #expect(refused.exitCode == 1 && refused.errors.contains("is not below it"))
  }

  @Test func `as zeroes where a shorter layer between them hides the base`() throws {
    let bench = try Workbench()
    try bench.prepare(
      "qemu-img create -q -f raw base 4M",
      "qemu-img create -q -f qcow2 -b base -F raw middle 1M",
      "qemu-img create -q -f qcow2 -b middle -F qcow2 top 4M")
    try bench.run(["qemu-io", "-f", "raw", "-c", "write -P 1 0 4M", "base"])
    try bench.prepare("qemu-img convert -f qcow2 -O raw top disk")
    try bench.commit("-b base top")
    #expect(try bench.areSame("base", "raw", "disk", "raw"))
    let bytes = try bench.bytes(of: "base")
    #expect(bytes[..<(1 << 20)].allSatisfy { $0 == 1 })
    #expect(bytes[(1 << 20)...].allSatisfy { $0 == 0 })
  }

  @Test func `also from packed clusters, through a base that has a base`() throws {
    let bench = try Workbench()
    try bench.makeForeignSource()
    try bench.prepare(
      "qemu-img create -q -f raw ground 21495808",
      "qemu-img create -q -f qcow2 -b ground -F raw base",
      "qemu-img convert -c -O qcow2 -B base -F qcow2 source.raw overlay")
    try bench.commit("overlay")
    #expect(try bench.areSame("base", "qcow2", "source.raw", "raw"))
    #expect(try bench.bytes(of: "ground").allSatisfy { $0 == 0 })
    try bench.expectClean("base", "overlay")
  }

  @Test func `and spares what snapshots of the base hold`() throws {
    let bench = try Workbench()
    try bench.prepare("qemu-img create -q -f qcow2 base 4M")
    try bench.write("base", "write_-P_1_0_4M")
    try bench.prepare(
      "qemu-img snapshot -c one base", "qemu-img create -q -f qcow2 -b base -F qcow2 overlay 4M")
    try bench.write("overlay", "write_-P_2_0_3M")
    try bench.commit("overlay")
    try bench.prepare("qemu-img convert -f qcow2 -l one -O raw base old")
    #expect(try bench.bytes(of: "old").allSatisfy { $0 == 1 })
    try bench.expectClean("base")
  }

  @Test func `and bitmaps of the base hear of it, those of the overlay stay`() throws {
    let bench = try Workbench()
    try bench.makePair(base: "", "4M", overlay: "", "4M")
    try bench.prepare(
      "qemu-img bitmap --add -g 64k base changes", "qemu-img bitmap --add -g 64k overlay own")
    try bench.write("overlay", "write_-P_6_2M_64k")
    try bench.commit("overlay")
    let base = try bench.strata("bitmap map base changes").output
    #expect(base.contains("2097152"), "\(base)")
    let info = try bench.run("qemu-img info --output=json overlay").output
    #expect(info.contains("\"own\"") && !info.contains("in-use"), "\(info)")
    let own = try bench.strata("bitmap map overlay own").output
    #expect(own.contains("2097152"), "\(own)")
    try bench.expectClean("base", "overlay")
  }

  @Test func `with the keys of both where they are encrypted`() throws {
    let bench = try Workbench()
    try bench.makeKey()
    try bench.write(Array("another".utf8), to: "key2")
    try bench.createEncrypted("base")
    try bench.io("base", "write_-P_1_0_2M")
    let made = try bench.strata(
      "create -q -f qcow2 --key-file key2 -o encrypt.format=luks,encrypt.iter-time=10"
        + " -b base -F qcow2 overlay")
    #expect(made.exitCode == 0, "\(made.errors)")
    let server = try bench.strata("convert -q -f qcow2 --key-file key base before")
    #expect(server.exitCode == 0, "\(server.errors)")
    let words = "commit --key-file base=key --key-file overlay=key2 overlay"
    let empty = try bench.strata(words)
    #expect(empty.exitCode == 0, "\(empty.errors)")
    #expect(try bench.strata("commit overlay").errors.contains("no key"))
    try bench.convert("-f qcow2 --key-file base=key --key-file overlay=key2 overlay after")
    #expect(try bench.run("cmp before after").exitCode == 0)
  }
}

@Suite struct `commit is refused` {
  @Test func `where there is nothing below, or what is below is in use`() throws {
    let bench = try Workbench()
    try bench.makePair(base: "", "4M", overlay: "", "4M")
    #expect(try bench.strata("commit base").errors.contains("no backing file"))
    let before = try bench.bytes(of: "base")
    let server = try bench.serve("qemu-nbd -r -f qcow2 base")
    let refused = try bench.strata("commit overlay")
    #expect(refused.exitCode == 1 && refused.errors.contains("in use"), "\(refused.errors)")
    #expect(try bench.bytes(of: "base") == before)
    withExtendedLifetime(server) {}
  }

  @Test func `where snapshots of the overlay show the base`() throws {
    let bench = try Workbench()
    try bench.makePair(base: "", "4M", overlay: "", "4M")
    try bench.prepare("qemu-img snapshot -c one overlay")
    for flag in ["", "-d "] {
      let refused = try bench.strata("commit \(flag)overlay")
      #expect(refused.exitCode == 1 && refused.errors.contains("internal snapshots"))
    }
  }

  @Test func `where the base is not one that the image may name`() throws {
    let bench = try Workbench()
    try bench.prepare("mkdir here there", "qemu-img create -q -f raw there/base 1M")
    try bench.prepare("qemu-img create -q -f qcow2 -b ../there/base -F raw here/overlay 1M")
    let refused = try bench.strata("commit here/overlay")
    #expect(refused.exitCode == 1 && refused.errors.contains("--allow-backing"))
    #expect(try bench.strata("commit --allow-backing there here/overlay").exitCode == 0)
  }

  @Test func `where an overlay keeps its data in another file, unless it stays as it is`() throws {
    let bench = try Workbench()
    try bench.prepare(
      "qemu-img create -q -f raw base 1M",
      "qemu-img create -q -f qcow2 -o data_file=data -b base -F raw overlay 1M")
    try bench.write("overlay", "write_-P_5_0_300k")
    #expect(try bench.strata("commit overlay").errors.contains("-d"))
    try bench.commit("-d overlay")
    #expect(try bench.areSame("overlay", "qcow2", "base", "raw"))
  }
}

@Suite struct `commit tells` {
  @Test func `what it did, as JSON, with progress`() throws {
    let bench = try Workbench()
    try bench.makePair(base: "raw", "4M", overlay: "", "4M")
    let result = try bench.strata("commit -p --output json overlay")
    let lines = result.output.split(separator: "\n")
    #expect(lines.count > 2 && lines[0].hasPrefix("{\"progress\":"))
    let last = try #require(
      JSONSerialization.jsonObject(with: Data(lines[lines.count - 1].utf8)) as? [String: Any])
    #expect(last["base"] as? String == bench.path("base") || last["base"] as? String == "base")
    #expect(last["emptied"] as? Bool == true)
    #expect((last["written-bytes"] as? Int ?? 0) > 700_000)
  }
}
