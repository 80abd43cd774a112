// SPDX-License-Identifier: Apache-2.0
//
// Reference counts made true again: dirty images (lazy refcounts), and what a check found.
// Source: reference/qcow2.md 4.2, 4.8.

import LinuxIO
import Testing

@testable import ImageTools

@Suite struct `A dirty image` {
  static func make(_ bench: Workbench, clusterSize: String, bits: Int) throws {
    try bench.make([
      "qemu-img create -q -f qcow2 -o lazy_refcounts=on,cluster_size=\(clusterSize),"
        + "refcount_bits=\(bits) image.qcow2 64M"
    ])
    // The writer dies before its counts are on disk.
    let words = ["qemu-io", "-c", "write -P 7 0 5M", "-c", "write -P 8 20M 3M", "-c", "flush"]
    _ = try bench.run(words + ["-c", "sigraise 9", "image.qcow2"])
    try bench.prepare("cp image.qcow2 before.qcow2")
    #expect(try bench.run("qemu-img check image.qcow2").exitCode != 0)
  }

  @Test(arguments: ["512", "64k", "2M"], [1, 16, 64])
  func `is rebuilt when it is opened for writing, and keeps its content`(
    _ clusterSize: String, _ bits: Int
  ) throws {
    let bench = try Workbench()
    try Self.make(bench, clusterSize: clusterSize, bits: bits)
    let layers = try OpenChain.open(
      path: bench.path("image.qcow2"), format: .qcow2, access: .readWrite)
    #expect(layers[0].header?.isDirty == false)
    layers[0].storage.file.unlock()
    #expect(try bench.run("qemu-img check image.qcow2").exitCode == 0)
    #expect(try bench.bytes(of: "image.qcow2")[72..<80].allSatisfy { $0 == 0 })
    try bench.prepare("qemu-img compare image.qcow2 before.qcow2")
  }

  @Test func `stays as it is when it is opened for reading`() throws {
    let bench = try Workbench()
    try Self.make(bench, clusterSize: "64k", bits: 16)
    let layers = try OpenChain.open(
      path: bench.path("image.qcow2"), format: .qcow2, access: .readOnly)
    #expect(layers[0].header?.isDirty == true)
    #expect(try bench.bytes(of: "image.qcow2") == bench.bytes(of: "before.qcow2"))
  }

  @Test func `gets a whole new refcount structure when the old one is lost`() throws {
    let bench = try Workbench()
    try Self.make(bench, clusterSize: "4k", bits: 16)
    try bench.poke("image.qcow2", UInt64(0), at: try bench.word("image.qcow2", at: 48))
    #expect(try bench.strata("check -r all image.qcow2").exitCode == 0)
    #expect(try bench.run("qemu-img check image.qcow2").exitCode == 0)
    try bench.prepare("qemu-img compare image.qcow2 before.qcow2")
  }

  @Test func `with damaged tables is refused with a way out`() throws {
    let bench = try Workbench()
    try Self.make(bench, clusterSize: "64k", bits: 16)
    let table = try bench.word("image.qcow2", at: try bench.word("image.qcow2", at: 40))
    try bench.poke("image.qcow2", UInt64(1) << 63 | 0x200, at: (table & 0xff_ffff_ffff) + 8)
    let error = #expect(throws: ImageFault.self) {
      try OpenChain.open(path: bench.path("image.qcow2"), format: .qcow2, access: .readWrite)
    }
    #expect(error?.kind == .corrupt)
    #expect(error?.wayOut?.contains("qemu-img") == true)
  }
}

@Suite struct `Flags that this program does not keep up` {
  @Test func `are cleared before an image is written, and stay when it is read`() throws {
    let bench = try Workbench()
    try bench.make(["qemu-img create -q -f qcow2 image.qcow2 10M"])
    try bench.poke("image.qcow2", UInt64(0xf0), at: 88)
    _ = try OpenChain.open(path: bench.path("image.qcow2"), format: .qcow2, access: .readOnly)
    #expect(try bench.word("image.qcow2", at: 88) == 0xf0)
    _ = try OpenChain.open(path: bench.path("image.qcow2"), format: .qcow2, access: .readWrite)
    #expect(try bench.word("image.qcow2", at: 88) == 0)
  }

  @Test func `of the disk stay when only counts are repaired`() throws {
    let bench = try Workbench()
    try bench.make([
      "qemu-img create -q -f qcow2 image.qcow2 10M", "qemu-img bitmap --add image.qcow2 b",
    ])
    // A count too many, and a flag that nobody knows.
    let block = try bench.word("image.qcow2", at: try bench.word("image.qcow2", at: 48))
    try bench.poke("image.qcow2", UInt16(2), at: block)
    try bench.poke("image.qcow2", UInt64(0xf1), at: 88)
    #expect(try bench.strata("check -r all image.qcow2").exitCode == 0)
    #expect(try bench.word("image.qcow2", at: 88) == 1)
    #expect(try bench.run("qemu-img info image.qcow2").output.contains("name: b"))
  }

  @Test func `stay where the image needs what nobody knows`() throws {
    let bench = try Workbench()
    try bench.make(["qemu-img create -q -f qcow2 image.qcow2 10M"])
    try bench.poke("image.qcow2", UInt64(1 << 20), at: 72)
    try bench.poke("image.qcow2", UInt64(0xf0), at: 88)
    let before = try bench.bytes(of: "image.qcow2")
    let result = try bench.strata("check -r all image.qcow2")
    #expect(result.exitCode == 63)
    #expect(result.errors.contains("unknown features: bit 20"))
    #expect(try bench.bytes(of: "image.qcow2") == before)
  }
}
