// SPDX-License-Identifier: Apache-2.0
//
// What a finished handshake agreed on. Spec: proto.md, "Handshake phase".
// This file performs no I/O.

/// The result of a handshake: how the transmission phase of one connection works.
@frozen public struct Negotiated: Sendable, Hashable {
  /// Index into the exports that the handshake was given.
  public var exportIndex: Int
  /// READ and BLOCK_STATUS are answered with chunks, structured or extended ones.
  public var structuredReplies: Bool
  /// Headers have 32 bytes in both directions, and lengths 64 bits; implies `structuredReplies`.
  public var extendedHeaders: Bool
  /// The contexts that BLOCK_STATUS reports; empty: BLOCK_STATUS is refused.
  public var contexts: MetaContextSet
  /// Whether the client asked for BLOCK_SIZE in its GO: only then is a request that is not aligned
  /// to the minimum block size refused.
  public var blockSizesAgreed: Bool
  /// The revision of the export's description that the client was told.
  public var revision: UInt64

  @inlinable public init(
    exportIndex: Int, structuredReplies: Bool = false, extendedHeaders: Bool = false,
    contexts: MetaContextSet = [], blockSizesAgreed: Bool = false, revision: UInt64 = 0
  ) {
    self.exportIndex = exportIndex
    self.structuredReplies = structuredReplies || extendedHeaders
    self.extendedHeaders = extendedHeaders
    self.contexts = contexts
    self.blockSizesAgreed = blockSizesAgreed
    self.revision = revision
  }

  @inlinable public var framing: ReplyFraming {
    extendedHeaders ? .extended : structuredReplies ? .structured : .simple
  }
}
