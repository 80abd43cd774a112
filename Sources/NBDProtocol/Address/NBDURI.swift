// SPDX-License-Identifier: Apache-2.0
//
// Addresses of NBD exports as people write them. Spec: uri.md of the NBD project, RFC 3986.
// This file performs no I/O.

/// Where an export is, what it is called, and what TLS is wanted for it.
public struct NBDURI: Hashable, Sendable {
  /// How the server is reached.
  public enum Endpoint: Hashable, Sendable {
    /// A host's name or number without brackets; nil when the URI names none.
    case tcp(host: String?, port: UInt16)
    /// A UNIX socket's path; a leading NUL means an abstract address (unix(7)).
    case unix(path: String)
    case vsock(contextID: UInt32, port: UInt32)
  }

  /// What the query says about TLS; it has no effect unless `requiresTLS`.
  public struct TLSWishes: Hashable, Sendable {
    public enum Kind: String, Hashable, Sendable, CaseIterable { case anon, x509, psk }

    public var kind: Kind?
    public var hostname: String?
    public var verifiesPeer: Bool?
    public var certificatesFolder: String?
    public var keyFile: String?

    public init() {}
  }

  /// The port that IANA assigned to NBD.
  public static var defaultPort: UInt16 { 10_809 }
  /// Longest URI in bytes: a name and a path of 4096 bytes, each byte as `%XX`, and the rest.
  public static var byteCountMax: Int { 32_768 }

  public var endpoint: Endpoint
  /// At most 4096 bytes of UTF-8 without NUL; empty: the server's default export.
  public var exportName: String
  /// `nbds:` and its kin: without TLS the connection must fail.
  public var requiresTLS: Bool
  /// From the authority; some kinds of TLS ask for it.
  public var userName: String?
  public var tls = TLSWishes()

  public init(
    endpoint: Endpoint, exportName: String = "", requiresTLS: Bool = false,
    userName: String? = nil
  ) {
    self.endpoint = endpoint
    self.exportName = exportName
    self.requiresTLS = requiresTLS
    self.userName = userName
  }

  /// The same server, another export.
  public func with(exportName: String) -> NBDURI {
    var copy = self
    copy.exportName = exportName
    return copy
  }
}

/// What is wrong with the text of a URI.
public struct NBDURIFault: Error, Hashable, Sendable, CustomStringConvertible {
  /// One sentence that names the part at fault.
  public let description: String

  init(_ description: String) { self.description = description }
}

extension NBDURI: CustomStringConvertible {
  /// The URI in its usual form; parsing it gives this value again.
  public var description: String {
    let secure = requiresTLS ? "nbds" : "nbd"
    let user = userName.map { PercentText.encode($0, keeping: "-._~") + "@" } ?? ""
    let name = PercentText.encode(exportName, keeping: "-._~!$&'()*+,;=:@/")
    var queries: [String] = []
    var text: String
    switch endpoint {
    case .tcp(let host, let port):
      text = "\(secure)://\(user)\(NBDURI.authority(host))"
      if port != NBDURI.defaultPort { text += ":\(port)" }
    case .unix(let path):
      text = "\(secure)+unix://\(user)"
      queries.append("socket=" + PercentText.encode(path, keeping: "-._~/:@"))
    case .vsock(let contextID, let port):
      text = "\(secure)+vsock://\(user)\(contextID)"
      if port != UInt32(NBDURI.defaultPort) { text += ":\(port)" }
    }
    queries += tlsQueries
    text += "/" + name
    return queries.isEmpty ? text : text + "?" + queries.joined(separator: "&")
  }

  private static func authority(_ host: String?) -> String {
    guard let host else { return "" }
    if host.contains(":") { return "[\(PercentText.encode(host, keeping: "-._~:"))]" }
    return PercentText.encode(host, keeping: "-._~")
  }

  private var tlsQueries: [String] {
    var queries: [String] = []
    if let kind = tls.kind { queries.append("tls-type=\(kind.rawValue)") }
    if let name = tls.hostname {
      queries.append("tls-hostname=" + PercentText.encode(name, keeping: "-._~:"))
    }
    if let verifies = tls.verifiesPeer { queries.append("tls-verify-peer=\(verifies ? 1 : 0)") }
    if let folder = tls.certificatesFolder {
      queries.append("tls-certificates=" + PercentText.encode(folder, keeping: "-._~/:@"))
    }
    if let file = tls.keyFile {
      queries.append("tls-psk-file=" + PercentText.encode(file, keeping: "-._~/:@"))
    }
    return queries
  }
}
