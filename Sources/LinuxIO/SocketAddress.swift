// SPDX-License-Identifier: Apache-2.0
//
// TCP addresses: from a host's name or number, and back to text. Source: ip(7), ipv6(7),
// getaddrinfo(3), inet_ntop(3).

import Glibc

/// An IPv4 or IPv6 address with a port.
public struct SocketAddress: Hashable, Sendable {
  /// 4 or 16 bytes, as on the wire.
  let bytes: [UInt8]
  public let port: UInt16
  /// The interface of a link-local IPv6 address; else 0.
  let scope: UInt32

  var family: Int32 { bytes.count == 4 ? AF_INET : AF_INET6 }

  /// The host alone: 4 or 16 bytes, as on the wire.
  public var hostBytes: [UInt8] { bytes }

  /// The same address with another port.
  public func with(port: UInt16) -> SocketAddress {
    SocketAddress(bytes: bytes, port: port, scope: scope)
  }

  init(bytes: [UInt8], port: UInt16, scope: UInt32) {
    precondition(bytes.count == 4 || bytes.count == 16, "an address has 4 or 16 bytes")
    self.bytes = bytes
    self.port = port
    self.scope = scope
  }

  /// Whether only this machine can reach it: 127.0.0.0/8 and ::1 (RFC 1122, RFC 4291), and the
  /// former mapped into IPv6.
  public var isLoopback: Bool {
    if bytes.count == 4 { return bytes[0] == 127 }
    let isMapped = bytes[..<10].allSatisfy { $0 == 0 } && bytes[10] == 255 && bytes[11] == 255
    if isMapped { return bytes[12] == 127 }
    return bytes[..<15].allSatisfy { $0 == 0 } && bytes[15] == 1
  }

  /// The addresses of `host`; nil means every address of this machine.
  ///
  /// A number is not looked up anywhere; a name goes through the system's resolver, which reads
  /// files and may ask the network.
  public static func resolve(host: String?, port: UInt16) throws(SocketError) -> [SocketAddress] {
    guard let host else {
      return [
        SocketAddress(bytes: .init(repeating: 0, count: 4), port: port, scope: 0),
        SocketAddress(bytes: .init(repeating: 0, count: 16), port: port, scope: 0),
      ]
    }
    var list: UnsafeMutablePointer<addrinfo>?
    var result = unsafe ask(host, AI_NUMERICHOST, &list)
    if result == EAI_NONAME { result = unsafe ask(host, 0, &list) }
    guard result == 0 else {
      // SAFETY: gai_strerror returns a literal.
      throw .unknownHost(reason: unsafe String(cString: gai_strerror(result)))
    }
    defer { unsafe freeaddrinfo(list) }
    return try unsafe addresses(list, port)
  }

  /// The address that `host` is, as a number: nothing is looked up. nil when it is a name.
  public static func number(
    _ host: String, port: UInt16
  ) throws(SocketError) -> [SocketAddress]? {
    var list: UnsafeMutablePointer<addrinfo>?
    guard unsafe ask(host, AI_NUMERICHOST, &list) == 0 else { return nil }
    defer { unsafe freeaddrinfo(list) }
    return try unsafe addresses(list, port)
  }

  @unsafe private static func ask(
    _ host: String, _ flags: Int32, _ list: inout UnsafeMutablePointer<addrinfo>?
  ) -> Int32 {
    var hints = unsafe addrinfo()
    unsafe hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
    unsafe hints.ai_flags = flags
    // SAFETY: all arguments outlive the call; the caller frees the list.
    return unsafe getaddrinfo(host, nil, &hints, &list)
  }

  @unsafe private static func addresses(
    _ list: UnsafeMutablePointer<addrinfo>?, _ port: UInt16
  ) throws(SocketError) -> [SocketAddress] {
    var addresses: [SocketAddress] = []
    var entry = unsafe list
    while let current = unsafe entry {
      // SAFETY: the list is alive, and each entry's ai_addr is of its family and ai_addrlen.
      if let address = unsafe SocketAddress(current.pointee.ai_addr, port: port) {
        addresses.append(address)
      }
      unsafe entry = unsafe current.pointee.ai_next
    }
    guard !addresses.isEmpty else { throw .unknownHost(reason: "the host has no address") }
    return addresses
  }
}
