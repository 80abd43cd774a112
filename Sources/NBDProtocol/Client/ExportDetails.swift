// SPDX-License-Identifier: Apache-2.0
//
// What a server tells about an export, and what a client agreed on with it.
// Spec: proto.md, "NBD_INFO_EXPORT" and the infos behind it; "Handshake phase".
// This file performs no I/O.

/// Which kind of messages a connection speaks; later ones can do more.
public enum ProtocolMode: Int, Hashable, Sendable, Comparable, CaseIterable {
  /// A greeting with the one export in it, and no options.
  case oldstyle
  /// Options, but none that has an answer: EXPORT_NAME only.
  case exportName
  case simple
  case structured
  case extended

  public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }

  /// For people.
  public var text: String {
    switch self {
    case .oldstyle: "oldstyle"
    case .exportName: "export name only"
    case .simple: "simple replies"
    case .structured: "structured replies"
    case .extended: "extended headers"
    }
  }
}

/// The block sizes that a server told, checked against the specification.
public struct BlockSizes: Hashable, Sendable {
  /// A power of two of at most 64 KiB.
  public let minimum: UInt32
  /// A power of two of at least 512 and of at least the minimum.
  public let preferred: UInt32
  /// Largest payload in bytes, at least the preferred size; 2^32 - 1 means no limit.
  public let maximum: UInt32

  /// - Spec: proto.md, "Size constraints".
  public init(
    minimum: UInt32, preferred: UInt32, maximum: UInt32
  ) throws(ClientViolation) {
    guard minimum.nonzeroBitCount == 1, minimum <= 65_536, preferred.nonzeroBitCount == 1,
      preferred >= max(512, minimum), maximum >= preferred
    else {
      throw .badBlockSizes(minimum: minimum, preferred: preferred, maximum: maximum)
    }
    self.minimum = minimum
    self.preferred = preferred
    self.maximum = maximum
  }
}

/// Everything that a server told about one export.
public struct ExportDetails: Hashable, Sendable {
  /// As it was asked for or listed, or as the server corrected it.
  public var name: String
  public var description = ""
  /// Below 2^63; nil when the server listed the name and told no more.
  public var byteCount: UInt64?
  public var flags: TransmissionFlags = []
  /// nil when the server told none.
  public var blockSizes: BlockSizes?
  /// Names of meta contexts: all that were offered in a list, or those that were selected.
  public var contexts: [String] = []

  public init(name: String) { self.name = name }

  /// The alignment that requests must have: what the server said, else 1.
  public var minimumBlockByteCount: UInt32 { blockSizes?.minimum ?? 1 }

  /// Largest payload of one request: what the server said, and never more than 32 MiB.
  ///
  /// - Spec: proto.md, "Size constraints": without agreement a client SHOULD stay below 2^25.
  public var payloadByteCountMax: UInt32 { min(blockSizes?.maximum ?? 32 << 20, 32 << 20) }
}

/// A finished handshake: the export that was entered and how its requests are made.
public struct ClientSession: Hashable, Sendable {
  public var mode: ProtocolMode
  public var isEncrypted: Bool
  public var export: ExportDetails
  /// The ids of `export.contexts` on this connection, in the same order.
  public var contextIDs: [UInt32]

  public init(
    mode: ProtocolMode, isEncrypted: Bool, export: ExportDetails, contextIDs: [UInt32]
  ) {
    self.mode = mode
    self.isEncrypted = isEncrypted
    self.export = export
    self.contextIDs = contextIDs
  }

  public var byteCount: UInt64 { export.byteCount ?? 0 }
}
