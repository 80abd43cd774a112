// SPDX-License-Identifier: Apache-2.0
//
// Copying a disk, with several requests in flight. The first error ends the copy: a request that
// failed is never passed over (CVE-2022-0485).

import BlockTypes

/// A copy from one disk to another one of at least its size.
public struct Copier: Sendable {
  /// What a copy has moved.
  public struct Report: Hashable, Sendable {
    public var dataByteCount: UInt64 = 0
    public var zeroByteCount: UInt64 = 0
  }

  let source: any CopySource
  let target: any CopyTarget
  let requestsMax: Int

  /// - Parameter requestsMax: pieces under way at once, at least 1.
  public init(from source: any CopySource, to target: any CopyTarget, requestsMax: Int = 16) {
    precondition(requestsMax > 0, "a copy without requests")
    self.source = source
    self.target = target
    self.requestsMax = requestsMax
  }

  /// Copies everything and makes it durable.
  ///
  /// - Parameter progress: called with the bytes that are done and with all bytes.
  public func run(
    progress: @Sendable (_ done: UInt64, _ all: UInt64) -> Void = { _, _ in }
  ) async throws -> Report {
    let all = source.byteCount
    let block = max(source.blockByteCount, target.blockByteCount)
    let report = try await withThrowingTaskGroup(of: CopyRange.self) { group in
      var report = Report()
      var running = 0
      var offset: UInt64 = 0
      var checkpoint = target.checkpointByteCount ?? .max
      while offset < all {
        let found = try await source.ranges(from: offset, byteCountMax: all - offset)
        for aligned in CopyPlan.align(found, to: block, byteCount: all) {
          for piece in CopyPlan.pieces(of: aligned) {
            if running == requestsMax, let done = try await group.next() {
              running -= 1
              report.count(done)
              progress(report.dataByteCount + report.zeroByteCount, all)
            }
            if report.dataByteCount >= checkpoint {
              // Nothing is added meanwhile, so that what is not flushed stays bounded.
              try await target.checkpoint()
              checkpoint = report.dataByteCount + (target.checkpointByteCount ?? 0)
            }
            group.addTask { try await copy(piece) }
            running += 1
          }
          offset = aligned.range.end
        }
      }
      while let done = try await group.next() {
        report.count(done)
        progress(report.dataByteCount + report.zeroByteCount, all)
      }
      return report
    }
    try await target.finish()
    return report
  }

  private func copy(_ piece: CopyRange) async throws -> CopyRange {
    if piece.isZero {
      try await target.zero(piece.range)
    } else {
      try await target.write(try await source.read(piece.range), at: piece.range.start)
    }
    return piece
  }
}

extension Copier.Report {
  fileprivate mutating func count(_ piece: CopyRange) {
    if piece.isZero {
      zeroByteCount += piece.range.byteCount
    } else {
      dataByteCount += piece.range.byteCount
    }
  }
}
