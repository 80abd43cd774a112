// SPDX-License-Identifier: Apache-2.0
//
// WRITE_ZEROES with NO_HOLE: zero clusters with a place of their own. Spec: proto.md,
// "NBD_CMD_FLAG_NO_HOLE"; qcow2.rst, "Standard Cluster Descriptor".

import BlockTypes
import Foundation
import NBDProtocol
import TestSupport
import Testing

@testable import DataPlane

private let cluster: UInt64 = 65_536

extension ImageBench {
  /// The place of a zero cluster that owns one.
  fileprivate func zeroPlace(of offset: UInt64) throws -> UInt64? {
    _ = try read(offset, 1)
    guard case .preallocated(let host, _) = image.findPlace(offset, offset + 1) else {
      return nil
    }
    return host
  }

  fileprivate func zero(
    _ offset: UInt64, _ length: UInt64, _ flags: CommandFlags = .noHole
  ) throws -> BlockErrno {
    try call(.writeZeroes, offset, length, flags: flags)
  }

  fileprivate func expectClean() throws {
    try settle()
    let verdict = try check()
    #expect(verdict.isClean, "\(verdict.text)")
  }
}

@Suite struct `WRITE_ZEROES with NO_HOLE` {
  private func overlayBench(_ options: String = "cluster_size=65536") throws -> ImageBench {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(options: options)
    return try ImageBench(folder, "disk")
  }

  @Test func `gives its clusters a place that reads as zeroes`() throws {
    let bench = try overlayBench()
    #expect(try bench.zero(0, 3 * cluster) == .none)
    #expect(try bench.read(0, Int(3 * cluster)) == zeroes(Int(3 * cluster)))
    let hosts = try (0..<3).map { try bench.zeroPlace(of: UInt64($0) * cluster) }
    #expect(Set(hosts.compactMap { $0 }).count == 3)
    try bench.expectClean()
    let map = try runQuietly("qemu-img", ["map", "--output=json", bench.folder.path("copy")]).text
    #expect(map.contains(#""length": 196608, "depth": 0"#), "\(map)")
    #expect(map.contains(#""zero": true, "data": false, "offset": "#), "\(map)")
  }

  @Test func `writes none of their bytes`() throws {
    let bench = try overlayBench()
    try bench.write([1], 0)
    try bench.settle()
    let before = bench.systemCallCount
    #expect(try bench.zero(cluster, 8 * cluster) == .none)
    #expect(bench.systemCallCount == before)
  }

  @Test func `takes all the space that later writes need`() throws {
    let folder = try TemporaryFolder()
    // Clusters with a place in the file but no space, as preallocated metadata leaves them.
    try folder.qemu("qemu-img create -q -f qcow2 -o preallocation=metadata @disk 64M")
    let bench = try ImageBench(folder, "disk")
    let before = try bench.allocatedByteCount()
    #expect(try bench.zero(0, 64 << 20) == .none)
    let after = try bench.allocatedByteCount()
    #expect(after >= before + (63 << 20))
    try bench.write(pattern(8 << 20), 1 << 20)
    try bench.settle()
    #expect(try bench.allocatedByteCount() < after + (1 << 20))
    #expect(try bench.read(1 << 20, 8 << 20) == pattern(8 << 20))
    try bench.expectClean()
  }

  @Test func `leaves clusters that have a place where they are`() throws {
    let bench = try overlayBench()
    try bench.write(pattern(Int(2 * cluster), seed: 1), cluster)
    try bench.settle()
    let host = try #require(try bench.host(of: cluster))
    #expect(try bench.zero(0, 4 * cluster) == .none)
    #expect(try bench.zeroPlace(of: cluster) == host)
    #expect(bench.releases.isEmpty)
    #expect(try bench.read(0, Int(4 * cluster)) == zeroes(Int(4 * cluster)))
    // What was there before does not show beside a later write.
    try bench.write([9], cluster + 100)
    #expect(try bench.host(of: cluster) == host)
    let expected = overlay(zeroes(Int(cluster)), at: 100, with: [9])
    #expect(try bench.read(cluster, Int(cluster)) == expected)
    try bench.expectClean()
  }

  @Test func `again, and again, changes no place`() throws {
    let bench = try overlayBench()
    #expect(try bench.zero(0, 4 * cluster) == .none)
    let host = try bench.zeroPlace(of: 0)
    #expect(try bench.zero(0, 4 * cluster) == .none)
    #expect(try bench.zeroPlace(of: 0) == host)
    #expect(bench.releases.isEmpty)
    try bench.expectClean()
  }

  @Test(arguments: ["snapshot", "compressed"])
  func `replaces a place that is not the cluster's own`(kind: String) throws {
    let folder = try TemporaryFolder()
    try folder.makeRaw("plain", byteCount: 1 << 20)
    if kind == "snapshot" {
      try folder.qemu("qemu-img convert -f raw -O qcow2 @plain @disk")
      try folder.qemu("qemu-img snapshot -c s @disk")
    } else {
      try folder.qemu("qemu-img convert -c -f raw -O qcow2 @plain @disk")
    }
    let bench = try ImageBench(folder, "disk")
    #expect(try bench.zero(cluster, 2 * cluster) == .none)
    #expect(try bench.zeroPlace(of: cluster) != nil)
    let expected = overlay(pattern(1 << 20), at: Int(cluster), with: zeroes(Int(2 * cluster)))
    #expect(try bench.read(0, 1 << 20) == expected)
    try bench.expectClean()
  }

  @Test(arguments: [(100, 200_000), (1, 1), (65_535, 65_538), (0, 1 << 20)])
  func `is exact to the byte`(place: (start: Int, count: Int)) throws {
    let bench = try overlayBench()
    #expect(try bench.zero(UInt64(place.start), UInt64(place.count)) == .none)
    let expected = overlay(pattern(1 << 20), at: place.start, with: zeroes(place.count))
    #expect(try bench.read(0, 1 << 20) == expected)
    try bench.expectClean()
  }

  @Test func `of the last, partial cluster of the disk takes that as well`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(baseByteCount: 100_352)
    let bench = try ImageBench(folder, "disk")
    #expect(try bench.zero(0, 100_352) == .none)
    #expect(try bench.zeroPlace(of: cluster) != nil)
    #expect(try bench.read(0, 100_352) == zeroes(100_352))
    try bench.expectClean()
  }

  @Test func `writes zeroes to a version 2 image, which has no other way`() throws {
    let bench = try overlayBench("compat=0.10")
    #expect(try bench.zero(0, 2 * cluster) == .none)
    #expect(try bench.host(of: cluster) != nil)
    #expect(try bench.read(0, Int(2 * cluster)) == zeroes(Int(2 * cluster)))
    #expect(try bench.zero(0, cluster, [.noHole, .fastZero]) == .notSupported)
    try bench.expectClean()
  }

  @Test func `and FAST_ZERO is fast where there are zero clusters`() throws {
    let bench = try overlayBench()
    #expect(try bench.zero(0, 2 * cluster, [.noHole, .fastZero]) == .none)
    #expect(try bench.zeroPlace(of: cluster) != nil)
  }

  @Test func `with FUA is durable when it is answered`() throws {
    let bench = try overlayBench()
    #expect(try bench.zero(0, 2 * cluster, [.noHole, .fua]) == .none)
    #expect(!bench.hasDirtyTables)
    #expect(!bench.hasUnsyncedWrites)
  }

  @Test func `of gigabytes lets others have their turns`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 @disk 4G")
    let bench = try ImageBench(folder, "disk")
    let zero = try bench.start(.writeZeroes, 0, 2 << 30, flags: .noHole)
    var turns = 0
    while bench.outcome(zero) == nil, turns < 100_000 {
      turns += 1
      #expect(try bench.write([UInt8(turns & 127)], 3 << 30) == .none)
    }
    #expect(turns > 20)
    #expect(try bench.zeroPlace(of: (2 << 30) - cluster) != nil)
    try bench.expectClean()
  }

  @Test func `makes writes to its clusters wait, and keeps what they wrote`() throws {
    let bench = try overlayBench()
    try bench.write([1], 0)
    let zero = try bench.start(.writeZeroes, cluster, 2 * cluster, flags: .noHole)
    let write = try bench.start(write: pattern(512, seed: 5), cluster + 1_024)
    let trim = try bench.start(.trim, 2 * cluster, cluster)
    let again = try bench.start(.writeZeroes, 2 * cluster, 2 * cluster, flags: .noHole)
    for slot in [zero, write, trim, again] { #expect(try bench.finish(slot) == .none) }
    let expected = overlay(zeroes(Int(3 * cluster)), at: 1_024, with: pattern(512, seed: 5))
    #expect(try bench.read(cluster, Int(3 * cluster)) == expected)
    try bench.expectClean()
  }

  @Test func `that fails gives back what it took`() throws {
    let bench = try overlayBench()
    try bench.write([1], 0)
    try bench.settle()
    let zero = try bench.start(.writeZeroes, cluster, 2 * cluster, flags: .noHole)
    let host = bench.image.requests.slots[zero].allocation.host
    #expect(try bench.count(ofClusterAt: host) == 1)
    bench.image.requests.slots[zero].error = .noSpace
    #expect(try bench.finish(zero) == .noSpace)
    try bench.until { bench.releases.isEmpty }
    #expect(try bench.count(ofClusterAt: host) == 0)
    #expect(
      try bench.read(cluster, Int(cluster))
        == Array(pattern(1 << 20)[Int(cluster)..<Int(2 * cluster)]))
    try bench.expectClean()
  }

  @Test func `leaves only leaks if the machine stops at any step of it`() throws {
    let bench = try overlayBench()
    try bench.write(pattern(Int(cluster), seed: 1), 0)
    try bench.flush()
    #expect(try bench.zero(0, 4 * cluster) == .none)
    try bench.write(pattern(512, seed: 2), cluster)
    let flush = try bench.start(.flush, 0, 0)
    for _ in 0..<20 {
      bench.step()
      let verdict = try bench.check()
      #expect(verdict.hasOnlyLeaks, "\(verdict.text)")
    }
    #expect(try bench.finish(flush) == .none)
    try bench.expectClean()
  }
}
