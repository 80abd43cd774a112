// SPDX-License-Identifier: Apache-2.0
//
// Raw deflate of one cluster, and zlib's wrapping of it in other formats. Spec: RFC 1951; RFC 1950;
// qcow2.rst, "Compressed Clusters Descriptor". Takes zlib's state for the time of the call;
// performs no I/O.

import BlockTypes
import CZlib

/// zlib over memory that the caller keeps alive; byte counts are those of clusters, at most 2 MiB.
enum Deflate {
  /// log2 of the window, negated as zlib asks for data without a zlib header.
  private static let windowBits: Int32 = -12
  /// That of RFC 1950: 2^15 bytes, with a header.
  private static let wrappedWindowBits: Int32 = 15

  static func unpack(
    _ source: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer
  ) -> BlockErrno {
    var stream = unsafe z_stream()
    guard unsafe cz_inflate_init(&stream, windowBits) == Z_OK else { return .noMemory }
    unsafe aim(&stream, source, target)
    let result = unsafe inflate(&stream, Z_FINISH)
    let missingByteCount = unsafe stream.avail_out
    unsafe inflateEnd(&stream)
    switch result {
    case Z_STREAM_END, Z_BUF_ERROR: return missingByteCount == 0 ? .none : .io
    case Z_MEM_ERROR: return .noMemory
    default: return .io
    }
  }

  /// Unpacks a stream with zlib's header and checksum; returns the bytes that it gave, which are
  /// fewer than `target` has where it ends before, or nil when it is damaged or gives more.
  static func unpackWrapped(
    _ source: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer
  ) -> Int? {
    var stream = unsafe z_stream()
    guard unsafe cz_inflate_init(&stream, wrappedWindowBits) == Z_OK else { return nil }
    unsafe aim(&stream, source, target)
    let result = unsafe inflate(&stream, Z_FINISH)
    let missingByteCount = unsafe stream.avail_out
    unsafe inflateEnd(&stream)
    return result == Z_STREAM_END ? target.count - Int(missingByteCount) : nil
  }

  static func pack(
    _ source: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer
  ) -> ClusterCodec.Packed {
    var stream = unsafe z_stream()
    guard unsafe cz_deflate_init(&stream, windowBits) == Z_OK else { return .failed(.noMemory) }
    unsafe aim(&stream, source, target)
    let result = unsafe deflate(&stream, Z_FINISH)
    let byteCount = unsafe target.count - Int(stream.avail_out)
    unsafe deflateEnd(&stream)
    switch result {
    case Z_STREAM_END: return .packed(byteCount: byteCount)
    case Z_OK, Z_BUF_ERROR: return .notSmaller
    default: return .failed(.noMemory)
    }
  }

  private static func aim(
    _ stream: inout z_stream, _ source: UnsafeRawBufferPointer,
    _ target: UnsafeMutableRawBufferPointer
  ) {
    // SAFETY: zlib reads `avail_in` bytes at `next_in` and writes `avail_out` at `next_out`, which
    // are the areas that the caller vouches for; it never writes through `next_in`.
    unsafe stream.next_in = UnsafeMutablePointer(
      mutating: source.baseAddress?.assumingMemoryBound(to: UInt8.self))
    unsafe stream.avail_in = UInt32(source.count)
    unsafe stream.next_out = target.baseAddress?.assumingMemoryBound(to: UInt8.self)
    unsafe stream.avail_out = UInt32(target.count)
  }
}
