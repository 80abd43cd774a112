// SPDX-License-Identifier: Apache-2.0
//
// `HOST:PORT` as the user writes it. This file performs no I/O.

/// A host, not yet looked up, and a port.
public struct TCPEndpoint: Hashable, Sendable {
  /// A name or a number; nil means every address of this machine.
  public let host: String?
  /// 0 lets the kernel choose.
  public let port: UInt16

  public init(host: String?, port: UInt16) {
    self.host = host
    self.port = port
  }

  /// Reads `HOST:PORT`, `[IPV6]:PORT`, and `*:PORT` or `:PORT` for every address.
  ///
  /// - Returns: nil for anything else.
  public init?(parsing text: String) {
    guard let colon = text.lastIndex(of: ":") else { return nil }
    let digits = text[text.index(after: colon)...]
    guard digits.utf8.allSatisfy({ UInt8(ascii: "0")...UInt8(ascii: "9") ~= $0 }),
      let port = UInt16(digits)
    else { return nil }
    var host = text[..<colon]
    if host.hasPrefix("["), host.hasSuffix("]") {
      host = host.dropFirst().dropLast()
      guard host.contains(":") else { return nil }
    } else if host.contains(":") {
      return nil
    }
    self.host = host.isEmpty || host == "*" ? nil : String(host)
    self.port = port
  }
}
