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

/// The images that repairs are tried on: 4 KiB clusters, so that tables are many and small.
enum DamagedImage {
  /// Guest bytes of a cluster, and those that one L2 table maps.
  static let clusterByteCount = 4096
  static let coverageByteCount = 4096 * 512

  static func make(_ bench: Workbench, withSnapshot: Bool = true) throws {
    try bench.make([
      "qemu-img create -q -f qcow2 -o cluster_size=4k image.qcow2 8M",
      "qemu-io -c write_-P_1_0_100k -c write_-P_2_2M_64k -c write_-z_3M_64k image.qcow2",
    ])
    if withSnapshot {
      try bench.prepare("qemu-img snapshot -c one image.qcow2")
      try bench.make(["qemu-io -c write_-P_3_32k_16k -c write_-P_4_5M_100k image.qcow2"])
    }
    try bench.prepare("qemu-img bitmap --add -g 64k image.qcow2 b0")
    try bench.prepare("qemu-img check -q image.qcow2", "cp image.qcow2 before.qcow2")
    try bench.prepare("qemu-img convert -O raw before.qcow2 before.raw")
  }

  static func l1Table(_ bench: Workbench) throws -> Int { try bench.word("image.qcow2", at: 40) }

  static func l2Table(_ bench: Workbench, _ index: Int = 0) throws -> Int {
    try bench.word("image.qcow2", at: try l1Table(bench) + 8 * index) & 0xff_ffff_ffff_fe00
  }

  static func refcountBlock(_ bench: Workbench) throws -> Int {
    try bench.word("image.qcow2", at: try bench.word("image.qcow2", at: 48))
  }
}

extension Workbench {
  /// Whether two images read the same outside of a range of the guest.
  func expectSameContent(
    _ name: String, besides range: Range<Int>, _ comment: String = ""
  ) throws {
    try prepare("qemu-img convert -O raw \(name) \(name).raw")
    let now = try bytes(of: "\(name).raw")
    let before = try bytes(of: "before.raw")
    let isSame =
      now.count == before.count && now[..<range.lowerBound] == before[..<range.lowerBound]
      && now[range.upperBound...] == before[range.upperBound...]
    if isSame { return }
    let place = zip(now, before).enumerated().first { index, pair in
      pair.0 != pair.1 && !range.contains(index)
    }
    Issue.record("\(comment): other bytes at \(place?.offset ?? -1)")
  }
}

@Suite struct `check -r all` {
  @Test(
    arguments: [
      (0x8000_0000_0000_0200, "is not aligned", true),
      (0x8000_0100_0000_0000, "behind the end of the file", true),
      (0x8200_0000_0000_0000, "reserved bits", false),
      (0x8000_0000_0000_0000, "COPIED flag but no cluster", false),
      (0x4000_2000_0000_0000, "behind the end of the file", true),
      (0x8000_0000_0000_1000, "names the refcount table as the guest's data", true),
    ] as [(UInt64, String, Bool)])
  func `says a damaged L2 entry before it reads as zeroes, and keeps all others`(
    _ entry: UInt64, _ problem: String, _ isZero: Bool
  ) throws {
    let bench = try Workbench()
    try DamagedImage.make(bench)
    let table = try DamagedImage.l2Table(bench)
    try bench.poke("image.qcow2", entry, at: table + 8 * 5)
    let result = try bench.strata("check -r all image.qcow2")
    #expect(result.exitCode == 0, "\(result)")
    if !problem.contains("refcount table") {
      #expect(result.errors.contains("L2 entry 5 of the table at host offset \(table)"))
      #expect(result.errors.contains(problem), "\(result.errors)")
    }
    #expect(try bench.run("qemu-img check image.qcow2").exitCode == 0)
    try bench.expectSameContent("image.qcow2", besides: 5 * 4096..<6 * 4096)
    if isZero, !problem.contains("refcount table") {
      let cluster = try bench.bytes(of: "image.qcow2.raw")[(5 * 4096)..<(6 * 4096)]
      #expect(cluster.allSatisfy { $0 == 0 })
    }
  }

  @Test(
    arguments: [
      0x8000_0000_0000_0200, 0x8000_0100_0000_0000, 0x8000_0000_0000_0000, 0x8000_0000_0000_3000,
    ] as [UInt64])
  func `empties an L1 entry that names no L2 table`(_ entry: UInt64) throws {
    let bench = try Workbench()
    try DamagedImage.make(bench)
    try bench.poke("image.qcow2", entry, at: try DamagedImage.l1Table(bench) + 8)
    let result = try bench.strata("check -r all image.qcow2")
    #expect(result.exitCode == 0, "\(result)")
    #expect(result.errors.contains("Repairing L1 entry 1 "))
    #expect(try bench.run("qemu-img check image.qcow2").exitCode == 0)
    let coverage = DamagedImage.coverageByteCount
    try bench.expectSameContent("image.qcow2", besides: coverage..<(2 * coverage))
  }

  @Test func `gives a guest's cluster back that an L1 entry calls a table`() throws {
    let bench = try Workbench()
    try DamagedImage.make(bench, withSnapshot: false)
    let data = try bench.word("image.qcow2", at: try DamagedImage.l2Table(bench)) & 0xff_ffff_fe00
    try bench.poke("image.qcow2", UInt64(data) | 1 << 63, at: try DamagedImage.l1Table(bench) + 24)
    let result = try bench.strata("check -r all image.qcow2")
    #expect(result.exitCode == 0, "\(result)")
    #expect(try bench.run("qemu-img check image.qcow2").exitCode == 0)
    let coverage = DamagedImage.coverageByteCount
    try bench.expectSameContent("image.qcow2", besides: 3 * coverage..<(4 * coverage))
  }

  @Test func `drops a snapshot whose L1 table is nowhere, and says so`() throws {
    let bench = try Workbench()
    try DamagedImage.make(bench)
    try bench.prepare("qemu-img snapshot -c two image.qcow2")
    try bench.poke("image.qcow2", UInt64(0x200), at: try bench.word("image.qcow2", at: 64))
    let result = try bench.strata("check -r all image.qcow2")
    #expect(result.exitCode == 0, "\(result)")
    #expect(result.errors.contains("Repairing snapshot '1': its L1 table at host offset 512"))
    #expect(try bench.run("qemu-img check image.qcow2").exitCode == 0)
    let list = try bench.run("qemu-img snapshot -l image.qcow2").output
    #expect(list.contains("two") && !list.contains("one"))
    try bench.expectSameContent("image.qcow2", besides: 0..<0)
  }

  @Test func `moves a snapshot table that lies on the L1 table`() throws {
    let bench = try Workbench()
    try DamagedImage.make(bench)
    try bench.poke("image.qcow2", UInt64(try DamagedImage.l1Table(bench)), at: 64)
    #expect(try bench.strata("check image.qcow2").exitCode == 2)
    let result = try bench.strata("check -r all image.qcow2")
    #expect(result.exitCode == 0, "\(result)")
    #expect(try bench.run("qemu-img check image.qcow2").exitCode == 0)
    try bench.expectSameContent("image.qcow2", besides: 0..<0)
  }

  @Test func `declares bitmaps void when one is damaged, and keeps the guest's data`() throws {
    let bench = try Workbench()
    try DamagedImage.make(bench)
    let bytes = try bench.bytes(of: "image.qcow2")
    let place = try #require(bytes.firstRange(of: [0x23, 0x85, 0x28, 0x75]))
    let directory = try bench.word("image.qcow2", at: place.lowerBound + 24)
    let data = try bench.word("image.qcow2", at: try DamagedImage.l2Table(bench)) & 0xff_ffff_fe00
    // The bitmap's table would be the guest's first cluster.
    try bench.poke("image.qcow2", UInt64(data), at: directory)
    #expect(try bench.strata("check image.qcow2").exitCode == 2)
    let result = try bench.strata("check -r all image.qcow2")
    #expect(result.exitCode == 0, "\(result)")
    #expect(result.errors.contains("Repairing the persistent bitmaps"))
    #expect(try bench.run("qemu-img check image.qcow2").exitCode == 0)
    try bench.expectSameContent("image.qcow2", besides: 0..<0)
  }

  @Test func `clears the corrupt bit only when nothing remains`() throws {
    let bench = try Workbench()
    try DamagedImage.make(bench)
    try bench.poke("image.qcow2", UInt64(2), at: 72)
    #expect(try bench.strata("check -r leaks image.qcow2").exitCode == 0)
    #expect(try bench.word("image.qcow2", at: 72) == 2)
    #expect(try bench.strata("check -r all image.qcow2").exitCode == 0)
    #expect(try bench.word("image.qcow2", at: 72) == 0)
  }

  @Test func `leaves an honest remainder where counts are too narrow`() throws {
    let bench = try Workbench()
    try bench.make([
      "qemu-img create -q -f qcow2 -o cluster_size=4k,refcount_bits=1 image.qcow2 8M",
      "qemu-io -c write_0_8k image.qcow2",
    ])
    let table = try DamagedImage.l2Table(bench)
    let data = try bench.word("image.qcow2", at: table)
    try bench.poke("image.qcow2", UInt64(bitPattern: Int64(data)), at: table + 8)
    try bench.poke("image.qcow2", UInt64(2), at: 72)
    let result = try bench.strata("check -r all image.qcow2")
    #expect(result.exitCode == 2)
    #expect(result.errors.contains("more references than its count can hold"))
    #expect(try bench.word("image.qcow2", at: 72) == 2)
  }

  @Test func `puts the refcount table of an image right that has none`() throws {
    let bench = try Workbench()
    try DamagedImage.make(bench)
    let table = try bench.word("image.qcow2", at: 48)
    for index in 0..<8 { try bench.poke("image.qcow2", UInt64.max, at: table + 8 * index) }
    #expect(try bench.strata("check -r all image.qcow2").exitCode == 0)
    #expect(try bench.run("qemu-img check image.qcow2").exitCode == 0)
    try bench.expectSameContent("image.qcow2", besides: 0..<0)
  }
}

@Suite struct `check --to` {
  @Test func `repairs into a new file and leaves the image as it is`() throws {
    let bench = try Workbench()
    try DamagedImage.make(bench)
    let table = try DamagedImage.l2Table(bench)
    try bench.poke("image.qcow2", UInt64(0x200), at: table)
    let damaged = try bench.bytes(of: "image.qcow2")
    #expect(try bench.strata("check -r all --to copy.qcow2 image.qcow2").exitCode == 0)
    #expect(try bench.bytes(of: "image.qcow2") == damaged)
    #expect(try bench.run("qemu-img check copy.qcow2").exitCode == 0)
    try bench.expectSameContent("copy.qcow2", besides: 0..<4096)
  }

  @Test func `overwrites nothing and leaves nothing half made`() throws {
    let bench = try Workbench()
    try DamagedImage.make(bench)
    #expect(try bench.strata("check -r all --to before.qcow2 image.qcow2").exitCode == 1)
    #expect(try bench.bytes(of: "before.qcow2") == bench.bytes(of: "image.qcow2"))
    try bench.prepare("truncate -s 1M no.qcow2")
    #expect(try bench.strata("check -f qcow2 -r all --to new.qcow2 no.qcow2").exitCode == 1)
    #expect(!bench.exists("new.qcow2"))
    #expect(try bench.strata("check --to new.qcow2 image.qcow2").exitCode != 0)
  }
}

@Suite struct `Flags that this program does not keep up` {
  @Test func `are cleared before an image is written, and stay when it is read`() throws {
    let bench = try Workbench()
    try bench.make(["qemu-img create -q -f qcow2 image.qcow2 10M"])
    try bench.poke("image.qcow2", UInt64(0xf0), at: 88)
    // Without a lock: a tool that another test starts just now has our descriptors for a moment.
    _ = try OpenChain.open(
      path: bench.path("image.qcow2"), format: .qcow2, access: .readOnly,
      options: OpenChain.Options(takesLocks: false))
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
