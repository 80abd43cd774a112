// SPDX-License-Identifier: Apache-2.0
//
// Packing and unpacking of arrays, off the hot path, and deflate as other image formats wrap it.
// Spec: RFC 1950. Takes memory for the time of a call; performs no I/O.

import BlockTypes

/// A stream with a header and a checksum, such as a compressed grain of a VMDK.
public enum ZlibStream {
  /// Unpacks one stream; `packed` may go on behind it.
  ///
  /// Returns the bytes that the stream gave; nil when it is damaged, its checksum is wrong, or it
  /// gives more than `byteCountMax`.
  public static func unpack(_ packed: [UInt8], byteCountMax: Int) -> [UInt8]? {
    var plain = [UInt8](repeating: 0, count: byteCountMax)
    // SAFETY: here and below the areas are those of the arrays, and live as long as the closures.
    let count = unsafe plain.withUnsafeMutableBytes { target in
      unsafe packed.withUnsafeBytes { source in
        unsafe source.isEmpty || target.isEmpty ? nil : Deflate.unpackWrapped(source, into: target)
      }
    }
    guard let count else { return nil }
    plain.removeLast(byteCountMax - count)
    return plain
  }
}

extension ClusterCodec {
  /// The `byteCount` bytes of a cluster; nil when the data is damaged.
  public func unpack(_ packed: [UInt8], byteCount: Int) -> [UInt8]? {
    var plain = [UInt8](repeating: 0, count: byteCount)
    let fault = unsafe plain.withUnsafeMutableBytes { target in
      var span = unsafe MutableRawSpan(_unsafeBytes: target)
      return unsafe packed.withUnsafeBytes { source in
        unsafe unpack(RawSpan(_unsafeBytes: source), into: &span)
      }
    }
    return fault == .none ? plain : nil
  }

  /// The packed bytes of the cluster `plain[part]`; nil when it does not shrink.
  public func pack(_ plain: [UInt8], _ part: Range<Int>) throws(ImageError) -> [UInt8]? {
    var packed = [UInt8](repeating: 0, count: part.count)
    let result = unsafe packed.withUnsafeMutableBytes { target in
      var span = unsafe MutableRawSpan(_unsafeBytes: target)
      return unsafe plain.withUnsafeBytes { source in
        unsafe pack(
          RawSpan(_unsafeBytes: UnsafeRawBufferPointer(rebasing: source[part])), into: &span)
      }
    }
    switch result {
    case .packed(let byteCount):
      packed.removeLast(packed.count - byteCount)
      return packed
    case .notSmaller: return nil
    case .failed(let errno):
      throw ImageError(.unsupported, "a cluster cannot be compressed (\(errno))")
    }
  }
}
