// SPDX-License-Identifier: Apache-2.0
//
// How the compressed clusters of an image are packed. Spec: qcow2.rst, "Header"
// (compression_type), "Compressed Clusters Descriptor". Takes memory for the time of a call;
// performs no I/O, but that loading a library reads its file.

import BlockTypes

/// The compressions of qcow2, numbered as the header does.
@frozen public enum ClusterCodec: UInt8, Sendable, Hashable {
  /// Raw deflate with a window of 2^12 bytes; the header's text calls it zlib.
  case deflate = 0
  case zstd = 1

  /// What became of packing a cluster.
  @frozen public enum Packed: Hashable, Sendable {
    case packed(byteCount: Int)
    /// The cluster takes at least as many bytes packed as plain: store it plain.
    case notSmaller
    case failed(BlockErrno)
  }

  /// The name in options and reports.
  public var name: String {
    switch self {
    case .deflate: "zlib"
    case .zstd: "zstd"
    }
  }

  /// Makes the codec usable. It reads a library's file the first time, so it belongs before
  /// privileges are given up; later calls cost nothing, and any thread may make them.
  ///
  /// - Throws: `ImageError` of kind `unsupported` when the machine lacks the library.
  public func load() throws(ImageError) {
    guard case .zstd = self, let reason = Zstd.load() else { return }
    throw ImageError(
      .unsupported, "the image uses zstd compression, and \(reason); install libzstd")
  }

  /// Unpacks one cluster into all of `plain`.
  ///
  /// `packed` may go on behind the cluster's data: that belongs to the neighbour. The memory that
  /// it takes does not depend on what the data says.
  ///
  /// - Returns: `.none`; `.io` when the data is damaged or gives too few bytes (or, for zstd, a
  ///   frame with too many); `.noMemory`; `.notSupported` before `load`. What `plain` holds after
  ///   a failure is not specified.
  public func unpack(_ packed: RawSpan, into plain: inout MutableRawSpan) -> BlockErrno {
    // SAFETY: here and below the areas are those of the spans, and live as long as the closures.
    unsafe plain.withUnsafeMutableBytes { target in
      unsafe packed.withUnsafeBytes { source in
        guard unsafe !source.isEmpty, unsafe !target.isEmpty else { return .io }
        return switch self {
        case .deflate: unsafe Deflate.unpack(source, into: target)
        case .zstd: unsafe Zstd.unpack(source, into: target)
        }
      }
    }
  }

  /// Packs one cluster into the start of `packed`, which has room for as many bytes as `plain`.
  public func pack(_ plain: RawSpan, into packed: inout MutableRawSpan) -> Packed {
    precondition(packed.byteCount >= plain.byteCount, "a cluster is packed into too little room")
    precondition(plain.byteCount > 1, "there is nothing to pack")
    return unsafe packed.withUnsafeMutableBytes { target in
      unsafe plain.withUnsafeBytes { source in
        let room = unsafe UnsafeMutableRawBufferPointer(rebasing: target[..<(source.count - 1)])
        return switch self {
        case .deflate: unsafe Deflate.pack(source, into: room)
        case .zstd: unsafe Zstd.pack(source, into: room)
        }
      }
    }
  }
}
