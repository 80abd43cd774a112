// SPDX-License-Identifier: Apache-2.0
//
// Dirty bitmaps on a disk that fails: what has changed is dirty, whatever was answered.
// Source: decision 0018.

import Foundation
import TestSupport
import Testing

private let byteCount = 4 << 20
private let granularity = 4_096

@Suite(.enabled(if: Need.strace && Need.root, "strace is not installed, or this is not root"))
struct `A dirty bitmap on a disk that fails` {
  @Test(arguments: ["pwritev2", "fallocate"], ["2+3", "1+2"])
  func `has every block that changed`(call: String, when: String) throws {
    let bench = try FaultBench()
    try bench.makeOverlay(byteCount: byteCount)
    try bench.serve(
      ["--aio", "sync", "--bitmap", "b0:\(granularity)"],
      prefix: bench.failing(call, "EIO", when: when))
    let client = try WireClient.entered(
      path: bench.socketPath, contexts: ["qemu:dirty-bitmap:b0"])
    let before = try client.read(0, byteCount).data.bytes
    var state = UInt64(call.count * 7 + when.count)
    func random(_ limit: Int) -> Int {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return Int(state >> 33) % limit
    }
    var failedCount = 0
    for number in 0..<40 {
      let offset = random(byteCount - 1)
      let length = min(1 + random(150_000), byteCount - offset)
      let error: UInt32
      switch random(4) {
      case 0:
        error = try client.call(
          .trim, offset: UInt64(offset), length: UInt32(length)
        ).error
      case 1:
        error = try client.call(
          .writeZeroes, flags: number % 2 == 0 ? WireFlag.noHole : 0, offset: UInt64(offset),
          length: UInt32(length)
        ).error
      default:
        error = try client.write(UInt64(offset), pattern(length, seed: number))
      }
      if error != 0 { failedCount += 1 }
    }
    #expect(call == "fallocate" || failedCount > 0, "no call failed")
    let after = try client.read(0, byteCount).data.bytes
    let status = try client.call(.blockStatus, offset: 0, length: UInt32(byteCount))
    let id = try #require(client.contextIDs["qemu:dirty-bitmap:b0"])
    var isDirty: [Bool] = []
    for extent in status.extents[id] ?? [] {
      isDirty += Array(repeating: extent.flags == 1, count: Int(extent.length) / granularity)
    }
    #expect(isDirty.count == byteCount / granularity)
    for block in isDirty.indices where !isDirty[block] {
      let range = block * granularity..<(block + 1) * granularity
      #expect(before[range] == after[range], "block \(block) changed and is clean")
    }
    try client.disconnect()
    bench.daemon?.stop()
  }
}
