// SPDX-License-Identifier: Apache-2.0
//
// What this module asks bytes from. It opens no file and knows no system call.

import BlockTypes

/// One file of an image, to read.
public protocol ForeignSource {
  associatedtype Failure: Error
  var byteCount: UInt64 { get }
  /// The bytes at `offset`; fewer only where the file ends. Asked for at most 1 MiB at once.
  func read(at offset: UInt64, byteCount: Int) throws(Failure) -> [UInt8]
  /// The failure that tells of a fault of this file.
  func fault(_ error: ImageError) -> Failure
}

extension ForeignSource {
  /// All of `byteCount` bytes of `what`, or a failure that names it.
  func require(
    _ what: String, at offset: UInt64, byteCount: Int
  ) throws(Failure) -> [UInt8] {
    let bytes = offset < self.byteCount ? try read(at: offset, byteCount: byteCount) : []
    guard bytes.count == byteCount else {
      throw fault(.truncated, "the file ends inside \(what)", at: offset)
    }
    return bytes
  }

  func fault(_ kind: ImageError.Kind, _ reason: String, at offset: UInt64? = nil) -> Failure {
    fault(ImageError(kind, reason, at: offset.map { HostOffset(byteOffset: $0) }))
  }

  /// The result of a decoder.
  func decode<Value>(_ body: () throws(ImageError) -> Value) throws(Failure) -> Value {
    do throws(ImageError) { return try body() } catch { throw fault(error) }
  }
}
