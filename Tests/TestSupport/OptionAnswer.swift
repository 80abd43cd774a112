// SPDX-License-Identifier: Apache-2.0
//
// What a server said to one option. Spec: proto.md, "Option reply types", "NBD_INFO_EXPORT".

/// The replies to one option: those before the end, and the one that ended it.
public struct OptionAnswer: Hashable, Sendable {
  public struct Reply: Hashable, Sendable {
    public var option: UInt32
    public var type: UInt32
    public var payload: [UInt8]

    public var isError: Bool { type & 0x8000_0000 != 0 }
    public var text: String { String(decoding: payload, as: UTF8.self) }
  }

  public static let ack: UInt32 = 1
  public static let server: UInt32 = 2
  public static let info: UInt32 = 3
  public static let metaContext: UInt32 = 4
  public static let unsup: UInt32 = 0x8000_0001
  public static let policy: UInt32 = 0x8000_0002
  public static let invalid: UInt32 = 0x8000_0003
  public static let tlsRequired: UInt32 = 0x8000_0005
  public static let unknown: UInt32 = 0x8000_0006
  public static let shutdown: UInt32 = 0x8000_0007
  public static let tooBig: UInt32 = 0x8000_0009
  public static let extendedHeadersRequired: UInt32 = 0x8000_000a

  public var replies: [Reply]
  public var end: Reply

  /// The type of the reply that ended the answer.
  public var type: UInt32 { end.type }
  public var isAck: Bool { type == OptionAnswer.ack }

  func requireAck(_ option: String) throws {
    guard isAck else {
      throw WireError.violation("\(option) got 0x\(String(type, radix: 16)): \(end.text)")
    }
  }

  /// The exports that LIST named.
  public func servers() throws -> [(name: String, description: String)] {
    try replies.map { reply in
      guard reply.type == OptionAnswer.server else {
        throw WireError.violation("reply type \(reply.type) in an answer to LIST")
      }
      var reader = WireReader(reply.payload)
      let name = try reader.take(Int(try reader.integer(UInt32.self)))
      return (
        name: String(decoding: name, as: UTF8.self),
        description: String(decoding: reader.rest(), as: UTF8.self)
      )
    }
  }

  /// The contexts that LIST_META_CONTEXT or SET_META_CONTEXT named.
  public func contexts() throws -> [(name: String, id: UInt32)] {
    try replies.map { reply in
      guard reply.type == OptionAnswer.metaContext, reply.payload.count > 4 else {
        throw WireError.violation("reply type \(reply.type) in a meta context answer")
      }
      var reader = WireReader(reply.payload)
      let id: UInt32 = try reader.integer()
      return (name: String(decoding: reader.rest(), as: UTF8.self), id: id)
    }
  }

  /// What INFO or GO told.
  public func facts() throws -> ExportFacts {
    var facts = ExportFacts()
    var seen: Set<UInt16> = []
    for reply in replies {
      guard reply.type == OptionAnswer.info else {
        throw WireError.violation("reply type \(reply.type) in an answer to INFO or GO")
      }
      var reader = WireReader(reply.payload)
      let type: UInt16 = try reader.integer()
      guard seen.insert(type).inserted else {
        throw WireError.violation("information \(type) came twice")
      }
      try facts.take(type, &reader)
    }
    guard seen.contains(0) else { throw WireError.violation("no NBD_INFO_EXPORT") }
    return facts
  }
}

/// What a server tells about an export.
public struct ExportFacts: Hashable, Sendable {
  public var size: UInt64 = 0
  public var flags: UInt16 = 0
  public var name: String?
  public var description: String?
  public var minimumBlock: UInt32?
  public var preferredBlock: UInt32?
  public var maximumPayload: UInt32?

  mutating func take(_ type: UInt16, _ reader: inout WireReader) throws {
    switch type {
    case 0:
      size = try reader.integer()
      flags = try reader.integer()
    case 1: name = String(decoding: reader.rest(), as: UTF8.self)
    case 2: description = String(decoding: reader.rest(), as: UTF8.self)
    case 3:
      minimumBlock = try reader.integer() as UInt32
      preferredBlock = try reader.integer() as UInt32
      maximumPayload = try reader.integer() as UInt32
    default: throw WireError.violation("unknown information \(type)")
    }
    guard reader.remainingCount == 0 else {
      throw WireError.violation("information \(type) has the wrong length")
    }
  }
}
