// SPDX-License-Identifier: Apache-2.0
//
// Raw deflate of one compressed cluster. Spec: RFC 1951; qcow2.rst, "Compressed Clusters
// Descriptor". Allocates zlib's state for the time of the call; performs no I/O.

import BlockTypes
import CZlib

/// The decompressor of zlib clusters.
public enum Inflate {
  /// log2 of the deflate window of qcow2, negated as zlib asks for data without a zlib header.
  private static let windowBits: Int32 = -12

  /// Decompresses one cluster into all of `output`.
  ///
  /// Returns whether the data gave at least `output.byteCount` bytes without an error. Bytes of
  /// `input` after the compressed data are ignored: they belong to the neighbour. What `output`
  /// holds after a failure is not specified.
  public static func decompress(_ input: RawSpan, into output: inout MutableRawSpan) -> Bool {
    unsafe output.withUnsafeMutableBytes { target in
      unsafe input.withUnsafeBytes { source in
        guard let sourceStart = source.baseAddress, let targetStart = target.baseAddress else {
          return false
        }
        // SAFETY: both pointers come with the byte counts of their own spans.
        return unsafe inflateCluster(
          source: sourceStart, sourceByteCount: source.count, target: targetStart,
          targetByteCount: target.count) == .none
      }
    }
  }

  /// Decompresses one cluster between memory areas that the caller keeps alive.
  ///
  /// Returns `.none`, `.io` when the data is damaged or too short, or `.noMemory`.
  /// Traps when a byte count is negative or does not fit in 32 bits: clusters are at most 2 MiB.
  public static func inflateCluster(
    source: UnsafeRawPointer, sourceByteCount: Int, target: UnsafeMutableRawPointer,
    targetByteCount: Int
  ) -> BlockErrno {
    var stream = unsafe z_stream()
    guard unsafe cz_inflate_init(&stream, windowBits) == Z_OK else { return .noMemory }
    // SAFETY: zlib reads `avail_in` bytes at `next_in` and writes `avail_out` at `next_out`, which
    // are the areas that the caller vouches for; it never writes through `next_in`.
    unsafe stream.next_in = UnsafeMutablePointer(
      mutating: source.assumingMemoryBound(to: UInt8.self))
    unsafe stream.avail_in = UInt32(sourceByteCount)
    unsafe stream.next_out = target.assumingMemoryBound(to: UInt8.self)
    unsafe stream.avail_out = UInt32(targetByteCount)
    let result = unsafe inflate(&stream, Z_FINISH)
    let missingByteCount = unsafe stream.avail_out
    unsafe inflateEnd(&stream)
    switch result {
    case Z_STREAM_END, Z_BUF_ERROR: return missingByteCount == 0 ? .none : .io
    case Z_MEM_ERROR: return .noMemory
    default: return .io
    }
  }
}
