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

  var checker: Checker<ImageError> {
    get throws {
      let bytes = bytes
      return try Checker(
        header: header, fileByteCount: UInt64(bytes.count),
        allocatedByteCount: UInt64(bytes.count),
        read: { (offset, byteCount) throws(ImageError) in
          guard offset < bytes.count else { return [] }
          return Array(bytes[Int(offset)..<min(bytes.count, Int(offset) + byteCount)])
        }, fault: { $0 }, finding: { _ in })
    }
  }

  func check() throws -> CheckReport {
    var checker = try checker
    try checker.run()
    return checker.report
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

@Suite struct `Counts of clusters` {
  @Test func `take no more memory than they may, however far apart the clusters are`() throws {
    // A page and a region take 3 KiB, so 64 KiB hold 21 lonely counts.
    var counts = try ClusterCounts(clusterCount: 1 << 36, byteCountMax: 64 << 10)
    for index: UInt64 in 0..<21 { try counts.add(1, to: index << 20) }
    #expect(throws: ImageError.self) { try counts.add(1, to: 21 << 20) }
    #expect(counts[20 << 20] == 1)
    #expect(counts.isEmpty(in: (20 << 20) + 1..<(1 << 36)))
    #expect(!counts.isEmpty(in: 0..<(1 << 36)))
  }

  @Test func `stay at their largest value`() throws {
    var counts = try ClusterCounts(clusterCount: 1, byteCountMax: 64 << 10)
    #expect(try counts.add(.max, to: 0) == .max)
    #expect(try counts.add(1, to: 0) == .max)
  }

  @Test func `of a file with too many clusters are refused`() {
    #expect(throws: ImageError.self) {
      try ClusterCounts(clusterCount: (1 << 36) + 1, byteCountMax: 64 << 10)
    }
  }
}

@Suite struct `A refcount plan` {
  @Test(arguments: [9, 12, 16], [0, 3, 4, 6])
  func `gives a clean image when the old structure is gone`(
    _ clusterBits: Int, _ refcountOrder: Int
  ) throws {
    var image = try MemoryImage(
      clusterBits: clusterBits, refcountOrder: refcountOrder, diskByteCount: 1 << 22)
    let fileByteCount = UInt64(image.bytes.count)
    var checker = try image.checker
    try checker.countReferences()
    let plan = try RefcountPlan(
      counts: checker.counts, geometry: image.header.geometry, fileByteCount: fileByteCount)
    for position in plan.blockIndices.indices {
      #expect(Int(plan.blockOffset(at: position).byteOffset) == image.bytes.count)
      image.bytes += plan.blockBytes(at: position)
    }
    #expect(Int(plan.tableOffset.byteOffset) == image.bytes.count)
    image.bytes += plan.tableBytes()
    image.header.refcountTableOffset = plan.tableOffset
    image.header.refcountTableClusterCount = Int(plan.tableClusterCount)
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
