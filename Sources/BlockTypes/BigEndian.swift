// SPDX-License-Identifier: Apache-2.0
//
// Bounds-checked big-endian loads and stores: the byte order of NBD and of qcow2. The loaders below
// are the only place outside LinuxIO, Sandbox, Compression and TLS that says `unsafe`.

extension RawSpan {
  /// Loads an integer stored in big-endian order at `offset`. Traps outside the span.
  @inlinable @inline(__always)
  public func loadBigEndian<T: FixedWidthInteger & BitwiseCopyable>(
    _ type: T.Type, at offset: Int
  ) -> T {
    precondition(
      offset >= 0 && MemoryLayout<T>.size <= byteCount
        && offset <= byteCount - MemoryLayout<T>.size,
      "a load passes the end of its span")
    // SAFETY: the bounds were checked above, and every bit pattern of an integer is valid.
    return unsafe T(bigEndian: unsafeLoadUnaligned(fromUncheckedByteOffset: offset, as: T.self))
  }

  @inlinable @inline(__always) public func loadByte(at offset: Int) -> UInt8 {
    loadBigEndian(UInt8.self, at: offset)
  }
}

extension [UInt8] {
  /// Loads an integer stored in big-endian order at `offset`. Traps outside the array.
  @inlinable public func loadBigEndian<T: FixedWidthInteger & BitwiseCopyable>(
    _ type: T.Type, at offset: Int
  ) -> T {
    // SAFETY: the span does not outlive the closure, and `loadBigEndian` checks its bounds.
    unsafe withUnsafeBytes { unsafe $0.bytes.loadBigEndian(type, at: offset) }
  }
}

extension MutableRawSpan {
  /// Stores an integer in big-endian order at `offset`. Traps outside the span.
  @_lifetime(self: copy self)
  @inlinable @inline(__always)
  public mutating func storeBigEndian<T: FixedWidthInteger & BitwiseCopyable>(
    _ value: T, at offset: Int
  ) {
    storeBytes(of: value.bigEndian, toByteOffset: offset, as: T.self)
  }
}
