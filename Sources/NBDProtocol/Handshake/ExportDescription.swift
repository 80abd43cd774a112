// SPDX-License-Identifier: Apache-2.0
//
// An export as the handshake shows it to clients. Spec: proto.md, "NBD_OPT_LIST", "NBD_OPT_GO".
// This file performs no I/O.

/// The name, the text and the abilities of one export.
public struct ExportDescription: Sendable, Hashable {
  /// At most 4096 bytes of UTF-8 without NUL; may be empty.
  public let name: String
  /// For people; at most 4096 bytes of UTF-8; empty when there is nothing to say.
  public let description: String
  public let traits: ExportTraits
  /// The contexts on offer, each with an id of its own.
  public let contexts: [MetaContext]
  /// Tells descriptions of one export apart: what a client negotiated repeats it.
  public let revision: UInt64

  /// Traps when a string breaks the specification's limits: the configuration checked them.
  public init(
    name: String, description: String = "", traits: ExportTraits,
    contexts: [MetaContext] = [.baseAllocation], revision: UInt64 = 0
  ) {
    precondition(
      name.utf8.count <= ExportName.byteCountMax && !name.utf8.contains(0),
      "an export's name is longer than 4096 bytes or holds NUL")
    precondition(
      description.utf8.count <= ExportName.byteCountMax && !description.utf8.contains(0),
      "an export's description is longer than 4096 bytes or holds NUL")
    precondition(
      Set(contexts.map(\.wireID)).count == contexts.count, "two contexts of an export have one id")
    self.name = name
    self.description = description
    self.traits = traits
    self.contexts = contexts
    self.revision = revision
  }
}
