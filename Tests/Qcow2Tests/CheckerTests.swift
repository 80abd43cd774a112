// SPDX-License-Identifier: Apache-2.0
//
// New layouts, the checker and the refcount plan, on images in memory.
// Spec: qcow2.rst, "Host cluster management", "Cluster mapping".

import BlockTypes
import Testing

@testable import Qcow2

/// An image in memory, empty as `create` lays it out.
struct MemoryImage {
  var header: Header
  var bytes: [UInt8]
  let layout: NewImageLayout

  init(
    clusterBits: Int, refcountOrder: Int, diskByteCount: UInt64, hasSubclusters: Bool = false
  ) throws {
    let geometry = ClusterGeometry(
      clusterBits: clusterBits, refcountOrder: refcountOrder, hasSubclusters: hasSubclusters)
    layout = try NewImageLayout(geometry: geometry, diskByteCount: diskByteCount)
    header = Header(version: 3, geometry: geometry, diskByteCount: diskByteCount)
    layout.apply(to: &header)
    bytes = [UInt8](repeating: 0, count: Int(layout.clusterCount) << clusterBits)
    bytes.replaceSubrange(0..<(1 << clusterBits), with: try header.encode())
    let table = layout.refcountTableBytes()
    let blocks = layout.refcountBlockBytes()
    let tableStart = Int(layout.refcountTableOffset.byteOffset)
    let blocksStart = Int(layout.refcountBlocksOffset.byteOffset)
    bytes.replaceSubrange(tableStart..<(tableStart + table.count), with: table)
    bytes.replaceSubrange(blocksStart..<(blocksStart + blocks.count), with: blocks)
  }

  var clusterByteCount: Int { Int(header.geometry.clusterByteCount) }

  /// Adds a cluster at the end and returns its offset.
  mutating func addCluster(count: UInt64) -> Int {
    let offset = bytes.count
    bytes += [UInt8](repeating: 0, count: clusterByteCount)
    setCount(count, of: offset / clusterByteCount)
    return offset
  }

  mutating func setCount(_ count: UInt64, of cluster: Int) {
    var block = Array(bytes[blockRange])
    Refcount.store(count, to: &block, at: cluster, order: header.geometry.refcountOrder)
    bytes.replaceSubrange(blockRange, with: block)
  }

  private var blockRange: Range<Int> {
    let start = Int(layout.refcountBlocksOffset.byteOffset)
    return start..<(start + clusterByteCount)
  }

  func checker(
    memoryByteCountMax: Int = 64 << 20, finding: @escaping (CheckFinding) -> Void = { _ in }
  ) -> Checker<ImageError> {
    let bytes = bytes
    return Checker(
      header: header, fileByteCount: UInt64(bytes.count), allocatedByteCount: UInt64(bytes.count),
      memoryByteCountMax: memoryByteCountMax,
      read: { (offset, byteCount) throws(ImageError) in
        guard offset < bytes.count else { return [] }
        return Array(bytes[Int(offset)..<min(bytes.count, Int(offset) + byteCount)])
      }, fault: { $0 }, finding: finding)
  }

  func check() throws -> CheckReport {
    var checker = checker()
    try checker.run()
    return checker.report
  }

  /// The texts of what a check finds.
  func findings() throws -> [String] {
    var texts: [String] = []
    var checker = checker { texts.append($0.text) }
    try checker.run()
    return texts
  }
}

@Suite struct `A new image's layout` {
  @Test(arguments: 9...21, 0...6)
  func `is clean for every geometry`(_ clusterBits: Int, _ refcountOrder: Int) throws {
    for diskByteCount: UInt64 in [0, 512, 1 << 20, 1 << 30] {
      let image = try MemoryImage(
        clusterBits: clusterBits, refcountOrder: refcountOrder, diskByteCount: diskByteCount)
      let header = try Header(
        decoding: Array(image.bytes.prefix(image.clusterByteCount)),
        fileByteCount: UInt64(image.bytes.count))
      #expect(header == image.header)
      let report = try image.check()
      #expect(report.isClean)
      #expect(report.imageEndOffset == UInt64(image.bytes.count))
    }
  }

  @Test func `has an L1 table of at most 32 MiB`() throws {
    // 512-byte clusters: each L1 entry maps 32 KiB, so 2^22 entries map 128 GiB.
    let geometry = ClusterGeometry(clusterBits: 9, refcountOrder: 4)
    #expect(
      try NewImageLayout(geometry: geometry, diskByteCount: 128 << 30).l1EntryCount == 1 << 22)
    #expect(throws: ImageError.self) {
      try NewImageLayout(geometry: geometry, diskByteCount: (128 << 30) + 1)
    }
  }
}

@Suite struct `The checker` {
  /// One L2 table with one data cluster.
  static func imageWithData() throws -> (image: MemoryImage, l2: Int, data: Int) {
    var image = try MemoryImage(clusterBits: 12, refcountOrder: 4, diskByteCount: 8 << 20)
    let l2 = image.addCluster(count: 1)
    let data = image.addCluster(count: 1)
    image.bytes.put(UInt64(l2) | 1 << 63, at: Int(image.header.l1TableOffset.byteOffset))
    image.bytes.put(UInt64(data) | 1 << 63, at: l2)
    return (image, l2, data)
  }

  @Test func `finds nothing wrong with a good image`() throws {
    let report = try Self.imageWithData().image.check()
    #expect(report.isClean)
    #expect(report.allocatedClusterCount == 1)
  }

  @Test func `calls a counted cluster that nobody uses a leak`() throws {
    var (image, l2, _) = try Self.imageWithData()
    image.bytes.put(UInt64(0), at: l2)
    let report = try image.check()
    #expect(report.leakCount == 1)
    #expect(report.corruptionCount == 0)
  }

  @Test func `calls a used cluster that nobody counts a corruption`() throws {
    var (image, _, data) = try Self.imageWithData()
    image.setCount(0, of: data / image.clusterByteCount)
    let report = try image.check()
    // The count, and the COPIED flag that contradicts it.
    #expect(report.corruptionCount == 2)
    #expect(report.tableCorruptionCount == 0)
  }

  @Test func `sees a COPIED flag that is set though the cluster is shared`() throws {
    var (image, l2, data) = try Self.imageWithData()
    image.bytes.put(UInt64(data) | 1 << 63, at: l2 + 8)
    image.setCount(2, of: data / image.clusterByteCount)
    #expect(try image.check().corruptionCount == 2)
    image.bytes.put(UInt64(data), at: l2)
    image.bytes.put(UInt64(data), at: l2 + 8)
    #expect(try image.check().isClean)
  }

  @Test(arguments: [
    UInt64(0x200) | 1 << 63, 1 << 40, 1 << 63, 2, 1 << 57, 1 << 62 | 1 << 50, .max,
  ])
  func `calls a damaged L2 entry a corruption that counts cannot cure`(_ entry: UInt64) throws {
    var (image, l2, _) = try Self.imageWithData()
    image.bytes.put(entry, at: l2)
    #expect(try image.check().tableCorruptionCount > 0)
  }

  @Test func `takes time for each table of the file, not for each claim`() throws {
    // 2^20 L1 entries that share one full L2 table of 32,768 entries would be 2^35 steps.
    var image = try MemoryImage(
      clusterBits: 18, refcountOrder: 6, diskByteCount: (1 << 33) * (1 << 20))
    let l2 = image.addCluster(count: 1)
    let start = Int(image.header.l1TableOffset.byteOffset)
    for index in 0..<(1 << 20) { image.bytes.put(UInt64(l2), at: start + 8 * index) }
    for index in 0..<32_768 { image.bytes.put(UInt64(l2), at: l2 + 8 * index) }
    let begin = ContinuousClock.now
    let report = try image.check()
    #expect(report.corruptionCount > 0)
    #expect(begin.duration(to: .now) < .seconds(60))
  }

  @Test func `survives random damage anywhere`() throws {
    var random = SplitMix(state: 7)
    for _ in 0..<400 {
      var image = try Self.imageWithData().image
      for _ in 0..<(1 + Int(random.next() % 6)) {
        let offset =
          image.clusterByteCount
          + Int(random.next() % UInt64(image.bytes.count - image.clusterByteCount))
        image.bytes[offset] = UInt8(truncatingIfNeeded: random.next())
      }
      do { _ = try image.check() } catch {}
    }
  }
}

@Suite struct `Places and rules of findings` {
  @Test func `are in the message of a damaged L2 entry`() throws {
    var (image, l2, _) = try `The checker`.imageWithData()
    image.bytes.put(UInt64(0x200) | 1 << 63, at: l2 + 24)
    let text = try #require(try image.findings().first)
    #expect(text.contains("L2 entry 3 of the table at host offset \(l2) (guest offset 12288)"))
    #expect(text.contains("is not aligned"))
    #expect(text.contains("(qcow2.rst, \"Standard Cluster Descriptor\")"))
  }

  @Test func `are in the message of a damaged L1 entry`() throws {
    var image = try `The checker`.imageWithData().image
    let l1 = Int(image.header.l1TableOffset.byteOffset)
    image.bytes.put(UInt64(1) << 40, at: l1 + 8)
    let text = try #require(try image.findings().first)
    #expect(text.contains("L1 entry 1 (0x10000000000 at host offset \(l1 + 8)) names an L2 table"))
  }

  @Test func `name both of two tables that lie on each other though the counts agree`() throws {
    var (image, l2, _) = try `The checker`.imageWithData()
    let table = Int(image.header.l1TableOffset.byteOffset)
    image.bytes.put(UInt64(table), at: l2 + 8)
    image.setCount(2, of: table / image.clusterByteCount)
    let texts = try image.findings()
    #expect(texts.count == 1)
    #expect(texts.first?.contains("lies on the L1 table (host offset \(table))") == true)
    #expect(try image.check().tableCorruptionCount == 1)
  }
}

@Suite struct `Counts of clusters` {
  @Test func `take less of the file when memory does not suffice, and nothing is lost`() {
    // Each page of 4096 counts takes 8 KiB; the directory of 2^24 clusters 16 KiB.
    var counts = ClusterCounts(clusterCount: 1 << 24, byteCountMax: 96 << 10)
    for index: UInt64 in 0..<100 { counts.add(1, to: (index << 16)..<(index << 16) + 1) }
    #expect(counts.window.upperBound < 100 << 16)
    for index: UInt64 in 0..<100 where counts.window.contains(index << 16) {
      #expect(counts[index << 16] == 1)
    }
    #expect(counts.window.upperBound.isMultiple(of: 4096))
    let end = counts.window.upperBound
    let second = ClusterCounts(from: end, clusterCount: 1 << 24, byteCountMax: 96 << 10)
    #expect(second.window == end..<1 << 24)
  }

  @Test func `count one step however little memory there is`() {
    var counts = ClusterCounts(clusterCount: 1 << 20, step: 1 << 16, byteCountMax: 1)
    counts.add(1, to: 0..<1 << 20)
    #expect(counts.window == 0..<1 << 16)
    #expect(counts[65_535] == 1)
  }

  @Test func `grow wide where a byte does not suffice, and stay at their largest value`() {
    var counts = ClusterCounts(clusterCount: 1, byteCountMax: 64 << 10)
    for _ in 0..<300 { counts.add(1, to: 0..<1) }
    #expect(counts[0] == 300)
    counts.add(.max, to: 0..<1)
    #expect(counts[0] == UInt64(UInt32.max))
  }

  @Test func `tell what cannot share a cluster`() {
    var counts = ClusterCounts(clusterCount: 10, byteCountMax: 64 << 10)
    #expect(counts.add(1, to: 1..<3, as: .table) == [])
    #expect(counts.add(1, to: 0..<4, as: .data) == [1, 2])
    #expect(counts.add(1, to: 5..<6, as: .l2Table) == [])
    #expect(counts.add(1, to: 5..<6, as: .l2Table) == [])
    #expect(counts.add(1, to: 5..<6, as: .data) == [5])
    #expect(counts.add(1, to: 3..<4, as: .refcountBlock) == [3])
  }

  @Test(arguments: [1, 2, 3]) func `give the same report in one pass and in many`(
    _ clusterBits: Int
  ) throws {
    var image = try MemoryImage(
      clusterBits: 9, refcountOrder: 6, diskByteCount: UInt64(8 << clusterBits) << 20)
    var random = SplitMix(state: UInt64(clusterBits))
    // 64 counts a block: windows end at 4096 clusters.
    for _ in 0..<6000 { image.bytes += [UInt8](repeating: 0, count: 512) }
    let clusters = UInt64(image.bytes.count / 512)
    for index in 0..<image.header.l1EntryCount where index % 3 == 0 {
      let table = 1 + random.next() % (clusters - 1)
      image.bytes.put(
        table << 9 | (random.next() % 2) << 63,
        at: Int(image.header.l1TableOffset.byteOffset) + 8 * index)
      for entry in 0..<64 where entry % 5 == 0 {
        image.bytes.put(
          (random.next() % clusters) << 9 | (random.next() % 2) << 63,
          at: Int(table) << 9 + 8 * entry)
      }
    }
    var one = image.checker()
    try one.run()
    var many = image.checker(memoryByteCountMax: 1)
    try many.run()
    #expect(one.isLastWindow)
    #expect(many.counts.window.lowerBound > 0)
    #expect(one.report == many.report)
    #expect(one.report.corruptionCount > 100)
  }
}

@Suite struct `A refcount plan` {
  @Test(arguments: [9, 12, 16], [0, 3, 4, 6])
  func `gives a clean image when the old structure is gone`(
    _ clusterBits: Int, _ refcountOrder: Int
  ) throws {
    var image = try MemoryImage(
      clusterBits: clusterBits, refcountOrder: refcountOrder, diskByteCount: 1 << 22)
    let geometry = image.header.geometry
    var checker = image.checker()
    try checker.forEachWindow(withStructure: false) { (checker) throws(ImageError) in
      let perBlock = geometry.refcountBlockEntryCount
      let plan = try RefcountPlan(
        blocks: Set(checker.counts.blockStarts(perBlock).map { $0 / perBlock }),
        firstFreeCluster: UInt64(image.bytes.count >> clusterBits), geometry: geometry)
      for position in plan.blockIndices.indices {
        #expect(Int(plan.blockOffset(at: position).byteOffset) == image.bytes.count)
        image.bytes += plan.blockBytes(at: position, counts: checker.counts)
      }
      #expect(Int(plan.tableOffset.byteOffset) == image.bytes.count)
      image.bytes += plan.tableBytes()
      image.header.refcountTableOffset = plan.tableOffset
      image.header.refcountTableClusterCount = Int(plan.tableClusterCount)
    }
    #expect(try image.check().isClean)
  }
}

@Suite struct `Packed counts in arrays` {
  @Test(arguments: 0...6) func `read back what was written and leave the neighbours`(
    _ order: Int
  ) throws {
    var bytes = [UInt8](repeating: 0, count: 64)
    let max: UInt64 = order == 6 ? .max : (1 << (1 << UInt64(order))) - 1
    let count = (64 * 8) >> order
    for index in stride(from: 0, to: count, by: 3) {
      Refcount.store(max, to: &bytes, at: index, order: order)
    }
    for index in 0..<count {
      #expect(Refcount.load(bytes, at: index, order: order) == (index % 3 == 0 ? max : 0))
    }
  }

  @Test func `of sub-byte width start at the least significant bit`() {
    var bytes: [UInt8] = [0]
    Refcount.store(1, to: &bytes, at: 0, order: 1)
    Refcount.store(3, to: &bytes, at: 2, order: 1)
    #expect(bytes == [0b0011_0001])
  }
}
