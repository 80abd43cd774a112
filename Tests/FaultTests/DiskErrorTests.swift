// SPDX-License-Identifier: Apache-2.0
//
// A disk that fails at one call, made so by strace. Source: strace(1) "Tampering"; reference
// "reliability.md", "fsync failure": a failed synchronisation is told, and told again.

import Foundation
import TestSupport
import Testing

private let cluster = FaultBench.clusterByteCount

@Suite(.enabled(if: Need.strace && Need.root, "strace is not installed, or this is not root"))
struct `A disk error` {
  /// A daemon with plain calls of which one fails, and a client of it.
  private func failing(
    _ call: String, _ error: String = "EIO", when: String
  ) throws -> (bench: FaultBench, client: WireClient) {
    let bench = try FaultBench()
    try bench.makeOverlay()
    try bench.serve(["--aio", "sync"], prefix: bench.failing(call, error, when: when))
    return (bench, try bench.client())
  }

  /// A FLUSH of an overlay with one new cluster synchronises twice: tables, then what names them.
  @Test(arguments: 1...2)
  func `of a synchronisation fails the flush and every later one`(when: Int) throws {
    let (bench, client) = try failing("fdatasync", when: "\(when)")
    #expect(try client.write(0, pattern(cluster, seed: 1)) == 0)
    #expect(try client.flush() == WireErrno.io)
    #expect(try client.flush() == WireErrno.io, "what was lost stays lost")
    #expect(try client.write(4_096, pattern(512, seed: 2)) == 0, "the connection lives")
    #expect(try client.flush() == WireErrno.io)
    let other = try bench.client()
    #expect(try other.flush() == WireErrno.io, "told to every client")
    #expect(try client.read(0, 4_096).data == Array(pattern(cluster, seed: 1)[..<4_096]))
    try client.disconnect()
    try other.disconnect()
    let daemon = try #require(bench.daemon)
    #expect(daemon.stop() == 1)
    #expect(daemon.errorText.contains("writes were lost"), "\(daemon.errorText)")
    #expect(try bench.hasOnlyLeaks())
  }

  @Test func `of a synchronisation fails a write with FUA`() throws {
    let (bench, client) = try failing("fdatasync", when: "1")
    #expect(try client.write(0, pattern(512), flags: WireFlag.fua) == WireErrno.io)
    try client.disconnect()
    #expect(bench.daemon?.stop() == 1)
    #expect(try bench.hasOnlyLeaks())
  }

  /// What the kernel tells a durable write of the loss of others it does not tell the next flush.
  @Test(arguments: [("EIO", "1", true), ("ENOSPC", "1", true), ("ENOSPC", "1+", false)])
  func `of a durable write in place fails every later flush, unless it is a full disk`(
    error: String, when: String, isLoss: Bool
  ) throws {
    let bench = try FaultBench()
    try run("qemu-img", "create", "-q", "-f", "raw", bench.folder.path("disk"), "1M")
    try bench.serve(
      ["--aio", "sync"], format: "raw", prefix: bench.failing("pwritev2", error, when: when))
    let client = try bench.client()
    let answer = try client.write(0, pattern(512), flags: WireFlag.fua)
    #expect(answer == (error == "EIO" ? WireErrno.io : WireErrno.noSpace))
    #expect(try client.flush() == (isLoss ? WireErrno.io : 0))
    #expect(try client.flush() == (isLoss ? WireErrno.io : 0))
    try client.disconnect()
    #expect(bench.daemon?.stop() == (isLoss ? 1 : 0))
  }

  /// Two of the calls write the header, which says that the bitmap is in use.
  @Test(arguments: 1...8)
  func `of a write to the header is taken back, and the next flush succeeds`(when: Int) throws {
    let bench = try FaultBench()
    let disk = bench.folder.path("disk")
    try run("qemu-img", "create", "-q", "-f", "qcow2", disk, "1M")
    try run("qemu-img", "bitmap", "--add", disk, "b")
    try bench.serve(["--aio", "sync"], prefix: bench.failing("pwritev2", "EIO", when: "\(when)"))
    let client = try bench.client()
    let error = try client.write(0, pattern(512))
    #expect([0, WireErrno.io].contains(error))
    _ = try client.flush()
    #expect(try client.write(0, pattern(512)) == 0)
    #expect(try client.flush() == 0)
    try client.disconnect()
    let daemon = try #require(bench.daemon)
    #expect(daemon.stop() == 0, "\(daemon.errorText)")
    #expect(try bench.hasOnlyLeaks())
  }

  /// The calls are: the cluster of write 1, that of write 2, then the tables of the flush.
  @Test(arguments: 1...5)
  func `of a write fails what it belongs to, and the image stays whole`(when: Int) throws {
    let (bench, client) = try failing("pwritev2", when: "\(when)")
    var isWritten: [Int: Bool] = [:]
    for number in 0..<2 {
      let error = try client.write(UInt64(number * cluster), pattern(cluster, seed: number))
      #expect([0, WireErrno.io].contains(error))
      isWritten[number] = error == 0
    }
    let first = try client.flush()
    let second = try client.flush()
    #expect([0, WireErrno.io].contains(first))
    #expect(second == 0, "a failed write of a table is tried again")
    #expect(try client.write(UInt64(3 * cluster), pattern(cluster, seed: 3)) == 0)
    #expect(try client.flush() == 0)
    for number in 0..<2 {
      let expected = isWritten[number] == true ? number : 0
      let data = try client.read(UInt64(number * cluster), cluster).data
      let base = Array(pattern(1 << 20)[number * cluster..<(number + 1) * cluster])
      #expect(data == (isWritten[number] == true ? pattern(cluster, seed: expected) : base))
    }
    try client.disconnect()
    let daemon = try #require(bench.daemon)
    #expect(daemon.stop() == 0, "\(daemon.errorText)")
    #expect(try bench.check() == 0)
  }

  /// Each further read of the data is one call: tables are in memory by then.
  @Test(arguments: 1...4)
  func `of a read fails that request only`(when: Int) throws {
    let (bench, client) = try failing("preadv", when: "\(when)")
    var errors: [UInt32] = []
    for _ in 0..<6 { errors.append(try client.read(0, 4_096).error) }
    #expect(errors.filter { $0 == WireErrno.io }.count == 1)
    #expect(errors.filter { $0 == 0 }.count == 5)
    #expect(try client.read(0, 4_096).data == Array(pattern(1 << 20)[..<4_096]))
    try client.disconnect()
    #expect(bench.daemon?.stop() == 0)
  }

  /// The first cluster lies in the overlay, those behind it in the base: two calls for each READ.
  @Test(arguments: [false, true])
  func `in the middle of a READ is told with its place, behind what was read before it`(
    _ extended: Bool
  ) throws {
    // proto.md "NBD_REPLY_TYPE_ERROR_OFFSET"
    var places: Set<UInt64> = []
    for when in 1...8 {
      let bench = try FaultBench()
      try bench.makeOverlay()
      try run("qemu-io", "-f", "qcow2", "-c", "write -P 9 0 64k", bench.folder.path("disk"))
      try bench.serve(["--aio", "sync"], prefix: bench.failing("preadv", "EIO", when: "\(when)"))
      let client = try WireClient.entered(path: bench.socketPath, extended: extended)
      let base = pattern(1 << 20)
      let expected = [UInt8](repeating: 9, count: cluster) + base[cluster..<3 * cluster]
      for flags in [0, WireFlag.dontFragment, 0, WireFlag.dontFragment, 0, 0] {
        let outcome = try client.read(512, 3 * cluster - 512, flags: flags)
        guard outcome.error != 0 else {
          #expect(outcome.data == Array(expected[512...]))
          continue
        }
        #expect(outcome.error == WireErrno.io)
        #expect(outcome.errorOffsets.count == 1)
        let place = try #require(outcome.errorOffsets.first)
        places.insert(place)
        let count = Int(place) - 512
        #expect(outcome.coveredByteCount == UInt64(count))
        #expect(outcome.data[0..<count] == Array(expected[512..<Int(place)]))
      }
      try client.disconnect()
      #expect(bench.daemon?.stop() == 0)
    }
    #expect(places == [512, UInt64(cluster)])
  }

  @Test(arguments: 1...3)
  func `of every read of the tables fails requests and ends nothing`(round: Int) throws {
    let bench = try FaultBench()
    try bench.makeOverlay()
    try run("qemu-io", "-f", "qcow2", "-c", "write -P 9 0 1M", bench.folder.path("disk"))
    try bench.serve(
      ["--aio", "sync"], prefix: bench.failing("preadv", "EIO", when: "\(round)..\(round + 2)"))
    let client = try bench.client()
    for number in 0..<8 {
      let write = try client.write(UInt64(number * 5_000), pattern(100))
      let read = try client.read(UInt64(number * 5_000), 100).error
      #expect([0, WireErrno.io].contains(write))
      #expect([0, WireErrno.io].contains(read))
    }
    #expect(try client.read(900_000, 4).data == [9, 9, 9, 9])
    try client.disconnect()
    #expect(bench.daemon?.stop() == 0)
    #expect(try bench.check() == 0)
  }

  @Test func `of a hole leaves the cluster free all the same`() throws {
    let (bench, client) = try failing("fallocate", "EOPNOTSUPP", when: "1+")
    #expect(try client.write(0, pattern(cluster, seed: 1)) == 0)
    #expect(try client.flush() == 0)
    #expect(try client.call(.trim, offset: 0, length: UInt32(cluster)).error == 0)
    #expect(try client.flush() == 0)
    #expect(try client.read(0, cluster).data == [UInt8](repeating: 0, count: cluster))
    // Used again without having been punched out: the bytes of before must not show.
    #expect(try client.write(UInt64(20 * cluster + 9), [7]) == 0)
    let data = try client.read(UInt64(20 * cluster), cluster).data
    var expected = [UInt8](repeating: 0, count: cluster)
    expected[9] = 7
    #expect(data == expected)
    try client.disconnect()
    #expect(bench.daemon?.stop() == 0)
    #expect(try bench.check() == 0)
  }
}
