// SPDX-License-Identifier: Apache-2.0
//
// Images that say what no writer says: what the fuzzer (tools/fuzz, target Image) has found, each
// as a test. Source: tools/STYLE.md, "Input never traps".

import BlockTypes
import ImageTools
import LinuxIO
import NBDProtocol
import Testing

@testable import DataPlane

/// An image with a little data, whose words a test changes.
private struct Stranger {
  let machine: SimulatedMachine

  init(_ options: String, clusterByteCount: UInt64) throws {
    var scenario = Scenario()
    scenario.options = options
    scenario.clusterByteCount = clusterByteCount
    scenario.diskByteCount = 64 << 10
    machine = try SimulatedMachine(scenario, seed: 1)
    try use { image in
      try Session.finish(&image, .write, ByteRange(start: 0, end: 4096), data(4096))
    }
  }

  func data(_ count: Int) -> [UInt8] { [UInt8](repeating: 0x5a, count: count) }

  func word(_ offset: UInt64) throws -> UInt64 {
    let range = ByteRange(start: offset, end: offset + 8)
    guard case .bytes(let bytes) = try machine.disk.run(.read(range)) else { return 0 }
    return bytes.reduce(0) { $0 << 8 | UInt64($1) }
  }

  func set(_ offset: UInt64, _ word: UInt64) throws {
    let bytes = (0..<8).map { UInt8(truncatingIfNeeded: word >> (56 - 8 * $0)) }
    _ = try machine.disk.run(.write(offset: offset, bytes: bytes, isDurable: true))
  }

  /// Where the L2 table of the first L1 entry lies.
  func l2Table() throws -> UInt64 { try word(word(40)) & 0x00ff_ffff_ffff_fe00 }

  func use(_ body: (inout ImageStack) throws -> Void) throws {
    var image = try Session.open(
      machine, path: "disk", access: .readWrite, cacheByteCount: 0, pool: BlockingPool())
    defer { image.unmapAll() }
    try body(&image)
    try Session.settle(&image)
  }
}

@Suite struct `An image of strangers` {
  @Test func `may be longer than its refcount table can count`() throws {
    let image = try Stranger("cluster_size=512,refcount_bits=64", clusterByteCount: 512)
    // One cluster of table counts 64 * 64 clusters, which are 2 MiB.
    _ = try image.machine.disk.run(.resize(to: 4 << 20))
    try image.set(image.l2Table(), 1 << 63 | 3 << 20)
    try image.use { stack in
      let range = ByteRange(start: 0, end: 512)
      try Session.finish(&stack, .write, range, image.data(512))
      #expect(try Session.finish(&stack, .read, range) == image.data(512))
    }
    #expect(try image.machine.check().faults.isEmpty == false)
  }
}
