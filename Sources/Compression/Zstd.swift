// SPDX-License-Identifier: Apache-2.0
//
// Frames of zstd that make up one cluster. Spec: RFC 8878; qcow2.rst, "Compressed Clusters
// Descriptor". Takes a context of fixed size for the time of the call: a frame that asks for a
// large window gets none, because what it gives is never more than a cluster. No I/O but `load`.

import BlockTypes
import CZstd
import Glibc

/// libzstd over memory that the caller keeps alive.
enum Zstd {
  /// Returns nil, or why there is no zstd.
  static func load() -> String? {
    // SAFETY: what is returned is a constant of the shim.
    unsafe czstd_load().map { unsafe String(cString: $0) }
  }

  /// Decompresses frame after frame until the cluster is full. Each step takes bytes of the source,
  /// so it ends.
  static func unpack(
    _ source: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer
  ) -> BlockErrno {
    guard load() == nil else { return .notSupported }
    guard let decompressor = unsafe czstd_create_decompressor() else { return .noMemory }
    defer { unsafe czstd_free_decompressor(decompressor) }
    var rest = unsafe source
    var room = unsafe target
    while unsafe !room.isEmpty {
      guard let start = rest.baseAddress, let place = room.baseAddress else {
        return .io
      }
      // SAFETY: each pointer comes with the count of its own area, and the frame lies inside it.
      let frameCount = unsafe czstd_frame_count(start, rest.count)
      guard frameCount > 0 else { return .io }
      let byteCount = unsafe czstd_decompress_frame(
        decompressor, place, room.count, start, frameCount)
      guard byteCount >= 0 else { return .io }
      unsafe rest = UnsafeRawBufferPointer(rebasing: rest[frameCount...])
      unsafe room = UnsafeMutableRawBufferPointer(rebasing: room[byteCount...])
    }
    return .none
  }

  static func pack(
    _ source: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer
  ) -> ClusterCodec.Packed {
    guard load() == nil else { return .failed(.notSupported) }
    guard let start = source.baseAddress, let place = target.baseAddress else {
      preconditionFailure("a cluster without an address is packed")
    }
    // SAFETY: each pointer comes with the count of its own area.
    let byteCount = unsafe czstd_compress(place, target.count, start, source.count)
    if byteCount > 0 { return .packed(byteCount: byteCount) }
    return byteCount == -Int(ENOSPC) ? .notSmaller : .failed(.noMemory)
  }
}
