// SPDX-License-Identifier: Apache-2.0
//
// Too few descriptors, clients that do not read, and sudden death. Source: prlimit(1), signal(7);
// reference "security.md", "back-pressure".

import Foundation
import TestSupport
import Testing

private let cluster = FaultBench.clusterByteCount

/// Words that run the command behind them with no descriptors but 0 to 3, and `count` at most. The
/// process of the tests has others, which its children may inherit.
private func withDescriptors(_ count: Int) -> [String] {
  let script = """
    for path in /proc/self/fd/*; do
      number=${path##*/}
      [ "$number" -lt 4 ] || [ "$number" -gt 250 ] || eval "exec $number>&-"
    done
    exec "$@"
    """
  return ["bash", "-c", script, "bash", "prlimit", "--nofile=\(count):\(count)"]
}

@Suite(.enabled(if: Need.prlimit, "prlimit is not installed"))
struct `With few descriptors` {
  @Test func `clients beyond them wait, the others are served, and a place that is left is taken`()
    throws
  {
    let bench = try FaultBench()
    try bench.makeOverlay()
    try bench.serve(prefix: withDescriptors(24))
    var served: [WireClient] = []
    var waiting: [WireSocket] = []
    for _ in 0..<30 {
      do {
        served.append(try bench.client(deadlineSeconds: 0.3))
      } catch WireError.timedOut {
        waiting.append(try WireSocket(connectingTo: bench.socketPath))
        break
      }
    }
    #expect(served.count > 3)
    #expect(served.count < 24)
    #expect(waiting.count == 1)
    for client in served {
      client.socket.deadlineSeconds = 10
      #expect(try client.read(0, 512).data == Array(pattern(1 << 20)[..<512]))
    }
    #expect(try served[0].write(0, pattern(512, seed: 4)) == 0)
    #expect(try served[0].flush() == 0)
    for client in served.suffix(4) { try client.disconnect() }
    served.removeLast(4)
    let late = try bench.client()
    #expect(try late.read(0, 512).data == pattern(512, seed: 4))
    try late.disconnect()
    #expect(bench.daemon?.isAlive == true)
    #expect(bench.daemon?.stop() == 0)
    #expect(try bench.check() == 0)
  }

  @Test(arguments: 7...16)
  func `too few to start with is a message and a failure, not a trap`(count: Int) throws {
    let bench = try FaultBench()
    try bench.makeOverlay()
    do {
      let daemon = try bench.serve(prefix: withDescriptors(count))
      #expect(daemon.stop() == 0, "it is enough, then")
    } catch WireError.ended(let text) {
      #expect(text.contains("stratad: "), "\(text)")
      #expect(text.contains("Too many open files"), "\(text)")
    }
  }
}

@Suite struct `A client that does not read its replies` {
  @Test func `costs bounded memory and does not hold up others`() throws {
    let bench = try FaultBench()
    try bench.makeOverlay()
    try run("qemu-io", "-f", "qcow2", "-c", "write -P 9 0 32M", bench.folder.path("disk"))
    try bench.serve()
    let other = try bench.client()
    #expect(try other.read(0, 4_096).error == 0)
    let before = try bench.memoryKibibytes("VmRSS")
    let stalled = try bench.client()
    // 128 requests of 2 MiB: four times the share of one client.
    var bytes: [UInt8] = []
    for number in 0..<128 {
      bytes += WireClient.header(
        WireCommand.read.rawValue, cookie: UInt64(number), offset: UInt64(number % 15) << 21,
        length: 2 << 20)
    }
    var sent = 0
    let deadline = Deadline(seconds: 1.5)
    while sent < bytes.count, deadline.secondsLeft > 0 {
      sent += try stalled.socket.sendSome(bytes[sent...])
      usleep(1_000)
    }
    var slowest = 0.0
    for number in 0..<200 {
      let start = ContinuousClock.now
      #expect(try other.read(UInt64(number) * 4_096, 4_096).error == 0)
      slowest = max(slowest, (ContinuousClock.now - start) / .seconds(1))
    }
    #expect(slowest < 1, "\(slowest) s")
    let grown = try bench.memoryKibibytes("VmRSS") - before
    #expect(grown < 100 << 10, "\(grown) KiB more")
    stalled.socket.abandon()
    #expect(try other.write(0, pattern(512)) == 0)
    #expect(try other.flush() == 0)
    try other.disconnect()
    #expect(bench.daemon?.stop() == 0)
  }

  @Test func `costs no more when there are many of it, for they share`() throws {
    let bench = try FaultBench()
    try bench.makeOverlay()
    try run("qemu-io", "-f", "qcow2", "-c", "write -P 9 0 32M", bench.folder.path("disk"))
    try bench.serve()
    let other = try bench.client()
    let before = try bench.memoryKibibytes("VmRSS")
    // Each could hold 64 MiB if it were alone: 1.5 GiB in all.
    let stalled = try (0..<24).map { _ in try bench.client() }
    for client in stalled {
      for number in 0..<32 {
        _ = try client.send(.read, offset: UInt64(number % 15) << 21, length: 2 << 20)
      }
    }
    var peak = 0
    for number in 0..<400 {
      #expect(try other.read(UInt64(number) * 4_096, 4_096).error == 0)
      peak = max(peak, try bench.memoryKibibytes("VmRSS") - before)
      usleep(2_000)
    }
    #expect(peak > 256 << 10, "\(peak) KiB: too little was asked for")
    #expect(peak < 600 << 10, "\(peak) KiB more")
    for client in stalled { client.socket.abandon() }
    #expect(try other.read(0, 512).error == 0)
    #expect(bench.daemon?.stop() == 0)
  }

  // DESIGN.md 3.6: a stalled client stalls itself. What others trim must not pile up behind it.
  @Test func `does not keep the space that others give back`() throws {
    let bench = try FaultBench()
    try bench.makeOverlay()
    try bench.serve()
    let other = try bench.client()
    #expect(try other.write(0, pattern(4 << 20)) == 0)
    let stalled = try bench.client()
    for number in 0..<8 {
      try stalled.send(.read, offset: UInt64(number) << 18, length: 1 << 20)
    }
    usleep(300_000)
    #expect(try other.write(8 << 20, pattern(16 << 20)) == 0)
    #expect(try other.flush() == 0)
    let full = try allocatedByteCount(bench)
    #expect(try other.call(.trim, offset: 8 << 20, length: 16 << 20).error == 0)
    #expect(try other.flush() == 0)
    let deadline = Deadline(seconds: 3)
    var now = try allocatedByteCount(bench)
    while now > full - (16 << 20), deadline.secondsLeft > 0 {
      usleep(10_000)
      now = try allocatedByteCount(bench)
    }
    #expect(now <= full - (16 << 20), "\((full - now) >> 20) of 16 MiB came back")
    stalled.socket.abandon()
    try other.disconnect()
    #expect(bench.daemon?.stop() == 0)
    #expect(try bench.check() == 0)
  }

  private func allocatedByteCount(_ bench: FaultBench) throws -> Int {
    var status = stat()
    guard stat(bench.folder.path("disk"), &status) == 0 else {
      throw WireError.system("stat", errno: errno)
    }
    return Int(status.st_blocks) * 512
  }
}

@Suite struct `After SIGKILL` {
  @Test(arguments: ["native", "sync"])
  func `the next daemon serves within a second what was flushed`(engine: String) throws {
    let bench = try FaultBench()
    try bench.makeOverlay()
    for round in 0..<3 {
      let daemon = try bench.serve(["--aio", engine])
      let client = try bench.client()
      for number in 0..<round {
        let data = try client.read(UInt64(number * 3 * cluster), cluster).data
        #expect(data == pattern(cluster, seed: number), "round \(round), cluster \(number)")
      }
      #expect(try client.write(UInt64(round * 3 * cluster), pattern(cluster, seed: round)) == 0)
      #expect(try client.flush() == 0)
      // Not flushed, and in the middle of its life.
      for number in 0..<50 {
        try client.send(
          .write, offset: UInt64(32 << 20 + number * 100_000), length: 50_000,
          payload: pattern(50_000))
      }
      kill(daemon.processID, SIGKILL)
      #expect(daemon.stop() == nil)
      #expect(try bench.hasOnlyLeaks())
    }
    let start = ContinuousClock.now
    try bench.serve(["--aio", engine])
    let client = try bench.client()
    #expect(try client.read(0, cluster).data == pattern(cluster, seed: 0))
    #expect((ContinuousClock.now - start) / .seconds(1) < 1)
    try client.disconnect()
    #expect(bench.daemon?.stop() == 0)
    #expect(try bench.hasOnlyLeaks())
  }
}
