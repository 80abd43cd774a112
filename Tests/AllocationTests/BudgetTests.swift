// SPDX-License-Identifier: Apache-2.0
//
// The hot path does not allocate. Source: tools/STYLE.md, "Hot path".

import TestSupport
import Testing

private let hasReleaseBuild = CountedDaemon.daemonPath != nil

@Suite(
  .serialized,
  .enabled(if: hasReleaseBuild, "no release build of stratad: build it, or set STRATAD"))
struct `A request of 4 KiB allocates nothing` {
  /// Allocations of 100,000 requests: those of 110,000 without those of 10,000.
  private func measure(
    _ command: WireCommand, structured: Bool, extended: Bool = false, _ arguments: String...
  ) throws -> (count: Int, traces: String) {
    let daemon = try CountedDaemon(arguments)
    let client = try daemon.client(structured: structured, extended: extended)
    try client.run(command, 10_000)  // pools and tables grow to their working size
    let start = daemon.count
    try client.run(command, 10_000)
    let middle = daemon.count
    try client.run(command, 110_000)
    let end = daemon.count
    #expect(start > 100, "the library counts: no program starts without allocations")
    let count = (end - middle) - (middle - start)
    guard count >= 1_000 else { return (count, "") }
    daemon.startTracing()
    try client.run(command, 2_000)
    return (count, try daemon.traces())
  }

  @Test func `when it reads, with simple replies`() throws {
    let result = try measure(.read, structured: false)
    #expect(result.count < 1_000, "\(result.traces)")
  }

  @Test func `when it reads, with structured replies`() throws {
    let result = try measure(.read, structured: true)
    #expect(result.count < 1_000, "\(result.traces)")
  }

  @Test func `when it reads or overwrites, with extended headers`() throws {
    let reads = try measure(.read, structured: false, extended: true)
    #expect(reads.count < 1_000, "\(reads.traces)")
    let writes = try measure(.write, structured: false, extended: true)
    #expect(writes.count < 1_000, "\(writes.traces)")
  }

  @Test func `when it overwrites`() throws {
    let result = try measure(.write, structured: true)
    #expect(result.count < 1_000, "\(result.traces)")
  }

  @Test func `when it overwrites, and dirty bitmaps record it`() throws {
    let result = try measure(
      .write, structured: true, "--bitmap", "a", "--bitmap", "fine:512", "--bitmap", "b:1M")
    #expect(result.count < 1_000, "\(result.traces)")
  }

  @Test func `when it reads or overwrites by plain calls`() throws {
    let reads = try measure(.read, structured: true, "--aio", "sync")
    #expect(reads.count < 1_000, "\(reads.traces)")
  }
}
