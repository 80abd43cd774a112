// SPDX-License-Identifier: Apache-2.0
//
// Requests of the test client and what became of them. Spec: proto.md, "Transmission phase".

/// The commands by number.
public enum WireCommand: UInt16, Hashable, Sendable, CaseIterable {
  case read = 0
  case write
  case disconnect
  case flush
  case trim
  case cache
  case writeZeroes
  case blockStatus
}

/// The command flags by bit.
public enum WireFlag {
  public static let fua: UInt16 = 1 << 0
  public static let noHole: UInt16 = 1 << 1
  public static let dontFragment: UInt16 = 1 << 2
  public static let requestOne: UInt16 = 1 << 3
  public static let fastZero: UInt16 = 1 << 4
  public static let payloadLength: UInt16 = 1 << 5
}

/// The error numbers that the specification knows.
public enum WireErrno {
  public static let none: UInt32 = 0
  public static let notPermitted: UInt32 = 1
  public static let io: UInt32 = 5
  public static let invalid: UInt32 = 22
  public static let noSpace: UInt32 = 28
  public static let overflow: UInt32 = 75
  public static let notSupported: UInt32 = 95
  public static let shutdown: UInt32 = 108
  public static let all: Set<UInt32> = [0, 1, 5, 12, 22, 28, 75, 95, 108]
}

/// A request as it was sent.
public struct WireRequest: Hashable, Sendable {
  public var command: UInt16
  public var flags: UInt16
  public var offset: UInt64
  /// What the request is about: with a filter, not the payload's length.
  public var length: UInt64
  /// The contexts that BLOCK_STATUS is to tell about.
  public var contextIDs: Set<UInt32>
}

/// One extent of a BLOCK_STATUS reply.
public struct WireExtent: Hashable, Sendable {
  public var length: UInt64
  public var flags: UInt32

  public init(length: UInt64, flags: UInt32) {
    self.length = length
    self.flags = flags
  }
}

/// The whole reply to one request.
public struct WireOutcome: Hashable, Sendable {
  public var error: UInt32 = 0
  /// The data of a READ, holes filled with zeroes.
  public var data = WireData()
  /// Extents by context id.
  public var extents: [UInt32: [WireExtent]] = [:]
  /// Chunks came, structured or extended ones.
  public var isStructured = false
  public var chunkCount = 0
  public var contentChunkCount = 0
  public var holeByteCount = 0
  /// The offsets of ERROR_OFFSET chunks.
  public var errorOffsets: [UInt64] = []
  /// Ranges of a READ that content chunks have covered.
  var covered: [Range<UInt64>] = []

  /// Bytes of a READ that content chunks have brought.
  public var coveredByteCount: UInt64 { covered.reduce(0) { $0 + UInt64($1.count) } }
}
