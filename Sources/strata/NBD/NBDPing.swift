// SPDX-License-Identifier: Apache-2.0
//
// `strata nbd ping`: how long an export takes to answer.

import ArgumentParser
import ImageTools
import LinuxIO
import NBDClient

struct NBDPing: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "ping", abstract: "Measure round trips to an export.",
    discussion: """
      Reads the first bytes of the export, one request after the other. An empty export is asked \
      to flush instead.
      """)

  @Option(help: "How often to ask.")
  var count = 1000

  @Option(help: ArgumentHelp("Bytes of each read; 512 or one block.", valueName: "size"))
  var bytes: String?

  @Flag(help: "Print JSON.")
  var json = false

  @OptionGroup var connect: ConnectOptions

  @Argument(help: "The export.")
  var uri: String

  func validate() throws {
    guard (1...1_000_000).contains(count) else {
      throw ValidationError("--count is a number from 1 to 1000000.")
    }
  }

  func run() throws {
    let uri = try parseURI(uri)
    let wanted = try bytes.map { try parseSize($0, of: "--bytes") }
    let options = connect.options(contexts: .none)
    let (count, json) = (count, json)
    try runToEnd(about: uri) {
      let connection = try await NBDConnection.connect(uri, options)
      let block = UInt64(connection.export.minimumBlockByteCount)
      let byteCount = wanted ?? min(max(512, block), connection.byteCount)
      guard byteCount <= connection.byteCount else {
        throw CopyFault("\(uri): the export has only \(connection.byteCount) bytes")
      }
      var times: [UInt64] = []
      for _ in 0..<count {
        let start = MonotonicClock.nanoseconds
        if byteCount > 0 {
          _ = try await connection.read(at: 0, byteCount: Int(byteCount))
        } else {
          try await connection.flush()
        }
        times.append(MonotonicClock.nanoseconds - start)
      }
      try await connection.disconnect()
      let trips = RoundTrips(times)
      print(json ? trips.json : trips.human)
    }
  }
}

/// Round trips, sorted.
struct RoundTrips {
  private let nanoseconds: [UInt64]

  /// Takes at least one.
  init(_ nanoseconds: [UInt64]) {
    precondition(!nanoseconds.isEmpty, "nothing was measured")
    self.nanoseconds = nanoseconds.sorted()
  }

  /// Microseconds that the given share (0...100) of the round trips did not exceed.
  private func percentile(_ percent: Int) -> UInt64 {
    let rank = (nanoseconds.count * percent + 99) / 100
    return nanoseconds[max(rank, 1) - 1] / 1_000
  }

  var human: String {
    "\(nanoseconds.count) round trips: min \(percentile(0)) µs, median \(percentile(50)) µs,"
      + " p99 \(percentile(99)) µs, max \(percentile(100)) µs"
  }

  var json: String {
    var writer = JSONWriter(layout: .oneLine)
    writer.beginObject()
    writer.field("count", nanoseconds.count)
    writer.field("min_us", percentile(0))
    writer.field("median_us", percentile(50))
    writer.field("p99_us", percentile(99))
    writer.field("max_us", percentile(100))
    writer.end()
    return writer.finish()
  }
}
