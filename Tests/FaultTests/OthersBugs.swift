// SPDX-License-Identifier: Apache-2.0
//
// Bugs that other writers of qcow2 had, on disks that fail and daemons that die. The numbers are
// the rows of reference/users.md 1.3; Tests/DataPlaneTests/OthersBugs.swift has the others.

import Foundation
import TestSupport
import Testing

private let cluster = FaultBench.clusterByteCount

@Suite(.enabled(if: Need.strace && Need.root, "strace is not installed, or this is not root"))
struct `Bugs of other qcow2 writers, on failing disks` {
  /// An image that is exactly as long as it needs to be, all of it shared with a snapshot.
  private func sharedBench() throws -> FaultBench {
    let bench = try FaultBench()
    let disk = bench.folder.path("disk")
    try run("qemu-img", "create", "-q", "-f", "qcow2", disk, "8M")
    try run("qemu-io", "-c", "write -P 1 0 1M", disk)
    try run("qemu-img", "snapshot", "-c", "old", disk)
    return bench
  }

  /// Writes that have to copy a table and clusters, while the file cannot grow at first.
  @Test func `2: a table that cannot be copied is not given up`() throws {
    let bench = try sharedBench()
    try bench.serve(["--aio", "sync"], prefix: bench.failing("fallocate", "ENOSPC", when: "1..4"))
    let client = try bench.client()
    var written: [Int] = []
    for number in 0..<12 {
      let error = try client.write(UInt64(number * cluster), pattern(cluster, seed: number))
      #expect([0, WireErrno.noSpace].contains(error))
      if error == 0 { written.append(number) }
    }
    #expect(!written.isEmpty && written.count < 12, "\(written)")
    #expect(try client.flush() == 0)
    for number in 0..<16 {
      let expected =
        written.contains(number)
        ? pattern(cluster, seed: number) : [UInt8](repeating: 1, count: cluster)
      #expect(try client.read(UInt64(number * cluster), cluster).data == expected)
    }
    try client.disconnect()
    #expect(bench.daemon?.stop() == 0)
    #expect(try bench.hasOnlyLeaks())
    let disk = bench.folder.path("disk")
    try run("qemu-img", "snapshot", "-a", "old", disk)
    let text = try runTool("qemu-io", ["-c", "read -P 1 0 1M", disk])
    #expect(!text.contains("failed"))
  }

  @Test func `8: one client's end marks nothing clean that another one goes on to write`() throws {
    let bench = try FaultBench()
    let disk = bench.folder.path("disk")
    try run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", disk, "8M")
    try bench.serve(["--aio", "sync"])
    let first = try bench.client()
    let second = try bench.client()
    #expect(try first.write(0, pattern(cluster)) == 0)
    try first.disconnect()
    #expect(try second.write(UInt64(cluster), pattern(cluster, seed: 1)) == 0)
    #expect(try second.flush() == 0)
    #expect(try second.write(UInt64(2 * cluster), pattern(cluster, seed: 2)) == 0)
    let processID = try #require(bench.daemon).processID
    kill(processID, SIGKILL)
    bench.daemon?.stop()
    // Nothing is repaired here: marked or not, counts are never too low.
    #expect(try bench.hasOnlyLeaks())
  }

  @Test func `12: an error of a hole or of zeroes is told where it matters`() throws {
    let bench = try FaultBench()
    try bench.makeOverlay()
    try bench.serve(["--aio", "sync"], prefix: bench.failing("pwritev2", "EIO", when: "1+"))
    let client = try bench.client()
    // Parts of a cluster over base data: zeroes have to be written.
    let outcome = try client.call(.writeZeroes, offset: 100, length: 1_000)
    #expect(outcome.error == WireErrno.io)
    #expect(try client.read(0, 4_096).data == Array(pattern(1 << 20)[..<4_096]))
    // A trim is advice; its mapping is not, and the flush that should keep it tells.
    #expect(try client.call(.trim, offset: UInt64(cluster), length: UInt32(cluster)).error == 0)
    #expect(try client.flush() == WireErrno.io)
  }

  @Test func `13: what is in memory only is in the file when the daemon has stopped`() throws {
    let bench = try FaultBench()
    try bench.makeOverlay()
    try bench.serve()
    let client = try bench.client()
    for number in 0..<20 {
      #expect(try client.write(UInt64(number * 3 * cluster), pattern(cluster, seed: number)) == 0)
    }
    #expect(bench.daemon?.stop() == 0)
    #expect(try bench.check() == 0)
    try bench.serve()
    let again = try bench.client()
    for number in 0..<20 {
      let data = try again.read(UInt64(number * 3 * cluster), cluster).data
      #expect(data == pattern(cluster, seed: number))
    }
    #expect(bench.daemon?.stop() == 0)
  }
}
