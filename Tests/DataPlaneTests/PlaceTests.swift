// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of tables: where an entry lies, where a count lies, how large a table must grow.
// Spec: qcow2.rst, "Host cluster management", "Cluster mapping".

import Qcow2
import Testing

@testable import DataPlane

@Suite struct `A page of a table` {
  @Test(arguments: [(9, 512), (10, 1_024), (12, 4_096), (16, 4_096), (21, 4_096)])
  func `is 4096 bytes, or a whole cluster where that is smaller`(
    clusterBits: Int, byteCount: Int
  ) {
    let geometry = ClusterGeometry(clusterBits: clusterBits, refcountOrder: 4)
    #expect(geometry.pageByteCount == byteCount)
  }
}

@Suite struct `The place of an L2 entry` {
  private let geometry = ClusterGeometry(clusterBits: 16, refcountOrder: 4)

  @Test(arguments: [
    (0, 0, 0), (1, 0, 1), (511, 0, 511), (512, 4_096, 0), (513, 4_096, 1), (8_191, 61_440, 511),
  ])
  func `is in the page that holds its 8 bytes`(index: Int, page: Int, inPage: Int) {
    let place = PagePlace(entryIndex: index, table: 1 << 30, geometry: geometry)
    #expect(place.pageOffset == 1 << 30 + UInt64(page))
    #expect(place.entryInPage == inPage)
    #expect(place.entriesPerPage == 512)
  }

  @Test func `is in the only page of a table of 512 bytes`() {
    let small = ClusterGeometry(clusterBits: 9, refcountOrder: 4)
    let place = PagePlace(entryIndex: 63, table: 512, geometry: small)
    #expect(place.pageOffset == 512)
    #expect(place.entryInPage == 63)
    #expect(place.entriesPerPage == 64)
  }
}

@Suite struct `The place of a reference count` {
  /// Checked against the definition, bit by bit: count n is at bits n * width of its block.
  @Test(arguments: [9, 12, 16], 0...6)
  func `is where the definition says`(clusterBits: Int, refcountOrder: Int) {
    let geometry = ClusterGeometry(clusterBits: clusterBits, refcountOrder: refcountOrder)
    let perBlock = geometry.refcountBlockEntryCount
    let perPage = UInt64((geometry.pageByteCount * 8) >> refcountOrder)
    for index in [0, 1, perPage - 1, perPage, perBlock - 1] where index < perBlock {
      for block: UInt64 in [0, 3] {
        let place = CountPlace(
          cluster: block * perBlock + index, block: 1 << 30, geometry: geometry)
        let width = UInt64(1) << UInt64(refcountOrder)
        let bit = (place.pageOffset - (1 << 30)) * 8 + UInt64(place.indexInPage) * width
        #expect(bit == index * width)
        #expect(place.indexInPage < place.countsPerPage)
        #expect(UInt64(place.countsPerPage) == perPage)
      }
    }
  }
}

@Suite struct `A refcount table that grows` {
  @Test(arguments: [9, 12, 16], [0, 4, 6])
  func `is half as large again, has room for its own blocks, and counts itself`(
    clusterBits: Int, refcountOrder: Int
  ) throws {
    let geometry = ClusterGeometry(clusterBits: clusterBits, refcountOrder: refcountOrder)
    let perCluster = geometry.tableWordCount
    for old in [perCluster, 2 * perCluster, 3 * perCluster, 17 * perCluster] {
      let growth = try #require(
        TableGrowth(oldEntryCount: old, firstBlock: old, geometry: geometry))
      #expect(growth.entryCount >= old * 3 / 2)
      #expect(growth.entryCount == growth.tableClusterCount * perCluster)
      #expect(growth.byteCount == growth.tableClusterCount << clusterBits)
      #expect(old + growth.blockCount <= growth.entryCount)
      let capacity = growth.blockCount * Int(geometry.refcountBlockEntryCount)
      #expect(capacity >= growth.blockCount + growth.tableClusterCount)
      // Not a block more than needed.
      let smaller = (growth.blockCount - 1) * Int(geometry.refcountBlockEntryCount)
      #expect(smaller < growth.blockCount - 1 + growth.tableClusterCount)
    }
  }

  @Test(arguments: [9, 12, 16], [0, 4, 6])
  func `keeps room in one piece behind itself, and counts it`(
    clusterBits: Int, refcountOrder: Int
  ) throws {
    let geometry = ClusterGeometry(clusterBits: clusterBits, refcountOrder: refcountOrder)
    let perBlock = Int(geometry.refcountBlockEntryCount)
    for room in [1, perBlock, 3 * perBlock + 1] {
      let growth = try #require(
        TableGrowth(
          oldEntryCount: geometry.tableWordCount, firstBlock: 3, roomClusterCount: room,
          geometry: geometry))
      #expect(growth.startByte == UInt64(3 * perBlock) << UInt64(clusterBits))
      #expect(growth.tableByte == growth.startByte + UInt64(growth.blockCount << clusterBits))
      #expect(growth.roomByte == growth.tableByte + UInt64(growth.byteCount))
      #expect(growth.endByte == growth.roomByte + UInt64(room << clusterBits))
      #expect(growth.clusterCount <= growth.blockCount * perBlock)
      #expect(3 + growth.blockCount <= growth.entryCount)
    }
  }

  @Test func `is refused where no file is so long, or no table so large`() {
    let long = ClusterGeometry(clusterBits: 21, refcountOrder: 0)
    #expect(TableGrowth(oldEntryCount: 1 << 18, firstBlock: 1 << 18, geometry: long) == nil)
    let large = ClusterGeometry(clusterBits: 16, refcountOrder: 4)
    let entries = Header.refcountTableByteCountMax / 8
    #expect(TableGrowth(oldEntryCount: entries / 2, firstBlock: 0, geometry: large) != nil)
    #expect(TableGrowth(oldEntryCount: entries, firstBlock: entries, geometry: large) == nil)
  }
}

@Suite struct `A tag of an operation` {
  @Test func `carries its kind and its index`() {
    let tag = IOTag(.flushSync, 1 << 40)
    let again = IOTag(rawValue: tag.rawValue)
    #expect(again.kind == .flushSync)
    #expect(again.index == 1 << 40)
  }

  @Test func `of a read carries its slot and the block that it begins at`() {
    for (slot, block) in [(0, 0), (1_280_000, 0xff_ffff), (0xffff_ffff, 65_537)] {
      let tag = IOTag(readFor: slot, block: UInt64(block))
      #expect(tag.kind == .read)
      #expect(tag.slot == slot)
      #expect(tag.block == UInt64(block))
    }
  }

  @Test func `of no kind says so`() {
    #expect(IOTag(rawValue: 5).kind == nil)
  }
}

@Suite struct `A dense list` {
  @Test func `moves its last element to the gap and says so`() {
    var list = DenseList()
    let positions = [7, 8, 9].map { list.append($0) }
    #expect(positions == [0, 1, 2])
    #expect(list.remove(at: 0) == 9)
    #expect(list.indices == [9, 8])
    #expect(list.remove(at: 1) == nil)
    #expect(list.indices == [9])
  }
}
