// SPDX-License-Identifier: Apache-2.0
//
// What a server said to one option. Spec: proto.md, "Option reply types". This file performs no
// I/O.

/// The replies to one option: those before the end, and the one that ended it.
struct OptionAnswer: Hashable, Sendable {
  struct Part: Hashable, Sendable {
    var option: UInt32
    var type: UInt32
    var payload: [UInt8]

    var isError: Bool { type & 0x8000_0000 != 0 }
  }

  var parts: [Part]
  var end: Part

  /// The type of the reply that ended the answer.
  var type: UInt32 { end.type }
  var isAck: Bool { type == Reply.ack }

  /// For a report: the name, and the server's own words where there are some.
  var text: String {
    Reply.name(type) + (end.payload.isEmpty ? "" : " (\"\(shown(end.payload))\")")
  }

  func demandAck(_ what: String) throws(LintStop) {
    try demand(isAck, "ACK to \(what)", got: text)
  }

  func demandType(_ types: UInt32..., to what: String) throws(LintStop) {
    let names = types.map(Reply.name).joined(separator: " or ")
    try demand(types.contains(type), "\(names) to \(what)", got: text)
  }

  /// The exports that LIST named.
  func servers() throws(LintStop) -> [(name: [UInt8], description: [UInt8])] {
    var servers: [(name: [UInt8], description: [UInt8])] = []
    for part in parts {
      try demand(
        part.type == Reply.server, "only SERVER replies before the end of LIST",
        got: Reply.name(part.type))
      var reader = FieldReader(part.payload, of: "a SERVER reply")
      let count = try reader.integer(UInt32.self)
      let name = try reader.take(Int(count))
      servers.append((name: Array(name), description: Array(reader.rest())))
    }
    return servers
  }

  /// The contexts that LIST_META_CONTEXT or SET_META_CONTEXT named.
  func contexts() throws(LintStop) -> [(name: String, id: UInt32)] {
    var contexts: [(name: String, id: UInt32)] = []
    for part in parts {
      try demand(
        part.type == Reply.metaContext, "only META_CONTEXT replies before the end",
        got: Reply.name(part.type))
      var reader = FieldReader(part.payload, of: "a META_CONTEXT reply")
      let id = try reader.integer(UInt32.self)
      let name = reader.rest()
      try demand(!name.isEmpty, "a META_CONTEXT reply with a name", got: "none")
      contexts.append((name: String(decoding: name, as: UTF8.self), id: id))
    }
    return contexts
  }

  /// What INFO or GO told.
  func facts() throws(LintStop) -> ExportFacts {
    var facts = ExportFacts()
    var seen: Set<UInt16> = []
    for part in parts {
      try demand(
        part.type == Reply.info, "only INFO replies before the end", got: Reply.name(part.type))
      var reader = FieldReader(part.payload, of: "an INFO reply")
      let type = try reader.integer(UInt16.self)
      // A type twice is not forbidden for those that lint does not know.
      try demand(
        seen.insert(type).inserted || type > Info.blockSize, "each information once",
        got: "information \(type) twice")
      try facts.take(type, &reader)
    }
    try demand(seen.contains(Info.export), "NBD_INFO_EXPORT before ACK", got: "none")
    return facts
  }
}

/// What a server tells about an export.
struct ExportFacts: Hashable, Sendable {
  var size: UInt64 = 0
  var flags: UInt16 = 0
  var name: [UInt8]?
  var description: [UInt8]?
  var blockSizes: BlockSizes?

  struct BlockSizes: Hashable, Sendable {
    var minimum: UInt32
    var preferred: UInt32
    var maximum: UInt32
  }

  mutating func take(_ type: UInt16, _ reader: inout FieldReader) throws(LintStop) {
    switch type {
    case Info.export:
      size = try reader.integer()
      flags = try reader.integer()
    case Info.name: name = Array(reader.rest())
    case Info.description: description = Array(reader.rest())
    case Info.blockSize:
      blockSizes = BlockSizes(
        minimum: try reader.integer(), preferred: try reader.integer(),
        maximum: try reader.integer())
    default: _ = reader.rest()
    }
    try demand(
      reader.remainingCount == 0, "information \(type) of its length",
      got: "\(reader.remainingCount) bytes more")
  }
}
