// SPDX-License-Identifier: Apache-2.0
//
// What verbs on snapshots keep, refuse and promise. Spec: qcow2.rst, "Snapshots";
// reference/qcow2.md 4.5.

import Foundation
import Testing

@testable import ImageTools

@Suite struct `A snapshot of an image at rest` {
  private func bench(_ options: String = "cluster_size=64k", size: String = "3M") throws
    -> Workbench
  {
    let bench = try Workbench()
    try bench.prepare("qemu-img create -q -f qcow2 -o \(options) image \(size)")
    try bench.qemuIO("image", ["write -P 1 0 1M"])
    return bench
  }

  /// Runs a verb that has to fail with these words, and to change no byte.
  private func expectRefusal(
    _ bench: Workbench, _ line: String, _ words: String,
    sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let before = try bench.bytes(of: "image")
    let result = try bench.strata(line)
    #expect(result.exitCode == 1, sourceLocation: sourceLocation)
    #expect(result.errors.contains(words), "\(result.errors)", sourceLocation: sourceLocation)
    #expect(try bench.bytes(of: "image") == before, sourceLocation: sourceLocation)
  }

  @Test(arguments: [(1, 0), (2, 2), (4, 14)])
  func `is refused before anything changes when the counts are too narrow`(
    _ bits: Int, _ snapshotCount: Int
  ) throws {
    let bench = try bench("refcount_bits=\(bits)")
    for number in 0..<snapshotCount { try bench.strataMust("snapshot create image s\(number)") }
    try expectRefusal(bench, "snapshot create image more", "reference count of \(bits) bit")
    try bench.requireClean("image", "the refusal")
    // QEMU refuses the same one.
    #expect(try bench.run("qemu-img snapshot -c more image").exitCode != 0)
  }

  @Test func `of an empty disk needs no count above one`() throws {
    let bench = try Workbench()
    try bench.prepare("qemu-img create -q -f qcow2 -o refcount_bits=1 image 3M")
    try bench.strataMust("snapshot create image empty")
    try bench.qemuIO("image", ["write -P 1 0 1M"])
    try bench.strataMust("snapshot apply image empty")
    #expect(try bench.disk("image") == [UInt8](repeating: 0, count: 3 << 20))
    try bench.requireClean("image", "going back")
  }

  @Test func `gets the next number as its id, and is found by id before name`() throws {
    let bench = try bench()
    try bench.prepare("qemu-img snapshot -c 3 image", "qemu-img snapshot -c b image")
    #expect(try bench.strata("snapshot create image c").output == "snapshot 3\n")
    // "3" is the name of the first and the id of the third.
    try bench.strataMust("snapshot delete image 3")
    let list = try bench.strata("snapshot list --output json image").output
    let names = try Self.objects(list).map { "\($0["id"] ?? "")=\($0["name"] ?? "")" }
    #expect(names == ["1=3", "2=b"])
    try bench.strataMust("snapshot delete image 3")
    #expect(try Self.objects(bench.strata("snapshot list --output json image").output).count == 1)
  }

  @Test func `is listed as qemu-img lists it`() throws {
    let bench = try bench()
    try bench.prepare("qemu-img snapshot -c one image", "qemu-img snapshot -c two image")
    let theirs = try bench.run("qemu-img snapshot -l image").output
    #expect(try bench.strata("snapshot list image").output == theirs)
    let info = try bench.run("qemu-img info --output json image").output
    let object = try JSONSerialization.jsonObject(with: Data(info.utf8)) as? [String: Any]
    let expected = try #require(object?["snapshots"] as? NSArray)
    let list = try bench.strata("snapshot list --output json image").output
    #expect(try JSONSerialization.jsonObject(with: Data(list.utf8)) as? NSArray == expected)
  }

  private static func objects(_ text: String) throws -> [[String: Any]] {
    try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [[String: Any]] ?? []
  }

  @Test func `keeps what nobody knows of the others`() throws {
    let bench = try bench()
    try bench.prepare("qemu-img snapshot -c one image")
    let table = try bench.word("image", at: 64)
    // A machine's state of 5 bytes in the old field, an instruction count, and 16 unknown bytes.
    var bytes = try bench.bytes(of: "image") + [UInt8](repeating: 0, count: 128)
    let unknown: [UInt8] = Array(0xa0...0xaf)
    bytes.replaceSubrange((table + 64)..<(table + 68), with: [UInt8](repeating: 0, count: 4))
    let names = Array("1one".utf8)
    bytes.replaceSubrange((table + 56)..<(table + 64), with: [0, 0, 0, 0, 0, 0, 0, 99])
    bytes.replaceSubrange((table + 64)..<(table + 84), with: unknown + names)
    bytes[table + 39] = 40
    bytes[table + 35] = 5
    bytes[table + 47] = 9
    try bench.write(bytes, to: "image")
    try bench.requireClean("image", "poking")
    let entry = Array(bytes[table..<(table + 88)])
    try bench.strataMust("snapshot create image two")
    let second = try bench.word("image", at: 64)
    #expect(second != table)
    #expect(Array(try bench.bytes(of: "image")[second..<(second + 88)]) == entry)
    try bench.strataMust("snapshot delete image two")
    let third = try bench.word("image", at: 64)
    #expect(Array(try bench.bytes(of: "image")[third..<(third + 88)]) == entry)
    try bench.requireClean("image", "coming and going")
  }

  @Test func `keeps bitmaps valid, and does not go back over their heads`() throws {
    let bench = try bench()
    try bench.prepare("qemu-img bitmap --add image b")
    try bench.strataMust("snapshot create image one")
    #expect(try bench.run("qemu-img info image").output.contains("name: b"))
    try expectRefusal(bench, "snapshot apply image one", "bitmaps")
    #expect(try bench.run("qemu-img snapshot -a one image").exitCode != 0)
    try bench.strataMust("snapshot delete image one")
    #expect(try bench.run("qemu-img info image").output.contains("name: b"))
    try bench.requireClean("image", "deletion")
  }

  @Test func `of another size stays where version 2 has snapshots`() throws {
    let bench = try bench("compat=0.10")
    try bench.strataMust("snapshot create image one")
    // As if the disk had been made larger, which QEMU refuses.
    try bench.poke("image", UInt64(4 << 20), at: 24)
    try expectRefusal(bench, "snapshot apply image one", "version 2")
    #expect(try bench.run("qemu-img snapshot -a one image").exitCode != 0)
  }

  @Test func `is refused where it cannot be`() throws {
    let bench = try bench()
    try expectRefusal(bench, "snapshot apply image nix", "no snapshot")
    try expectRefusal(bench, "snapshot delete image nix", "no snapshot")
    try expectRefusal(
      bench, "snapshot create image \(String(repeating: "n", count: 256))", "255 bytes")
    try bench.poke("image", UInt64(1 << 1), at: 72)
    try expectRefusal(bench, "snapshot create image one", "marked corrupt")
    try bench.poke("image", UInt64(1 << 40), at: 72)
    try expectRefusal(bench, "snapshot create image one", "unknown features")
    try bench.prepare("qemu-img create -q -f qcow2 -o data_file=data image 3M")
    try expectRefusal(bench, "snapshot create image one", "external data file")
    #expect(try bench.run("qemu-img snapshot -c one image").exitCode != 0)
    try bench.prepare("qemu-img create -q -f raw image 3M")
    try expectRefusal(bench, "snapshot create -f raw image one", "raw image")
  }

  @Test func `leaves the keys of an encrypted image alone`() throws {
    let bench = try Workbench()
    try bench.prepare(
      "qemu-img create -q -f qcow2 --object secret,id=s,data=abc -o encrypt.format=luks,"
        + "encrypt.key-secret=s,encrypt.iter-time=10 image 3M")
    try bench.strataMust("snapshot create image one")
    try bench.strataMust("snapshot apply image one")
    try bench.strataMust("snapshot delete image one")
    try bench.prepare(
      "qemu-img check -q --object secret,id=s,data=abc --image-opts "
        + "driver=qcow2,encrypt.key-secret=s,file.driver=file,file.filename=image")
    // Counts that call the keys free.
    let bytes = try bench.bytes(of: "image")
    let type: [UInt8] = [0x05, 0x37, 0xbe, 0x77]
    let place = try #require(
      (104..<1024).first { Array(bytes[$0..<($0 + 4)]) == type })
    let cluster = try bench.word("image", at: place + 8) / 65_536
    let block = try bench.word("image", at: try bench.word("image", at: 48))
    try bench.poke("image", UInt16(0), at: block + 2 * cluster)
    try expectRefusal(bench, "snapshot create image one", "holds tables")
  }

  @Test func `is refused while somebody uses the image`() throws {
    let bench = try bench()
    let server = try bench.serve("qemu-nbd -f qcow2 image")
    let result = try bench.strata("snapshot create image one")
    #expect(result.exitCode == 1)
    #expect(result.errors.contains("in use"), "\(result.errors)")
    withExtendedLifetime(server) {}
  }

  @Test func `is not taken of tables that lead nowhere`() throws {
    let bench = try bench()
    let table = try bench.word("image", at: 40)
    try bench.poke("image", UInt64(1) << 63 | 0x1_0000_0000, at: table)
    try expectRefusal(bench, "snapshot create image one", "damaged")
  }

  @Test func `is mapped and described with the size that it had`() throws {
    let bench = try bench()
    try bench.strataMust("snapshot create image one")
    try bench.prepare("qemu-img resize -q image 7M")
    try bench.qemuIO("image", ["write -P 2 1M 1M", "discard 0 512k"])
    let map = try bench.strata("map --output json --snapshot one image").output
    let extents = try Self.objects(map)
    #expect(extents.map { $0["length"] as? Int } == [1 << 20, 2 << 20])
    #expect(extents.map { $0["data"] as? Bool } == [true, false])
    let info = try bench.strata("info --snapshot 1 image").output
    #expect(info.contains("virtual size: 3 MiB"))
    #expect(try bench.strata("map --snapshot nix image").errors.contains("no snapshot"))
  }
}
