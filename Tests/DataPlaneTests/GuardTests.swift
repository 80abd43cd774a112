// SPDX-License-Identifier: Apache-2.0
//
// Runtime guards: tables of the image are neither handed out as free nor written over, the header
// is marked once, and nothing changes any more. Source: reference/qcow2.md 4.8 (overlap-check).

import BlockTypes
import Foundation
import TestSupport
import Testing

@testable import DataPlane

extension ImageBench {
  fileprivate var verdict: String? { image.overlapGuard.verdict }
}

/// An image with a snapshot, whose words can be looked at and changed while nobody has it open.
private struct GuardedImage {
  let folder: TemporaryFolder

  init(version: String = "1.1") throws {
    folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 -o compat=\(version) @disk 4G")
    try folder.qemuIO("disk", "write -P 7 0 256k", "write -P 8 600M 64k")
    try folder.qemu("qemu-img snapshot -c one @disk")
    try folder.qemuIO("disk", "write -P 9 0 64k")
    try folder.qemu("qemu-img check -q @disk")
  }

  func bytes() throws -> [UInt8] {
    [UInt8](try Data(contentsOf: URL(fileURLWithPath: folder.path("disk"))))
  }

  func word(_ offset: UInt64) throws -> UInt64 {
    try bytes()[Int(offset)..<Int(offset) + 8].reduce(0) { $0 << 8 | UInt64($1) }
  }

  func set(_ offset: UInt64, _ value: some FixedWidthInteger) throws {
    let file = try FileHandle(forUpdating: URL(fileURLWithPath: folder.path("disk")))
    try file.seek(toOffset: offset)
    try file.write(contentsOf: withUnsafeBytes(of: value.bigEndian) { Data($0) })
    try file.close()
  }

  func l1Table() throws -> UInt64 { try word(40) }
  func l2Table(_ index: UInt64) throws -> UInt64 {
    try word(try l1Table() + 8 * index) & 0x00ff_ffff_ffff_fe00
  }
  func snapshotL1Table() throws -> UInt64 { try word(try word(64)) }

  /// Host offset of a table.
  func place(of table: String) throws -> UInt64 {
    switch table {
    case "the header": 0
    case "the L1 table": try l1Table()
    case "the refcount table": try word(48)
    case "refcount block 0": try word(try word(48))
    case "the snapshot table": try word(64)
    case "the L1 table of a snapshot": try snapshotL1Table()
    case "the L2 table of L1 entry 0": try l2Table(0)
    default: try word(try snapshotL1Table()) & 0x00ff_ffff_ffff_fe00
    }
  }

  func count(_ host: UInt64) throws -> UInt64 { try word(try word(48)) + 2 * (host >> 16) }

  var isMarked: Bool { get throws { try bytes()[79] & 2 != 0 } }
}

@Suite struct `A table of the image that is counted as free` {
  @Test(
    arguments: [
      ("the header", .none), ("the L1 table", .none), ("the refcount table", .none),
      ("refcount block 0", .none), ("the snapshot table", .constant),
      ("the L1 table of a snapshot", .cached), ("the L2 table of L1 entry 0", .cached),
      ("an L2 table of a snapshot", .all),
    ] as [(String, OverlapCheck)])
  func `is not handed out, and the image takes no more changes`(
    _ table: String, _ mode: OverlapCheck
  ) throws {
    let image = try GuardedImage()
    let host = try image.place(of: table)
    try image.set(try image.count(host), UInt16(0))
    let before = Array(try image.bytes()[Int(host)..<Int(host) + 65_536])
    let bench = try ImageBench(image.folder, "disk", overlapCheck: mode)
    #expect(try bench.write(pattern(65_536), 1 << 30) == .io)
    #expect(bench.verdict?.hasSuffix("holds \(table)") == true)
    // The cluster is what it was, but for the mark.
    _ = try bench.flush()
    #expect(try image.isMarked)
    var after = Array(try image.bytes()[Int(host)..<Int(host) + 65_536])
    if host == 0 { after[79] = 0 }
    #expect(after == before)
    #expect(try bench.write(pattern(512), 2 << 30) == .io)
    // What the guest has is there.
    #expect(try bench.read(0, 512).allSatisfy { $0 == 9 })
  }

  @Test func `is handed out where the mode does not guard it`() throws {
    let image = try GuardedImage()
    try image.set(try image.count(try image.place(of: "the snapshot table")), UInt16(0))
    let bench = try ImageBench(image.folder, "disk", overlapCheck: .none)
    #expect(try bench.write(pattern(65_536), 600 << 20) == .none)
    #expect(bench.verdict == nil)
  }

  @Test func `makes an image of version 2 read-only, which has no mark`() throws {
    let image = try GuardedImage(version: "0.10")
    try image.set(try image.count(try image.l1Table()), UInt16(0))
    let before = Array(try image.bytes()[0..<512])
    let bench = try ImageBench(image.folder, "disk")
    #expect(try bench.write(pattern(512), 1 << 30) == .io)
    _ = try bench.flush()
    #expect(bench.verdict != nil)
    #expect(Array(try image.bytes()[0..<512]) == before)
  }
}

@Suite struct `An entry that cannot be right` {
  @Test(
    arguments: ["the L1 table", "the refcount table", "refcount block 0", "the snapshot table"])
  func `does not let a guest write over a table`(_ table: String) throws {
    let image = try GuardedImage()
    let host = try image.place(of: table)
    try image.set(try image.l2Table(0), UInt64(1) << 63 | host)
    let before = Array(try image.bytes()[Int(host)..<Int(host) + 65_536])
    let bench = try ImageBench(image.folder, "disk")
    #expect(try bench.write(pattern(4096), 0) == .io)
    #expect(bench.verdict?.hasSuffix("which leads to \(table)") == true)
    _ = try bench.flush()
    #expect(try image.isMarked)
    #expect(Array(try image.bytes()[Int(host)..<Int(host) + 65_536]) == before)
    // Its neighbours in the same table are reachable.
    #expect(try bench.read(65_536, 512).allSatisfy { $0 == 7 })
  }

  @Test(arguments: [UInt64(1) << 63 | 0x200, 1 << 63 | 1 << 55, 1 << 57] as [UInt64])
  func `fails its request and marks the image`(_ entry: UInt64) throws {
    let image = try GuardedImage()
    try image.set(try image.l2Table(0), entry)
    let bench = try ImageBench(image.folder, "disk")
    #expect(try bench.write(pattern(4096), 0) == .io)
    _ = try bench.flush()
    #expect(bench.verdict?.contains("L2 entry 0 of the table") == true)
    #expect(try image.isMarked)
  }

  @Test func `does not let a guest write over a table that was made after it was looked at`() throws
  {
    let image = try GuardedImage()
    let host = try image.word(try image.l2Table(0)) & 0x00ff_ffff_ffff_fe00
    try image.set(try image.count(host), UInt16(0))
    let bench = try ImageBench(image.folder, "disk")
    #expect(try bench.write(pattern(4096), 0) == .none)
    // The first free cluster becomes an L2 table.
    #expect(try bench.write(pattern(4096), 1 << 30) == .none)
    #expect(try bench.write(pattern(4096), 4096) == .io)
    #expect(bench.verdict?.hasSuffix("which leads to the L2 table of L1 entry 2") == true)
    #expect(try bench.read(1 << 30, 4096) == pattern(4096))
  }

  @Test func `makes no L2 table of the header's neighbour`() throws {
    let image = try GuardedImage()
    let block = try image.place(of: "refcount block 0")
    try image.set(try image.l1Table() + 8, UInt64(1) << 63 | block)
    let bench = try ImageBench(image.folder, "disk")
    #expect(try bench.write(pattern(4096), 600 << 20) == .io)
    #expect(
      bench.verdict == "the L2 table of L1 entry 1 lies on refcount block 0")
  }

  @Test func `changes nothing of an image that is only read`() throws {
    let image = try GuardedImage()
    try image.set(try image.l2Table(0), UInt64(1) << 63 | 0x200)
    let before = try image.bytes()
    let bench = try ImageBench(image.folder, "disk", isReadOnly: true)
    #expect(try bench.readError(0, 512) == .io)
    #expect(try image.bytes() == before)
  }
}

@Suite struct `A mapped cluster with the count 0` {
  @Test func `is not freed once more, and the image is marked`() throws {
    let image = try GuardedImage()
    let host = try image.word(try image.l2Table(0)) & 0x00ff_ffff_ffff_fe00
    let bench: ImageBench
    do {
      try image.set(try image.count(host), UInt16(0))
      bench = try ImageBench(image.folder, "disk")
    }
    #expect(try bench.call(.trim, 0, 65_536) == .none)
    _ = try bench.flush()
    try bench.until(deadlineSeconds: 5) { bench.verdict != nil }
    _ = try bench.flush()
    #expect(bench.verdict?.contains("has the count 0") == true)
    #expect(try image.isMarked)
  }
}

@Suite struct `A filter of clusters` {
  @Test func `never forgets one, and is wrong about few others`() {
    var filter = TableFilter(clusterCountMax: 1000)
    for cluster: UInt64 in 0..<1000 { filter.insert(cluster * 513) }
    let known = (0..<1000).count { filter.mayContain(UInt64($0) * 513) }
    #expect(known == 1000)
    let wrong = (0..<10_000).count { filter.mayContain(UInt64($0) * 1_000_003 + 7) }
    #expect(wrong < 50)
  }

  @Test func `makes nobody look twice at a page that it suspects wrongly`() throws {
    let image = try GuardedImage()
    let host = try image.word(try image.l2Table(0)) & 0x00ff_ffff_ffff_fe00
    let bench = try ImageBench(image.folder, "disk")
    // As a table that has moved away leaves it.
    bench.image.overlapGuard.addL2Table(host >> 16)
    #expect(try bench.write(pattern(4096), 0) == .none)
    let page = try #require(bench.image.cache.find(0, try image.l2Table(0)))
    #expect(
      bench.image.cache.pages[page].soundGeneration == bench.image.overlapGuard.generation)
  }
}
