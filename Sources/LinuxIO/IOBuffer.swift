// SPDX-License-Identifier: Apache-2.0
//
// A piece of memory that requests, the kernel and the socket share without copying.

import BlockTypes
import Glibc

/// A handle to bytes that a `BufferPool` owns: page-aligned at its start, bounds-checked on every
/// access. Copying the handle copies no bytes; who acquired it releases it to its pool, once.
@frozen @safe public struct IOBuffer: BitwiseCopyable, @unchecked Sendable {
  @usableFromInline let base: UnsafeMutableRawPointer?
  public let byteCount: Int

  @usableFromInline init(base: UnsafeMutableRawPointer?, byteCount: Int) {
    unsafe self.base = unsafe base
    self.byteCount = byteCount
  }

  /// No bytes at all.
  @inlinable public static var empty: IOBuffer { IOBuffer(emptyBase: ()) }
  @inlinable init(emptyBase: Void) {
    unsafe self.base = nil
    self.byteCount = 0
  }

  @inlinable public var isEmpty: Bool { byteCount == 0 }

  @inlinable @inline(__always)
  func address(of start: Int, _ count: Int) -> UnsafeMutableRawPointer {
    precondition(
      start >= 0 && count >= 0 && start <= byteCount && count <= byteCount - start,
      "a range passes the end of its buffer")
    // SAFETY: the range lies inside the allocation, and an empty buffer has no valid range but 0.
    return unsafe base.unsafelyUnwrapped + start
  }

  /// The bytes `start ..< start + count`, for a reader that does not keep them.
  @inlinable public func withSpan<Result>(
    _ start: Int, _ count: Int, _ body: (RawSpan) -> Result
  ) -> Result {
    guard count > 0 else { return body(RawSpan()) }
    let bytes = unsafe UnsafeRawBufferPointer(start: address(of: start, count), count: count)
    return body(unsafe bytes.bytes)
  }

  /// The bytes `start ..< start + count`, for a writer that does not keep them.
  @inlinable public func withMutableSpan<Result>(
    _ start: Int, _ count: Int, _ body: (inout MutableRawSpan) -> Result
  ) -> Result {
    let bytes = unsafe UnsafeMutableRawBufferPointer(
      start: address(of: start, count), count: count)
    var span = unsafe MutableRawSpan(_unsafeBytes: bytes)
    return body(&span)
  }

  @inlinable public func zero(_ start: Int, _ count: Int) {
    guard count > 0 else { return }
    unsafe memset(address(of: start, count), 0, count)
  }

  /// Whether `count` bytes, at least one, are all zero.
  public func isZero(_ start: Int, _ count: Int) -> Bool {
    precondition(count > 0, "no byte is compared")
    let bytes = unsafe address(of: start, count)
    // Each byte is like its neighbour, and the first one is zero.
    return unsafe bytes.load(as: UInt8.self) == 0 && memcmp(bytes, bytes + 1, count - 1) == 0
  }

  /// Copies `count` bytes from `source`; the two ranges must not overlap.
  @inlinable public func copy(
    _ start: Int, from source: IOBuffer, _ sourceStart: Int, _ count: Int
  ) {
    guard count > 0 else { return }
    unsafe memcpy(address(of: start, count), source.address(of: sourceStart, count), count)
  }

  /// Copies all of `bytes` to `start` on.
  public func copy(_ start: Int, from bytes: [UInt8]) {
    guard !bytes.isEmpty else { return }
    // SAFETY: the array lives during the call, and `address` has checked the room for its bytes.
    unsafe bytes.withUnsafeBytes { source in
      _ = unsafe memcpy(address(of: start, bytes.count), source.baseAddress!, bytes.count)
    }
  }

  /// Appends the bytes `start ..< start + count` to `bytes`.
  public func append(_ start: Int, _ count: Int, to bytes: inout [UInt8]) {
    guard count > 0 else { return }
    unsafe bytes.append(
      contentsOf: UnsafeRawBufferPointer(start: address(of: start, count), count: count))
  }

  /// Moves `count` bytes within the buffer; the two ranges may overlap.
  @inlinable public func move(_ start: Int, from sourceStart: Int, _ count: Int) {
    guard count > 0 else { return }
    unsafe memmove(address(of: start, count), address(of: sourceStart, count), count)
  }

  @inlinable public func loadBigEndian64(at offset: Int) -> UInt64 {
    unsafe UInt64(
      bigEndian: address(of: offset, 8).loadUnaligned(as: UInt64.self))
  }

  @inlinable public func storeBigEndian64(_ value: UInt64, at offset: Int) {
    unsafe address(of: offset, 8).storeBytes(of: value.bigEndian, as: UInt64.self)
  }

  @inlinable public func storeBigEndian32(_ value: UInt32, at offset: Int) {
    unsafe address(of: offset, 4).storeBytes(of: value.bigEndian, as: UInt32.self)
  }

  /// Loads and stores a word in the machine's own byte order, for tables that never leave memory.
  @inlinable public func loadWord(at offset: Int) -> UInt64 {
    unsafe address(of: offset, 8).loadUnaligned(as: UInt64.self)
  }

  @inlinable public func storeWord(_ value: UInt64, at offset: Int) {
    unsafe address(of: offset, 8).storeBytes(of: value, as: UInt64.self)
  }

  /// Calls `body` with the raw address, for C code that fills or reads the range at once.
  public func withAddress<Result>(
    _ start: Int, _ count: Int, _ body: (UnsafeMutableRawPointer) -> Result
  ) -> Result {
    unsafe body(address(of: start, count))
  }
}
