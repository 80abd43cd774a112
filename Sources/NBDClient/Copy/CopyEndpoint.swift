// SPDX-License-Identifier: Apache-2.0
//
// What can be copied from or to. This file performs no I/O.

import BlockTypes

/// A range of a source: zeroes, or something that has to be read.
public struct CopyRange: Hashable, Sendable {
  public let range: ByteRange
  public let isZero: Bool

  public init(_ range: ByteRange, isZero: Bool) {
    self.range = range
    self.isZero = isZero
  }
}

/// A disk that bytes come from.
public protocol CopySource: Sendable {
  var byteCount: UInt64 { get }
  /// Reads start and end at multiples of this.
  var blockByteCount: UInt64 { get }
  func read(_ range: ByteRange) async throws -> [UInt8]
  /// What is known from `offset` on: at least one range, in order and without gaps, at most
  /// `byteCountMax` bytes.
  func ranges(from offset: UInt64, byteCountMax: UInt64) async throws -> [CopyRange]
}

/// A disk that bytes go to.
public protocol CopyTarget: Sendable {
  var blockByteCount: UInt64 { get }
  func write(_ bytes: [UInt8], at offset: UInt64) async throws
  /// Makes the range read as zeroes, with as little space as the target can.
  func zero(_ range: ByteRange) async throws
  /// Bytes of data after which `checkpoint` is called; nil: never.
  var checkpointByteCount: UInt64? { get }
  /// Makes durable what was written so far, so that nobody has to remember it.
  func checkpoint() async throws
  /// Makes all of it durable and, where that is a step, visible.
  func finish() async throws
}
