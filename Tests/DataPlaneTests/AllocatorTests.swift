// SPDX-License-Identifier: Apache-2.0
//
// Taking host clusters where the counts do not reach yet. Spec: qcow2.rst, "Host cluster
// management".

import BlockTypes
import Foundation
import TestSupport
import Testing

@testable import DataPlane

@Suite struct `Taking clusters that no block counts yet` {
  /// An image with clusters of 512 bytes, whose first block counts 128 KiB, and a file that goes
  /// on for 1 MiB of rubbish.
  private func slackBench() throws -> ImageBench {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 -o cluster_size=512 @disk 16M")
    let image = try FileHandle(forUpdating: URL(fileURLWithPath: folder.path("disk")))
    let end = try image.seekToEnd()
    try image.write(contentsOf: Data(repeating: 0xee, count: (1 << 20) - Int(end)))
    try image.close()
    return try ImageBench(folder, "disk")
  }

  @Test(arguments: 1...3)
  func `makes blocks in slack that was never zero`(step: Int) throws {
    let bench = try slackBench()
    for number in 0..<200 {
      #expect(try bench.write(pattern(700, seed: number), UInt64(number * step * 2_048)) == .none)
    }
    for number in 0..<200 {
      let start = UInt64(number * step * 2_048)
      #expect(try bench.read(start, 700) == pattern(700, seed: number))
      #expect(try bench.read(start + 700, 1_024) == zeroes(1_024), "no rubbish shows")
    }
    try bench.settle()
    let verdict = try bench.check()
    #expect(verdict.isClean, "\(verdict.text)")
  }

  /// Puts the search where `cluster` is, and takes a cluster on a disk queue without room.
  private func takeOnFullQueue(_ bench: ImageBench, at cluster: UInt64) throws -> Bool {
    while bench.image.disks.hasRoom { bench.image.disks.queueFlush(file: 0, tag: 0) }
    let slot = try bench.prepare(.write, 0, 512)
    bench.image.allocator.searchCluster = cluster
    guard case .waits = bench.image.takeClusters(slot, 1) else { return false }
    return !bench.image.queueWaiters.isEmpty
  }

  @Test func `waits for the disk queue before it makes a block in slack`() throws {
    let bench = try slackBench()
    let perBlock = bench.image.layers[0].geometry.refcountBlockEntryCount
    #expect(try takeOnFullQueue(bench, at: perBlock))
  }

  @Test func `waits for the disk queue before it moves the refcount table`() throws {
    let bench = try slackBench()
    let perBlock = bench.image.layers[0].geometry.refcountBlockEntryCount
    let blockCount = UInt64(bench.image.allocator.table.count)
    #expect(try takeOnFullQueue(bench, at: perBlock * blockCount))
  }

  @Test func `moves the refcount table when the file outgrows it, and stays clean`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 -o cluster_size=512 @disk 32M")
    let bench = try ImageBench(folder, "disk")
    let before = bench.image.allocator.tableOffset
    for number in 0..<40 {
      let data = pattern(1 << 18, seed: number)
      #expect(try bench.write(data, UInt64(number) << 18) == .none)
      if number % 8 == 7 {
        let verdict = try bench.check()
        #expect(verdict.hasOnlyLeaks, "\(verdict.text)")
      }
    }
    let after = bench.image.allocator.tableOffset
    #expect(after != before, "the test wants a move")
    try bench.settle()
    let verdict = try bench.check()
    #expect(verdict.isClean, "\(verdict.text)")
    #expect(try bench.read(39 << 18, 1 << 18) == pattern(1 << 18, seed: 39))
  }
}
