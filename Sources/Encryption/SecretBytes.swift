// SPDX-License-Identifier: Apache-2.0
//
// Memory for keys: pages of their own that no core file shows, wiped when they are given back.
// Source: mmap(2), madvise(2) (MADV_DONTDUMP), mlock(2), explicit_bzero(3).

import Glibc

/// Bytes that nobody else is to see. They begin as zeroes.
@safe public final class SecretBytes: @unchecked Sendable {
  public let byteCount: Int
  private let base: UnsafeMutableRawPointer
  private let mappedByteCount: Int

  public init(byteCount: Int) {
    precondition(byteCount >= 0 && byteCount <= 1 << 24, "a secret has an absurd size")
    self.byteCount = byteCount
    mappedByteCount = (max(byteCount, 1) + 4095) / 4096 * 4096
    // SAFETY: the mapping is private to this object and ends in `deinit`.
    let base = unsafe mmap(
      nil, mappedByteCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    guard let base = unsafe base, unsafe base != MAP_FAILED else {
      preconditionFailure("there is no memory for a key")
    }
    unsafe self.base = base
    // Both may be refused: by an old kernel, and by the limit of locked memory. The process as a
    // whole is kept out of core files, too.
    _ = unsafe madvise(base, mappedByteCount, MADV_DONTDUMP)
    _ = unsafe mlock(base, mappedByteCount)
  }

  deinit {
    unsafe explicit_bzero(base, mappedByteCount)
    unsafe munmap(base, mappedByteCount)
  }

  /// A copy of `bytes`, whose own place the caller wipes.
  public convenience init(copying bytes: [UInt8]) {
    self.init(byteCount: bytes.count)
    for (index, byte) in bytes.enumerated() { self[index] = byte }
  }

  /// The first `count` bytes of another secret.
  public convenience init(prefix count: Int, of other: SecretBytes) {
    self.init(byteCount: count)
    for index in 0..<count { self[index] = other[index] }
  }

  public subscript(index: Int) -> UInt8 {
    get {
      precondition(index >= 0 && index < byteCount, "a byte past the end of a secret was read")
      return unsafe base.load(fromByteOffset: index, as: UInt8.self)
    }
    set {
      precondition(index >= 0 && index < byteCount, "a byte past the end of a secret was set")
      unsafe base.storeBytes(of: newValue, toByteOffset: index, as: UInt8.self)
    }
  }

  /// All of the bytes, for a writer that does not keep them.
  public func withMutableSpan<Result, Failure: Error>(
    _ body: (inout MutableRawSpan) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    var span = unsafe MutableRawSpan(
      _unsafeBytes: UnsafeMutableRawBufferPointer(start: base, count: byteCount))
    return try body(&span)
  }

  /// The address of `count` bytes from `start` on, for C code.
  func address(_ start: Int, _ count: Int) -> UnsafeMutableRawPointer {
    precondition(
      start >= 0 && count >= 0 && start <= byteCount && count <= byteCount - start,
      "a range passes the end of a secret")
    return unsafe base + start
  }

  /// Whether the bytes are the same; takes as long for any others of the size.
  public func equals(_ other: SecretBytes) -> Bool {
    guard byteCount == other.byteCount else { return false }
    var difference: UInt8 = 0
    for index in 0..<byteCount { difference |= self[index] ^ other[index] }
    return difference == 0
  }
}
