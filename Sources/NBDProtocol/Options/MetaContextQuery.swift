// SPDX-License-Identifier: Apache-2.0
//
// The request of LIST_META_CONTEXT and SET_META_CONTEXT, and what it selects.
// Spec: proto.md, "NBD_OPT_LIST_META_CONTEXT", "NBD_OPT_SET_META_CONTEXT" and
// "Metadata querying". This file performs no I/O.

/// The data of LIST_META_CONTEXT or SET_META_CONTEXT.
struct MetaContextRequest: Hashable, Sendable {
  /// Queries of one option; a client that asks for more gets ERR_TOO_BIG.
  static var queryCountMax: Int { 64 }

  let name: ArraySlice<UInt8>
  let queries: [ArraySlice<UInt8>]

  /// Decodes `payload`: a name, a count, and as many queries, and nothing else.
  init(decoding payload: [UInt8]) throws(OptionError) {
    var reader = PayloadReader(payload)
    guard let name = reader.readCountedBytes() else {
      throw OptionError(.errInvalid, "the export name passes the end of the option")
    }
    guard ExportName.isWellFormed(name) else {
      throw OptionError(.errInvalid, "the export name is not a string of at most 4096 bytes")
    }
    guard let count = reader.readInteger(UInt32.self) else {
      throw OptionError(.errInvalid, "the option ends before its count of queries")
    }
    guard count <= UInt32(MetaContextRequest.queryCountMax) else {
      throw OptionError(.errTooBig, "more than \(MetaContextRequest.queryCountMax) queries")
    }
    var queries: [ArraySlice<UInt8>] = []
    for _ in 0..<count {
      guard let query = reader.readCountedBytes() else {
        throw OptionError(.errInvalid, "a query passes the end of the option")
      }
      guard ExportName.isWellFormed(query) else {
        throw OptionError(.errInvalid, "a query is not a string of at most 4096 bytes")
      }
      queries.append(query)
    }
    guard reader.isAtEnd else {
      throw OptionError(.errInvalid, "bytes follow the last query")
    }
    self.name = name
    self.queries = queries
  }

  /// The contexts of `offered` that LIST_META_CONTEXT shows: all of them without queries,
  /// otherwise those that a query names, itself or by a wildcard.
  func listed(of offered: [MetaContext]) -> [MetaContext] {
    guard !queries.isEmpty else { return offered }
    return offered.filter { context in
      queries.contains {
        $0.elementsEqual(context.name.utf8) || isWildcard($0, of: context)
      }
    }
  }

  private func isWildcard(_ query: ArraySlice<UInt8>, of context: MetaContext) -> Bool {
    context.wildcards.contains { query.elementsEqual($0.utf8) }
  }

  /// The contexts of `offered` that SET_META_CONTEXT selects: those that a query names exactly,
  /// each once. A wildcard, an unknown leaf and an unknown namespace select nothing.
  func selected(of offered: [MetaContext]) -> [MetaContext] {
    offered.filter { context in
      queries.contains { $0.elementsEqual(context.name.utf8) }
    }
  }
}
