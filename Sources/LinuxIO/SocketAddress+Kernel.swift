// SPDX-License-Identifier: Apache-2.0
//
// TCP addresses in the shape that the kernel wants. Source: ip(7), ipv6(7), bind(2), connect(2),
// getsockname(2), getpeername(2).

import Glibc

extension SocketAddress {
  /// nil when `address` is of another family than IPv4 and IPv6.
  ///
  /// `address` must point to the whole structure of its family.
  @unsafe init?(_ address: UnsafePointer<sockaddr>?, port: UInt16? = nil) {
    guard let address = unsafe address else { return nil }
    // SAFETY: the caller promises the whole structure; the family says which.
    switch unsafe Int32(address.pointee.sa_family) {
    case AF_INET:
      let value = unsafe UnsafeRawPointer(address).load(as: sockaddr_in.self)
      let bytes = unsafe withUnsafeBytes(of: value.sin_addr) { unsafe [UInt8]($0) }
      self.init(bytes: bytes, port: port ?? UInt16(bigEndian: value.sin_port), scope: 0)
    case AF_INET6:
      let value = unsafe UnsafeRawPointer(address).load(as: sockaddr_in6.self)
      let bytes = unsafe withUnsafeBytes(of: value.sin6_addr) { unsafe [UInt8]($0) }
      self.init(
        bytes: bytes, port: port ?? UInt16(bigEndian: value.sin6_port),
        scope: value.sin6_scope_id)
    default: return nil
    }
  }

  /// The address that `descriptor` is bound to.
  init?(boundTo descriptor: Int32) {
    var storage = sockaddr_storage()
    var byteCount = socklen_t(MemoryLayout<sockaddr_storage>.size)
    // SAFETY: the storage is large and aligned enough for every family, and outlives the calls.
    let address = unsafe withUnsafeMutableBytes(of: &storage) { buffer -> SocketAddress? in
      guard let base = unsafe buffer.baseAddress?.assumingMemoryBound(to: sockaddr.self),
        unsafe getsockname(descriptor, base, &byteCount) == 0
      else { return nil }
      return unsafe SocketAddress(base)
    }
    guard let address else { return nil }
    self = address
  }

  /// The address of the other end of `descriptor`; nil when that is gone, or not TCP.
  init?(connectedTo descriptor: Int32) {
    var storage = sockaddr_storage()
    var byteCount = socklen_t(MemoryLayout<sockaddr_storage>.size)
    // SAFETY: as above.
    let address = unsafe withUnsafeMutableBytes(of: &storage) { buffer -> SocketAddress? in
      guard let base = unsafe buffer.baseAddress?.assumingMemoryBound(to: sockaddr.self),
        unsafe getpeername(descriptor, base, &byteCount) == 0
      else { return nil }
      return unsafe SocketAddress(base)
    }
    guard let address else { return nil }
    self = address
  }

  func bind(_ descriptor: Int32) throws(SocketError) {
    // SAFETY: the address outlives the call and has the size that is passed.
    let result = unsafe withKernelAddress { unsafe Glibc.bind(descriptor, $0, $1) }
    guard result == 0 else {
      throw errno == EADDRINUSE ? .taken : .system(SystemError(errno: errno, call: "bind"))
    }
  }

  /// Starts to connect `descriptor` to this address; returns 0 or an errno, such as EINPROGRESS.
  func connect(_ descriptor: Int32) -> Int32 {
    // SAFETY: as above.
    let result = unsafe withKernelAddress { unsafe Glibc.connect(descriptor, $0, $1) }
    return result == 0 ? 0 : errno
  }

  /// Calls `body` with this address in the shape of its family, and its size.
  @unsafe private func withKernelAddress(
    _ body: (UnsafePointer<sockaddr>?, socklen_t) -> Int32
  ) -> Int32 {
    if bytes.count == 4 {
      var value = sockaddr_in()
      value.sin_family = sa_family_t(AF_INET)
      value.sin_port = port.bigEndian
      unsafe withUnsafeMutableBytes(of: &value.sin_addr) { unsafe $0.copyBytes(from: bytes) }
      // SAFETY: `value` outlives the call and has the size that is passed.
      return unsafe withUnsafeBytes(of: &value) { unsafe SocketAddress.call(body, with: $0) }
    }
    var value = sockaddr_in6()
    value.sin6_family = sa_family_t(AF_INET6)
    value.sin6_port = port.bigEndian
    value.sin6_scope_id = scope
    unsafe withUnsafeMutableBytes(of: &value.sin6_addr) { unsafe $0.copyBytes(from: bytes) }
    // SAFETY: as above.
    return unsafe withUnsafeBytes(of: &value) { unsafe SocketAddress.call(body, with: $0) }
  }

  @unsafe private static func call(
    _ body: (UnsafePointer<sockaddr>?, socklen_t) -> Int32, with buffer: UnsafeRawBufferPointer
  ) -> Int32 {
    unsafe body(
      buffer.baseAddress?.assumingMemoryBound(to: sockaddr.self), socklen_t(buffer.count))
  }
}

extension SocketAddress: CustomStringConvertible {
  /// `127.0.0.1:10809`, `[::1]:10809`.
  public var description: String {
    var text = [CChar](repeating: 0, count: Int(INET6_ADDRSTRLEN))
    // SAFETY: `bytes` has the size of its family, `text` that of the longest address.
    _ = unsafe inet_ntop(family, bytes, &text, socklen_t(text.count))
    let host = String(decoding: text.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
    return bytes.count == 4 ? "\(host):\(port)" : "[\(host)]:\(port)"
  }
}
