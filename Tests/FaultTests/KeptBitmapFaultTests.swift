// SPDX-License-Identifier: Apache-2.0
//
// Bitmaps that the image keeps, on a disk that fails at one call or from one call on, and a daemon
// that is killed then. Source: decision 0024, "When something fails".

import Foundation
import TestSupport
import Testing

private let diskByteCount = 128 << 20
private let regionByteCount = 16 << 20
private let granularity = 65_536

/// What a look at the bitmap said.
private struct Bitmap {
  var isDirty: [Bool] = []

  /// The bitmap as the next daemon shows it; nil when it says that nobody may use it.
  init?(of bench: FaultBench) throws {
    let next = try bench.serve(["--read-only"])
    defer { next.stop() }
    let client = try WireClient.entered(
      path: bench.socketPath, contexts: ["qemu:dirty-bitmap:b"])
    defer { try? client.disconnect() }
    guard let id = client.contextIDs["qemu:dirty-bitmap:b"] else { return nil }
    let status = try client.call(.blockStatus, offset: 0, length: UInt32(diskByteCount))
    for extent in status.extents[id] ?? [] {
      isDirty += Array(repeating: extent.flags == 1, count: Int(extent.length) / granularity)
    }
  }
}

/// How many times a call fails.
private enum Times: String, CaseIterable { case once, always }

@Suite(.enabled(if: Need.strace && Need.root, "strace is not installed, or this is not root"))
struct `A bitmap that the image keeps, on a disk that fails` {
  @Test(arguments: ["pwritev2", "pwrite64", "fdatasync", "preadv"], Times.allCases)
  fileprivate func `is wider than the truth or unusable, and never narrower`(
    call: String, times: Times
  ) throws {
    for number in 1...14 {
      let bench = try FaultBench()
      let disk = bench.folder.path("disk")
      try run("qemu-img", "create", "-q", "-f", "qcow2", disk, "\(diskByteCount)")
      // Overwriting needs no room and no table: the disk takes it whatever became of the bitmap.
      try run("qemu-io", "-c", "write -P 1 0 \(diskByteCount / 2)", disk)
      try run("qemu-img", "bitmap", "--add", "-g", "\(granularity)", disk, "b")
      let daemon = try bench.serve(
        ["--aio", "sync"],
        prefix: bench.failing(call, "EIO", when: "\(number)" + (times == .always ? "+" : "")))
      let client = try bench.client()
      var written: [Int] = []
      for attempt in 0..<12 {
        let offset = (attempt % 4) * regionByteCount + attempt * granularity
        if try client.write(UInt64(offset), pattern(512, seed: attempt)) == 0 {
          written.append(offset / granularity)
        }
      }
      kill(daemon.processID, SIGKILL)
      daemon.stop()
      #expect(try bench.hasOnlyLeaks())
      let info = try run("qemu-img", "info", "--output=json", disk)
      let isValidForQEMU = info.contains("\"name\": \"b\"") && !info.contains("in-use")
      let bitmap = try Bitmap(of: bench)
      #expect(bitmap != nil || !isValidForQEMU, "QEMU believes what we do not")
      guard let bitmap else { continue }
      #expect(bitmap.isDirty.count == diskByteCount / granularity)
      for block in written where !bitmap.isDirty[block] {
        Issue.record("call \(number): block \(block) changed and is clean")
      }
    }
  }
}
