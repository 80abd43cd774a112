// SPDX-License-Identifier: Apache-2.0
//
// An NBD export as a source or a target of copies.

import BlockTypes
import NBDProtocol

/// An export, seen as a disk.
public struct RemoteDisk: CopySource, CopyTarget {
  let connection: NBDConnection
  /// Where `base:allocation` stands among the contexts; nil when the server does not tell.
  private let allocationIndex: Int?
  public let checkpointByteCount: UInt64?

  /// - Parameter checkpointByteCount: for targets that reconnect: a flush after so many bytes keeps
  ///   the client's memory of unflushed writes from running full.
  public init(_ connection: NBDConnection, checkpointByteCount: UInt64? = nil) {
    self.connection = connection
    self.checkpointByteCount = checkpointByteCount
    allocationIndex = connection.export.contexts.firstIndex(of: "base:allocation")
  }

  public var byteCount: UInt64 { connection.byteCount }
  public var blockByteCount: UInt64 { UInt64(connection.export.minimumBlockByteCount) }

  public func read(_ range: ByteRange) async throws -> [UInt8] {
    try await named { () throws(NBDClientFault) in
      try await connection.read(at: range.start, byteCount: Int(range.byteCount))
    }
  }

  /// - Spec: proto.md, "base:allocation": bit 1 is ZERO. Bit 0, HOLE, alone promises nothing
  ///   about the contents.
  public func ranges(
    from offset: UInt64, byteCountMax: UInt64
  ) async throws -> [CopyRange] {
    guard let allocationIndex else {
      return [CopyRange(ByteRange(start: offset, end: offset + byteCountMax), isZero: false)]
    }
    let byteCount = min(byteCountMax, connection.rules.effectByteCountMax)
    let contexts = try await named { () throws(NBDClientFault) in
      try await connection.blockStatus(at: offset, byteCount: byteCount)
    }
    return LockStep.ranges(
      offset: offset, byteCount: byteCount, contexts: [contexts[allocationIndex]]
    ).map { found in
      CopyRange(
        ByteRange(start: found.offset, end: found.offset + found.byteCount),
        isZero: found.statuses[0] & 2 != 0)
    }
  }

  public func write(_ bytes: [UInt8], at offset: UInt64) async throws {
    try await named { () throws(NBDClientFault) in
      try await connection.write(bytes, at: offset)
    }
  }

  /// Without WRITE_ZEROES the zeroes are written: TRIM promises nothing about the contents.
  public func zero(_ range: ByteRange) async throws {
    if connection.export.flags.contains(.sendWriteZeroes) {
      return try await named { () throws(NBDClientFault) in
        try await connection.writeZeroes(at: range.start, byteCount: range.byteCount)
      }
    }
    for piece in CopyPlan.pieces(of: CopyRange(range, isZero: false)) {
      try await write(
        [UInt8](repeating: 0, count: Int(piece.range.byteCount)), at: piece.range.start)
    }
  }

  public func checkpoint() async throws {
    try await named { () throws(NBDClientFault) in try await connection.flush() }
  }

  public func finish() async throws {
    try await named { () throws(NBDClientFault) in
      try await connection.flush()
      try await connection.disconnect()
    }
  }

  /// Says which of the two disks of a copy is at fault.
  private func named<Value: Sendable>(
    _ body: () async throws(NBDClientFault) -> Value
  ) async throws(CopyFault) -> Value {
    do throws(NBDClientFault) {
      return try await body()
    } catch {
      throw CopyFault("\(connection.uri): \(error)")
    }
  }
}
