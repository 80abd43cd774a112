// SPDX-License-Identifier: Apache-2.0
//
// The place of an export, as a URI names it: the few forms that lint takes.
// Spec: uri.md of the NBD project. This file performs no I/O.

/// An export and the address of its server.
public struct LintPlace: Hashable, Sendable {
  public enum Address: Hashable, Sendable {
    case unix(path: String)
    case tcp(host: String, port: UInt16)
  }

  public let address: Address
  public let export: String

  public init(_ address: Address, export: String = "") {
    self.address = address
    self.export = export
  }

  /// Reads `nbd://host[:port]/export` and `nbd+unix:///export?socket=PATH`.
  ///
  /// TODO(uri): the only caller-visible parser here; goes when the module of NBD URIs is merged.
  public init(parsing uri: String) throws(LintRefusal) {
    guard let colon = uri.firstRange(of: "://") else {
      throw LintRefusal("'\(uri)' is no NBD URI; write nbd:// or nbd+unix://")
    }
    var rest = uri[colon.upperBound...]
    var socket: String?
    if let mark = rest.firstIndex(of: "?") {
      for pair in rest[rest.index(after: mark)...].split(separator: "&") {
        let parts = pair.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        guard parts.count == 2, parts[0] == "socket", socket == nil else {
          throw LintRefusal("'\(pair)' in the URI is not known; only socket=PATH is")
        }
        socket = try LintPlace.decode(parts[1])
      }
      rest = rest[..<mark]
    }
    let slash = rest.firstIndex(of: "/") ?? rest.endIndex
    let authority = rest[..<slash]
    export = try LintPlace.decode(rest[slash...].dropFirst())
    switch uri[..<colon.lowerBound] {
    case "nbd+unix":
      guard authority.isEmpty else {
        throw LintRefusal("nbd+unix has no host: write nbd+unix:///EXPORT?socket=PATH")
      }
      guard let socket, !socket.isEmpty else {
        throw LintRefusal("nbd+unix needs ?socket=PATH")
      }
      address = .unix(path: socket)
    case "nbd", "nbd+tcp":
      guard socket == nil else { throw LintRefusal("socket=PATH belongs to nbd+unix") }
      address = try LintPlace.tcp(authority)
    case "nbds", "nbds+unix": throw LintRefusal("lint does not speak TLS yet")
    case let scheme: throw LintRefusal("the scheme '\(scheme)' is not known")
    }
  }

  private static func tcp(_ authority: Substring) throws(LintRefusal) -> Address {
    var host = authority
    var port: Substring?
    if authority.hasPrefix("["), let bracket = authority.firstIndex(of: "]") {
      host = authority[..<bracket].dropFirst()
      let rest = authority[authority.index(after: bracket)...]
      guard rest.isEmpty || rest.hasPrefix(":") else {
        throw LintRefusal("'\(authority)' is not HOST:PORT")
      }
      port = rest.isEmpty ? nil : rest.dropFirst()
    } else if let colon = authority.lastIndex(of: ":") {
      host = authority[..<colon]
      port = authority[authority.index(after: colon)...]
    }
    guard !host.isEmpty else { throw LintRefusal("the URI names no host") }
    guard let port else { return .tcp(host: try decode(host), port: 10_809) }
    guard let number = UInt16(port), number > 0 else {
      throw LintRefusal("'\(port)' is no port")
    }
    return .tcp(host: try decode(host), port: number)
  }

  /// The text with its %XX replaced by the bytes they mean.
  private static func decode(_ text: Substring) throws(LintRefusal) -> String {
    var bytes: [UInt8] = []
    var rest = text.utf8[...]
    while let byte = rest.popFirst() {
      guard byte == UInt8(ascii: "%") else {
        bytes.append(byte)
        continue
      }
      guard rest.count >= 2, let value = UInt8(String(Substring(rest.prefix(2))), radix: 16) else {
        throw LintRefusal("a % in the URI is not followed by two digits")
      }
      bytes.append(value)
      rest = rest.dropFirst(2)
    }
    guard let decoded = String(validating: bytes, as: UTF8.self), !bytes.contains(0) else {
      throw LintRefusal("the URI is not text")
    }
    return decoded
  }
}
