// SPDX-License-Identifier: Apache-2.0
//
// From text to an NBD URI. Spec: uri.md of the NBD project, "NBD URI components"; RFC 3986,
// section 3; `tls-certificates` and `tls-psk-file` are those of libnbd. This file performs no I/O.

extension NBDURI {
  private enum Transport: String { case tcp, unix, vsock }

  /// Whether `text` starts with the scheme of an NBD URI, right or wrong in the rest.
  public static func looksLike(_ text: String) -> Bool {
    guard let end = text.firstIndex(of: ":"), text[end...].hasPrefix("://") else { return false }
    let scheme = text[..<end].lowercased()
    return scheme == "nbd" || scheme == "nbds" || scheme.hasPrefix("nbd+")
      || scheme.hasPrefix("nbds+")
  }

  /// Parses `text`; each fault names the part that is wrong.
  public init(_ text: String) throws(NBDURIFault) {
    guard text.utf8.count <= NBDURI.byteCountMax else {
      throw NBDURIFault("the URI is longer than \(NBDURI.byteCountMax) bytes")
    }
    guard text.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7f }) else {
      throw NBDURIFault("the URI holds a character that has to be written as %XX")
    }
    guard let colon = text.firstIndex(of: ":"), text[colon...].hasPrefix("://") else {
      throw NBDURIFault("no scheme: an NBD URI begins with nbd:// or nbd+unix://")
    }
    let (transport, requiresTLS) = try NBDURI.scheme(text[..<colon])
    var rest = text[text.index(colon, offsetBy: 3)...]
    guard !rest.contains("#") else { throw NBDURIFault("an NBD URI has no fragment (#)") }
    let query = NBDURI.cut(&rest, after: "?")
    let path = NBDURI.cut(&rest, after: "/")
    let user = NBDURI.user(of: &rest)
    let name = try NBDURI.text(path ?? "", "the export name")
    guard name.utf8.count <= ExportName.byteCountMax, !name.utf8.contains(0) else {
      throw NBDURIFault("the export name is longer than 4096 bytes or holds NUL")
    }
    var parameters = try NBDURI.parameters(query)
    switch transport {
    case .tcp: endpoint = try NBDURI.tcp(rest)
    case .vsock: endpoint = try NBDURI.vsock(rest)
    case .unix:
      guard rest.isEmpty else {
        throw NBDURIFault("a UNIX socket has no host, but \"\(rest)\" is where one would be")
      }
      guard let socket = parameters.removeValue(forKey: "socket") else {
        throw NBDURIFault("the query has no socket=PATH, which nbd+unix needs")
      }
      endpoint = .unix(path: try NBDURI.socketPath(socket))
    }
    exportName = name
    self.requiresTLS = requiresTLS
    userName = try user.map { (text) throws(NBDURIFault) in try NBDURI.text(text, "the user") }
    tls = try TLSWishes(taking: &parameters)
    if parameters["socket"] != nil {
      throw NBDURIFault("socket= belongs to nbd+unix, not to \(text[..<colon])")
    }
    let unknown = parameters.keys.filter { !$0.hasPrefix("x-") }.sorted()
    if let key = unknown.first { throw NBDURIFault("the query parameter \"\(key)\" is not known") }
  }

  private static func scheme(
    _ text: Substring
  ) throws(NBDURIFault) -> (transport: Transport, requiresTLS: Bool) {
    let scheme = text.lowercased()
    let parts = scheme.split(separator: "+", maxSplits: 1, omittingEmptySubsequences: false)
    let transport = parts.count == 1 ? Transport.tcp : Transport(rawValue: String(parts[1]))
    guard let transport, parts[0] == "nbd" || parts[0] == "nbds" else {
      throw NBDURIFault(
        "the scheme \"\(text)\" is not one of nbd, nbds, nbd+tcp, nbd+unix, nbds+unix, nbd+vsock,"
          + " nbds+vsock")
    }
    return (transport, parts[0] == "nbds")
  }

  /// Cuts `text` at the first `mark` and returns what stood behind it; nil without a mark.
  private static func cut(_ text: inout Substring, after mark: Character) -> Substring? {
    guard let index = text.firstIndex(of: mark) else { return nil }
    let behind = text[text.index(after: index)...]
    text = text[..<index]
    return behind
  }

  private static func user(of authority: inout Substring) -> Substring? {
    guard let at = authority.lastIndex(of: "@") else { return nil }
    let user = authority[..<at]
    authority = authority[authority.index(after: at)...]
    return user
  }

  private static func tcp(_ authority: Substring) throws(NBDURIFault) -> Endpoint {
    let (host, port) = try hostAndPort(authority)
    guard let number = UInt16(exactly: port ?? UInt32(defaultPort)), number > 0 else {
      throw NBDURIFault("the port is not a number from 1 to 65535")
    }
    let name = try text(host, "the host")
    guard !name.utf8.contains(0) else { throw NBDURIFault("the host holds NUL") }
    return .tcp(host: name.isEmpty ? nil : name, port: number)
  }

  private static func vsock(_ authority: Substring) throws(NBDURIFault) -> Endpoint {
    let (host, port) = try hostAndPort(authority)
    guard isNumber(host), let contextID = UInt32(host) else {
      throw NBDURIFault("a vsock address is a context id, a number; \"\(host)\" is none")
    }
    return .vsock(contextID: contextID, port: port ?? UInt32(defaultPort))
  }

  private static func hostAndPort(
    _ authority: Substring
  ) throws(NBDURIFault) -> (host: Substring, port: UInt32?) {
    var host = authority
    var portText: Substring?
    if authority.first == "[" {
      guard let end = authority.firstIndex(of: "]") else {
        throw NBDURIFault("the host begins with [ and has no ]")
      }
      host = authority[authority.index(after: authority.startIndex)..<end]
      guard host.contains(":") else {
        throw NBDURIFault("what is in brackets is no IPv6 address: \"\(host)\"")
      }
      let behind = authority[authority.index(after: end)...]
      guard behind.isEmpty || behind.first == ":" else {
        throw NBDURIFault("\"\(behind)\" follows the host")
      }
      if !behind.isEmpty { portText = behind.dropFirst() }
    } else if let colon = authority.firstIndex(of: ":") {
      host = authority[..<colon]
      portText = authority[authority.index(after: colon)...]
      if let portText, portText.contains(":") {
        throw NBDURIFault("an IPv6 address has to be in brackets: [\(authority)]")
      }
    }
    // RFC 3986, section 3.2.3: the port may be empty.
    guard let portText, !portText.isEmpty else { return (host, nil) }
    guard isNumber(portText), let port = UInt32(portText) else {
      throw NBDURIFault("the port \"\(portText)\" is not a number")
    }
    return (host, port)
  }

  /// `UInt32("+1")` is a number for Swift, and not for a URI.
  private static func isNumber(_ text: Substring) -> Bool {
    !text.isEmpty && text.utf8.allSatisfy { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }
  }

  private static func parameters(
    _ query: Substring?
  ) throws(NBDURIFault) -> [String: String] {
    var found: [String: String] = [:]
    for pair in (query ?? "").split(separator: "&") {
      var rawKey = pair
      guard let value = cut(&rawKey, after: "=") else {
        throw NBDURIFault("the query parameter \"\(pair)\" has no value")
      }
      let key = try text(rawKey, "a query parameter's name")
      guard found.updateValue(try text(value, "the value of \"\(key)\""), forKey: key) == nil
      else { throw NBDURIFault("the query parameter \"\(key)\" is there twice") }
    }
    return found
  }

  /// unix(7): 107 bytes of a path and its NUL, or 108 of an abstract address with its leading one.
  private static func socketPath(_ path: String) throws(NBDURIFault) -> String {
    guard !path.isEmpty else { throw NBDURIFault("socket= is empty") }
    guard !path.utf8.dropFirst().contains(0) else {
      throw NBDURIFault("NUL stands in the middle of socket=")
    }
    guard path.utf8.count <= 107 else {
      throw NBDURIFault("the socket's path has \(path.utf8.count) bytes, and at most 107 fit")
    }
    return path
  }

  fileprivate static func text(
    _ encoded: Substring, _ subject: String
  ) throws(NBDURIFault) -> String {
    guard let bytes = PercentText.bytes(of: encoded) else {
      throw NBDURIFault("\(subject) has a % without two hexadecimal digits behind it")
    }
    guard let text = String(validating: bytes, as: UTF8.self) else {
      throw NBDURIFault("\(subject) is not UTF-8")
    }
    return text
  }
}

extension NBDURI.TLSWishes {
  fileprivate init(taking parameters: inout [String: String]) throws(NBDURIFault) {
    self.init()
    if let text = parameters.removeValue(forKey: "tls-type") {
      guard let kind = Kind(rawValue: text) else {
        throw NBDURIFault("tls-type=\(text) is not one of anon, x509, psk")
      }
      self.kind = kind
    }
    if let text = parameters.removeValue(forKey: "tls-verify-peer") {
      guard text == "0" || text == "1" else {
        throw NBDURIFault("tls-verify-peer=\(text) is neither 0 nor 1")
      }
      verifiesPeer = text == "1"
    }
    hostname = parameters.removeValue(forKey: "tls-hostname")
    certificatesFolder = parameters.removeValue(forKey: "tls-certificates")
    keyFile = parameters.removeValue(forKey: "tls-psk-file")
  }
}
