// SPDX-License-Identifier: Apache-2.0
//
// A discard that is held between the table that forgot its clusters and the hole in the file, while
// others write and flush: what another writer lost data by (cloud-hypervisor #8624).

import BlockTypes
import LinuxIO
import NBDProtocol
import Testing

@testable import DataPlane

@Suite struct `A discard that is held before its hole is punched` {
  @Test func `keeps its cluster from others until the hole is there`() throws {
    let bench = try SteppedImage()
    #expect(try bench.write(0) == .none)
    #expect(try bench.flush() == .none)
    let freed = bench.host(ofCluster: 0)
    try #require(freed != nil)

    bench.holdsPunches = true
    let trimmed = try bench.finish(.trim, SteppedImage.range(ofCluster: 0)) { _ in .done }
    #expect(trimmed == .none)
    #expect(try bench.flush() == .none)
    #expect(bench.heldPunchCount == 1)
    for cluster in UInt64(1)..<9 {
      #expect(try bench.write(cluster, version: UInt32(cluster)) == .none)
      #expect(bench.host(ofCluster: cluster) != freed)
    }
    #expect(try bench.flush() == .none)

    bench.holdsPunches = false
    #expect(try bench.flush() == .none)
    for cluster in UInt64(1)..<9 {
      let range = SteppedImage.range(ofCluster: cluster)
      let host = try #require(bench.host(ofCluster: cluster))
      let answer = try bench.machine.disk.run(.read(ByteRange(start: host, end: host + 4096)))
      #expect(answer == .bytes(GuestModel.bytes(range, version: UInt32(cluster))))
    }
    #expect(bench.heldPunchCount == 0)
  }

  @Test func `gives its cluster away afterwards`() throws {
    let bench = try SteppedImage()
    #expect(try bench.write(0) == .none)
    #expect(try bench.flush() == .none)
    let freed = bench.host(ofCluster: 0)
    _ = try bench.finish(.trim, SteppedImage.range(ofCluster: 0)) { _ in .done }
    #expect(try bench.flush() == .none)
    #expect(try bench.flush() == .none)
    #expect(try bench.write(1) == .none)
    #expect(bench.host(ofCluster: 1) == freed)
  }
}
