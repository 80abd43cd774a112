// SPDX-License-Identifier: Apache-2.0
//
// The extents of a BLOCK_STATUS answer: merging, limits, both widths. Spec: proto.md,
// "NBD_CMD_BLOCK_STATUS"; its branch extension-ext-header, "NBD_REPLY_TYPE_BLOCK_STATUS_EXT".

import BlockTypes
import LinuxIO
import NBDProtocol
import Testing

@testable import DataPlane

/// Extents that are collected, and the buffer that holds them.
private final class Collector {
  var extents = StatusExtents()
  let buffer: IOBuffer
  var pool = BufferPool()

  init(_ contexts: MetaContextSet, framing: ReplyFraming = .extended) throws {
    guard let buffer = pool.acquire(byteCount: StatusExtents.bufferByteCount) else {
      throw BenchError("no memory")
    }
    self.buffer = buffer
    extents.begin(contexts, extentByteCount: framing.extentByteCount, in: buffer)
  }

  func add(_ byteCount: UInt64, _ status: UInt32, depth: UInt32 = 0) -> Bool {
    extents.add(byteCount, status, depth: depth, limit: extents.extentsMax, to: buffer)
  }

  func add(_ byteCount: UInt64, _ status: UInt32, of contextID: UInt32) -> Bool {
    extents.add(byteCount, status, of: contextID, limit: extents.extentsMax, to: buffer)
  }

  /// The 64-bit words of a context's extents.
  func words(_ contextID: UInt32) -> [UInt64] {
    let run = extents.run(of: contextID, in: buffer)
    let count = run.count * extents.extentByteCount / 8
    return (0..<count).map { buffer.loadBigEndian64(at: run.start + $0 * 8) }
  }
}

@Suite struct `The extents of a block status` {
  @Test func `merge neighbours of equal status, each context by itself`() throws {
    let collector = try Collector([.baseAllocation, .allocationDepth])
    for (count, status, depth) in [(5, 0, 1), (7, 0, 2), (1, 3, 2), (9, 3, 2)]
      as [(UInt64, UInt32, UInt32)]
    {
      #expect(collector.add(count, status, depth: depth))
    }
    #expect(collector.words(0) == [12, 0, 10, 3])
    #expect(collector.words(1) == [5, 1, 17, 2])
  }

  @Test func `of more than 2^32 bytes keep their length in 64 bits`() throws {
    let collector = try Collector(.baseAllocation)
    for _ in 0..<3 {
      #expect(collector.add(1 << 40, 3))
    }
    #expect(collector.words(0) == [3 << 40, 3])
  }

  @Test func `have pairs of 32 bits with compact headers`() throws {
    let collector = try Collector(.baseAllocation, framing: .structured)
    #expect(collector.add(0x1000, 3))
    #expect(collector.words(0) == [0x0000_1000_0000_0003])
  }

  @Test func `do not end where a context changes that is not told about`() throws {
    let collector = try Collector(.baseAllocation)
    for depth in 0..<10_000 {
      #expect(collector.add(1, 0, depth: UInt32(depth % 2)))
    }
    #expect(collector.words(0) == [10_000, 0])
  }

  @Test(arguments: [(ReplyFraming.structured, 4064), (.extended, 2032)])
  func `end where the buffer does`(_ framing: ReplyFraming, _ max: Int) throws {
    let collector = try Collector([.baseAllocation, .allocationDepth], framing: framing)
    #expect(collector.extents.extentsMax == max)
    for number in 0..<max {
      #expect(collector.add(1, UInt32(number % 2)))
    }
    #expect(!collector.add(1, UInt32(max % 2)))
    #expect(collector.add(1, UInt32((max - 1) % 2)))
  }

  @Test func `of 64 contexts have room of their own each`() throws {
    let collector = try Collector(MetaContextSet(rawValue: .max))
    let max = collector.extents.extentsMax
    #expect(max == 63)
    for number in 0..<max {
      for id in UInt32(2)..<64 {
        #expect(collector.add(UInt64(id), UInt32(number % 2), of: id))
      }
      #expect(collector.add(1, UInt32(number % 2), depth: UInt32(number)))
    }
    for id in UInt32(2)..<64 {
      #expect(!collector.add(1, UInt32(max % 2), of: id))
      #expect(
        collector.words(id) == (0..<max).flatMap { [UInt64(id), UInt64($0 % 2)] })
    }
    #expect(collector.words(1) == (0..<max).flatMap { [1, UInt64($0)] })
  }

  @Test func `of the contexts that were not asked for take no room`() throws {
    let collector = try Collector(MetaContextSet(rawValue: 1 << 63 | 1 << 5))
    #expect(collector.extents.extentsMax == 2032)
    #expect(collector.add(5, 1, of: 5))
    #expect(collector.add(63, 1, of: 63))
    #expect(collector.words(5) == [5, 1])
    #expect(collector.words(63) == [63, 1])
    #expect(!collector.extents.needsTables)
  }

  @Test func `are enough when the request has cost its runs or its tables`() throws {
    let collector = try Collector(.baseAllocation)
    #expect(!collector.extents.isEnough(isStopping: true), "nothing to tell yet")
    collector.extents.tableCount = StatusExtents.tablesMax
    #expect(!collector.extents.isEnough(isStopping: false), "nothing to tell yet")
    _ = collector.add(1, 0)
    #expect(collector.extents.isEnough(isStopping: false))
    collector.extents.tableCount = 0
    #expect(!collector.extents.isEnough(isStopping: false))
    #expect(collector.extents.isEnough(isStopping: true))
    while collector.extents.runCount < StatusExtents.runsMax {
      #expect(!collector.extents.isEnough(isStopping: false))
      _ = collector.add(1, 0)
    }
    #expect(collector.extents.isEnough(isStopping: false))
  }
}
