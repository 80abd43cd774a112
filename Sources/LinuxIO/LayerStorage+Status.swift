// SPDX-License-Identifier: Apache-2.0
//
// Where a storage has data and where it has holes. Source: lseek(2), SEEK_DATA and SEEK_HOLE;
// for remote storages proto.md, "base:allocation".

import BlockTypes

/// The status of the first bytes of a range.
public struct StatusRun: Hashable, Sendable {
  /// At least 1.
  public var byteCount: UInt64
  /// Nothing is kept for the bytes.
  public var isHole: Bool
  /// The bytes read as zeroes.
  public var isZero: Bool

  public init(byteCount: UInt64, isHole: Bool, isZero: Bool) {
    self.byteCount = byteCount
    self.isHole = isHole
    self.isZero = isZero
  }
}

extension LayerStorage {
  /// Whether `firstRun` knows more than that all is data.
  public func tellsHoles() throws(SystemError) -> Bool {
    switch self {
    case .local: try isGrowable()
    case .remote(let remote): remote.tellsStatus
    }
  }

  /// The status of the first bytes of `range`, which is not empty and lies inside the storage; nil
  /// when the storage cannot tell.
  public func firstRun(of range: ByteRange) throws(SystemError) -> StatusRun? {
    switch self {
    case .local(let file):
      guard let data = try file.nextData(from: range.start) else {
        return StatusRun(byteCount: range.byteCount, isHole: true, isZero: true)
      }
      if data > range.start {
        let end = min(data, range.end)
        return StatusRun(byteCount: end - range.start, isHole: true, isZero: true)
      }
      let end = min(try file.nextHole(from: range.start) ?? range.end, range.end)
      return StatusRun(
        byteCount: max(end, range.start + 1) - range.start, isHole: false, isZero: false)
    case .remote(let remote):
      guard remote.tellsStatus else { return nil }
      guard case .run(let run) = try remote.finish(.status(range)) else {
        preconditionFailure("a status was answered without a run")
      }
      return run
    }
  }

  /// The start of the next bytes that do not read as zeroes for sure, or of the next that do, at or
  /// after `offset`; nil past the last ones.
  public func nextData(from offset: UInt64) throws(SystemError) -> UInt64? {
    switch self {
    case .local(let file): try file.nextData(from: offset)
    case .remote: try next(from: offset, isZero: false)
    }
  }

  public func nextHole(from offset: UInt64) throws(SystemError) -> UInt64? {
    switch self {
    case .local(let file): try file.nextHole(from: offset)
    case .remote: try next(from: offset, isZero: true)
    }
  }

  private func next(from offset: UInt64, isZero: Bool) throws(SystemError) -> UInt64? {
    let end = try byteCount()
    var cursor = offset
    while cursor < end {
      let range = ByteRange(start: cursor, end: end)
      guard let run = try firstRun(of: range) else { return isZero ? nil : cursor }
      if run.isZero == isZero { return cursor }
      cursor += run.byteCount
    }
    return nil
  }
}
