// SPDX-License-Identifier: Apache-2.0
//
// Bytes of the disk that a check borrows: saved before, given back after.
// This file performs socket I/O.

import LinuxIO

extension LintServer {
  /// A part of the disk that may be written to.
  struct Area {
    let offset: UInt64
    let byteCount: Int
    /// What was there.
    let saved: [UInt8]

    var end: UInt64 { offset + UInt64(byteCount) }
  }

  /// Bytes that are saved and given back with one request.
  private static let pieceByteCount = 1 << 20

  /// Calls `body` with `byteCount` bytes in the middle of the disk that it may overwrite.
  func withArea(
    of byteCount: Int, _ body: (Area) throws(LintStop) -> Void
  ) throws(LintStop) {
    let probe = try writable()
    try need(
      probe.size >= UInt64(byteCount), "the export is smaller than \(byteCount) bytes")
    // In the middle, where neither a partition table nor its copy is; on whole blocks.
    let half = (probe.size - UInt64(byteCount)) / 2
    probe.disconnect()
    try withArea(half & ~0xf_ffff, byteCount, body)
  }

  /// Calls `body` with this part of the disk.
  func withArea(
    _ offset: UInt64, _ byteCount: Int, _ body: (Area) throws(LintStop) -> Void
  ) throws(LintStop) {
    let area = Area(offset: offset, byteCount: byteCount, saved: try save(offset, byteCount))
    var stop: LintStop?
    do throws(LintStop) { try body(area) } catch { stop = error }
    if let failure = giveBackPatiently(area) {
      let text = LintOutcome(failure, deadlineSeconds: deadlineSeconds).text
      throw .notRestored("\(byteCount) bytes at \(offset) may differ now: \(text)")
    }
    if let stop { throw stop }
  }

  /// Tries ten times in three seconds: a server that died may be started again by its keeper.
  private func giveBackPatiently(_ area: Area) -> LintStop? {
    var failure: LintStop?
    for _ in 0..<10 {
      do throws(LintStop) {
        try giveBack(area)
        return nil
      } catch { failure = error }
      switch failure {
      case .ended, .unreachable: MonotonicClock.sleep(milliseconds: 300)
      case .broken, .timedOut, .skipped, .notRestored, nil: return failure
      }
    }
    return failure
  }

  private func save(_ offset: UInt64, _ byteCount: Int) throws(LintStop) -> [UInt8] {
    let probe = try writable()
    var bytes: [UInt8] = []
    while bytes.count < byteCount {
      let count = min(byteCount - bytes.count, Self.pieceByteCount)
      bytes += try probe.bytes(offset + UInt64(bytes.count), count)
    }
    probe.disconnect()
    return bytes
  }

  /// Writes what was there wherever it differs: as zeroes where it was zero, so that a hole can be
  /// one again, and as data where that does not help.
  private func giveBack(_ area: Area) throws(LintStop) {
    let probe = try writable()
    var position = 0
    while position < area.byteCount {
      let count = min(area.byteCount - position, Self.pieceByteCount)
      let offset = area.offset + UInt64(position)
      let wanted = Array(area.saved[position..<position + count])
      position += count
      guard try probe.bytes(offset, count) != wanted else { continue }
      if wanted == zeroes(count), probe.has(ExportFlag.sendWriteZeroes) {
        let outcome = try probe.call(Command.writeZeroes, offset: offset, length: UInt64(count))
        if outcome.error == 0, try probe.bytes(offset, count) == wanted { continue }
      }
      try probe.expectSuccess(try probe.write(offset, wanted), "a WRITE of the old bytes")
      try demand(try probe.bytes(offset, count) == wanted, "the old bytes", got: "others")
    }
    if probe.has(ExportFlag.sendFlush) {
      try probe.expectSuccess(try probe.call(Command.flush), "a FLUSH")
    }
    probe.disconnect()
  }
}

/// Bytes without a zero among them, different for each seed.
func filler(_ count: Int, _ seed: Int = 1) -> [UInt8] {
  // One period of the pattern, repeated: large buffers are made of copies.
  let period = (0..<251).map { UInt8(1 + ($0 * 7 + seed * 13) % 255) }
  var bytes: [UInt8] = []
  bytes.reserveCapacity(count)
  while bytes.count + period.count <= count { bytes += period }
  bytes += period.prefix(count - bytes.count)
  return bytes
}

/// Where two byte strings differ first, for a report; nil when they do not.
func difference(_ got: [UInt8], from expected: [UInt8]) -> String? {
  guard got != expected else { return nil }
  guard got.count == expected.count else {
    return "\(got.count) bytes instead of \(expected.count)"
  }
  for index in got.indices where got[index] != expected[index] {
    return "byte \(index) is \(got[index]) instead of \(expected[index])"
  }
  return nil
}

/// Ends the check unless the bytes agree.
func demandEqual(
  _ got: [UInt8], _ expected: [UInt8], _ what: @autoclosure () -> String
) throws(LintStop) {
  if let text = difference(got, from: expected) { throw .broken(expected: what(), got: text) }
}
