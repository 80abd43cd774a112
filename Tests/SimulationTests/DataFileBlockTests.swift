// SPDX-License-Identifier: Apache-2.0
//
// An external data file on a storage of large blocks, on a disk that ends inside one of them.
// Spec: qcow2.rst, "Header" (external data file); seed 784 of tools/simulate found the first.

import BlockTypes
import LinuxIO
import NBDProtocol
import Testing

@testable import DataPlane

private let block: UInt64 = 4096

/// An image with a data file, both on simulated disks of blocks of 4096 bytes.
private struct Bench {
  let machine: SimulatedMachine

  init(diskByteCount: UInt64) throws {
    var scenario = Scenario()
    scenario.hasDataFile = true
    scenario.blockByteCount = block
    scenario.options = "cluster_size=16384"
    scenario.clusterByteCount = 16_384
    scenario.diskByteCount = diskByteCount
    machine = try SimulatedMachine(scenario, seed: 1)
  }

  func use(_ body: (inout ImageStack) throws -> Void) throws {
    var image = try Session.open(
      machine, path: "disk", access: .readWrite, cacheByteCount: 0, pool: BlockingPool())
    defer { image.unmapAll() }
    try body(&image)
    try Session.settle(&image)
  }

  func dataByteCount() -> UInt64? { machine.disks["data"]?.byteCount }
}

@Suite struct `A data file that ends inside a block` {
  /// Ends of a disk in the first block of its last cluster, in the middle one and in the last.
  @Test(arguments: [65_536 + 512, 65_536 + 7_168, 81_920 - 512] as [UInt64])
  func `takes first and later writes to its last bytes`(diskByteCount: UInt64) throws {
    let bench = try Bench(diskByteCount: diskByteCount)
    let last = ByteRange(start: diskByteCount - 512, end: diskByteCount)
    let whole = ByteRange(start: 65_536, end: diskByteCount)
    try bench.use { image in
      try Session.finish(&image, .write, last, [UInt8](repeating: 1, count: 512))
      #expect(try Session.finish(&image, .read, last) == [UInt8](repeating: 1, count: 512))
    }
    try bench.use { image in
      var expected = [UInt8](repeating: 0, count: Int(whole.byteCount))
      expected.replaceSubrange((expected.count - 512)..., with: [UInt8](repeating: 1, count: 512))
      #expect(try Session.finish(&image, .read, whole) == expected)
      let data = [UInt8](repeating: 2, count: Int(whole.byteCount))
      try Session.finish(&image, .write, whole, data)
      try Session.finish(&image, .writeZeroes, last)
      #expect(
        try Session.finish(&image, .read, whole)
          == data.dropLast(512) + [UInt8](repeating: 0, count: 512))
    }
    // No longer than the block in which the disk ends.
    #expect(try #require(bench.dataByteCount()) <= diskByteCount.alignedUp(to: block))
    #expect(try bench.machine.check().faults.isEmpty)
  }

  /// Else writes of whole blocks would make it longer than the disk, which it is to read as.
  @Test func `does not become one when the disk grows`() throws {
    let bench = try Bench(diskByteCount: 65_536)
    try bench.use { image in
      let refusal = #expect(throws: ResizeRefusal.self) {
        try image.requireResizable(to: 65_536 + 512)
      }
      #expect(refusal?.reason.contains("no multiple of 4096") == true)
      #expect(throws: Breach.self) {
        try Session.finish(&image, .resize, ByteRange(start: 66_048, end: 66_048))
      }
      try Session.finish(&image, .resize, ByteRange(start: 69_632, end: 69_632))
      let last = ByteRange(start: 69_632 - 512, end: 69_632)
      try Session.finish(&image, .write, last, [UInt8](repeating: 1, count: 512))
    }
    #expect(bench.dataByteCount() == 69_632)
    #expect(try bench.machine.check().faults.isEmpty)
  }
}
