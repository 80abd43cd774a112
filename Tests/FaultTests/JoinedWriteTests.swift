// SPDX-License-Identifier: Apache-2.0
//
// Writes that join another first write to their cluster, on a disk that fails at one call and with
// clients that leave; and zero clusters for which the disk takes no space. Source: strace(1)
// "Tampering"; DataPlane "Write+Joining.swift", "Zero+Provision.swift".

import Foundation
import TestSupport
import Testing

private let cluster = FaultBench.clusterByteCount
private let block = 4_096

@Suite struct `Neighbours in a new cluster` {
  /// The headers and payloads of 16 neighbours, as one piece.
  private func neighbours(_ client: WireClient, at start: Int, seed: Int) -> (
    cookies: [UInt64], bytes: [UInt8]
  ) {
    var cookies: [UInt64] = []
    var bytes: [UInt8] = []
    for number in 0..<16 {
      let request = client.prepare(
        WireCommand.write.rawValue, offset: UInt64(start + number * block),
        length: UInt32(block), payload: pattern(block, seed: seed + number))
      cookies.append(request.cookie)
      bytes += request.bytes
    }
    return (cookies, bytes)
  }

  @Test(
    .enabled(if: Need.strace && Need.root, "strace is not installed, or this is not root"),
    arguments: ["EIO", "ENOSPC"], ["pwritev2", "io_submit"])
  func `fail one by one when the disk fails once`(error: String, call: String) throws {
    let bench = try FaultBench()
    try bench.makeOverlay()
    try bench.serve(
      ["--aio", call == "io_submit" ? "native" : "sync"],
      // Behind the reads of the tables, which fail everybody who waits for them.
      prefix: bench.failing(call, error, when: call == "io_submit" ? "5" : "2"))
    let client = try bench.client()
    var isWritten: [Int: Bool] = [:]
    for round in 0..<4 {
      let start = (32 + round) * cluster
      let (cookies, bytes) = neighbours(client, at: start, seed: round)
      try client.socket.send(bytes)
      for (number, cookie) in cookies.enumerated() {
        isWritten[round * 16 + number] = try client.wait(cookie).error == 0
      }
    }
    #expect(isWritten.values.filter { !$0 }.count == 1, "one call failed, and one request")
    for (number, isWritten) in isWritten where isWritten {
      let data = try client.read(UInt64(32 * cluster + number * block), block).data
      #expect(data == pattern(block, seed: number / 16 + number % 16), "block \(number)")
    }
    #expect(try client.flush() == 0)
    try client.disconnect()
    #expect(bench.daemon?.stop() == 0)
    #expect(try bench.check() == 0)
  }

  @Test(arguments: ["native", "sync"])
  func `of a client that leaves take nothing from another one's`(engine: String) throws {
    let bench = try FaultBench()
    try bench.makeOverlay()
    try bench.serve(["--aio", engine])
    let staying = try bench.client()
    for round in 0..<20 {
      let leaving = try bench.client()
      let start = (32 + 2 * round) * cluster
      // The one writes the first half of two clusters, the other the second half of both.
      var theirs: [UInt8] = []
      var mine: [UInt64] = []
      for number in 0..<8 {
        theirs +=
          leaving.prepare(
            WireCommand.write.rawValue, offset: UInt64(start + number * block),
            length: UInt32(block), payload: pattern(block, seed: 99)
          ).bytes
      }
      try leaving.socket.send(theirs)
      for number in 8..<16 {
        mine.append(
          try staying.send(
            .write, offset: UInt64(start + number * block), length: UInt32(block),
            payload: pattern(block, seed: number)))
      }
      leaving.socket.abandon()
      for cookie in mine { #expect(try staying.wait(cookie).error == 0) }
      for number in 8..<16 {
        let data = try staying.read(UInt64(start + number * block), block).data
        #expect(data == pattern(block, seed: number))
      }
    }
    try staying.disconnect()
    #expect(bench.daemon?.stop() == 0)
    #expect(try bench.check() == 0)
  }
}

@Suite(.enabled(if: Need.strace && Need.root, "strace is not installed, or this is not root"))
struct `WRITE_ZEROES with NO_HOLE on a disk` {
  /// A daemon whose calls of fallocate fail from the `when`-th on, and a client of it.
  private func failing(
    _ error: String, when: String
  ) throws -> (bench: FaultBench, client: WireClient) {
    let bench = try FaultBench()
    try bench.makeOverlay()
    try bench.serve(prefix: bench.failing("fallocate", error, when: when))
    return (bench, try bench.client())
  }

  @Test func `that takes no space ahead writes the zeroes`() throws {
    let (bench, client) = try failing("EOPNOTSUPP", when: "1+")
    let length = UInt32(5 * cluster)
    #expect(
      try client.call(
        .writeZeroes, flags: WireFlag.noHole | WireFlag.fastZero, offset: 0, length: length
      ).error == WireErrno.notSupported)
    #expect(
      try client.call(.writeZeroes, flags: WireFlag.noHole, offset: 0, length: length).error == 0)
    #expect(try client.read(0, 5 * cluster).data == [UInt8](repeating: 0, count: 5 * cluster))
    #expect(try client.flush() == 0)
    try client.disconnect()
    #expect(bench.daemon?.stop() == 0)
    #expect(try bench.check() == 0)
  }

  /// strace counts the calls of each thread by itself, so which request meets the failure varies.
  @Test(arguments: 1...3)
  func `that is full fails, keeps what was there, and goes on`(when: Int) throws {
    let (bench, client) = try failing("ENOSPC", when: "\(when)..\(when + 1)")
    var errors: [UInt32] = []
    let whole = pattern(1 << 20)
    for number in 0..<12 {
      let start = number % 3 * 5 * cluster
      let before = try client.read(UInt64(start), 5 * cluster).data
      let error = try client.call(
        .writeZeroes, flags: WireFlag.noHole, offset: UInt64(start), length: UInt32(5 * cluster)
      ).error
      errors.append(error)
      let after = try client.read(UInt64(start), 5 * cluster).data
      #expect(after == (error == 0 ? [UInt8](repeating: 0, count: 5 * cluster) : before.bytes))
    }
    #expect(Set(errors) == [0, WireErrno.noSpace], "\(errors)")
    #expect(errors.last == 0)
    #expect(try client.read(UInt64(15 * cluster), cluster).data == Array(whole[(15 * cluster)...]))
    #expect(try client.flush() == 0)
    try client.disconnect()
    #expect(bench.daemon?.stop() == 0)
    #expect(try bench.check() == 0)
  }
}
