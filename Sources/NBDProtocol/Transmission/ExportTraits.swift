// SPDX-License-Identifier: Apache-2.0
//
// What an export is, as the handshake tells it and the transmission rules keep it.
// Spec: proto.md, "Transmission flags" and "Size constraints". This file performs no I/O.

import BlockTypes

/// Size, abilities and block sizes of one export. Constant for the life of a connection, but for
/// the size, which may grow.
@frozen public struct ExportTraits: Sendable, Hashable {
  public var byteCount: UInt64
  public var isReadOnly: Bool
  /// A power of two of at most 64 KiB; clients that ask for block sizes are held to it.
  public var minimumBlockByteCount: UInt32
  /// A power of two of at least 512 and at least the minimum.
  public var preferredBlockByteCount: UInt32
  /// Largest payload of one READ or WRITE.
  public var maximumPayloadByteCount: UInt32
  public var isRotational: Bool
  /// FLUSH and FUA on one connection cover what any connection has completed.
  public var canMultiConn: Bool
  public var canTrim: Bool
  public var canWriteZeroes: Bool
  public var canFastZero: Bool
  public var canCache: Bool
  /// Clients may make the export larger.
  public var canResize = false

  /// Traps when the block sizes contradict the specification: they are ours.
  public init(
    byteCount: UInt64, isReadOnly: Bool = false, minimumBlockByteCount: UInt32 = 1,
    preferredBlockByteCount: UInt32 = 4096, maximumPayloadByteCount: UInt32 = 32 << 20,
    isRotational: Bool = false, canMultiConn: Bool = false, canTrim: Bool = true,
    canWriteZeroes: Bool = true, canFastZero: Bool = true, canCache: Bool = true
  ) {
    precondition(
      minimumBlockByteCount.nonzeroBitCount == 1 && minimumBlockByteCount <= 65_536,
      "the minimum block size \(minimumBlockByteCount) is no power of two up to 65536")
    precondition(
      preferredBlockByteCount.nonzeroBitCount == 1
        && preferredBlockByteCount >= max(512, minimumBlockByteCount),
      "the preferred block size \(preferredBlockByteCount) is no power of two of 512 or more")
    precondition(
      maximumPayloadByteCount >= preferredBlockByteCount,
      "the maximum payload is smaller than the preferred block size")
    self.byteCount = byteCount
    self.isReadOnly = isReadOnly
    self.minimumBlockByteCount = minimumBlockByteCount
    self.preferredBlockByteCount = preferredBlockByteCount
    self.maximumPayloadByteCount = maximumPayloadByteCount
    self.isRotational = isRotational
    self.canMultiConn = canMultiConn
    self.canTrim = canTrim
    self.canWriteZeroes = canWriteZeroes
    self.canFastZero = canFastZero
    self.canCache = canCache
  }

  /// Whether FAST_ZERO is a known flag here: it needs WRITE_ZEROES, which needs a writable export.
  @inlinable public var offersFastZero: Bool { canFastZero && canWriteZeroes && !isReadOnly }

  /// The flags to send to a client.
  ///
  /// SEND_DF depends on the client: it MUST be clear without structured (or extended) replies.
  /// BLOCK_STATUS_PAYLOAD MUST be clear without extended headers, and SHOULD be without contexts.
  ///
  /// - Spec: proto.md, "Transmission flags", and its branch extension-ext-header.
  public func transmissionFlags(
    structuredReplies: Bool, statusPayload: Bool = false
  ) -> TransmissionFlags {
    var flags: TransmissionFlags = [.hasFlags, .sendFlush, .sendFUA]
    if isReadOnly { flags.insert(.readOnly) }
    if isRotational { flags.insert(.rotational) }
    if canTrim && !isReadOnly { flags.insert(.sendTrim) }
    if canWriteZeroes && !isReadOnly { flags.insert(.sendWriteZeroes) }
    if offersFastZero { flags.insert(.sendFastZero) }
    if structuredReplies { flags.insert(.sendDF) }
    if canMultiConn { flags.insert(.canMultiConn) }
    if canCache { flags.insert(.sendCache) }
    if canResize && !isReadOnly { flags.insert(.sendResize) }
    if statusPayload { flags.insert(.blockStatusPayload) }
    return flags
  }
}
