// SPDX-License-Identifier: Apache-2.0
//
// How an image is converted. This file performs no I/O.

import BlockTypes

/// What a conversion shall make, and how.
public struct ConvertOptions: Sendable {
  /// Of the source; nil leaves it to the file's first bytes.
  public var sourceFormat: SourceFormat?
  public var targetFormat = ImageFormat.raw
  /// Of a qcow2 target; its size is that of the source.
  public var create = CreateOptions()
  /// Whether clusters are packed where that makes them smaller.
  public var compresses = false
  /// Zeroes of this length become holes; 0: everything is allocated. For qcow2 a cluster counts.
  public var sparseByteCount = 4096
  /// Pieces that are read, packed and written at once.
  public var threadCount = 4
  /// Off only for a look at an image that somebody else uses.
  public var takesLocks = true

  /// What images may name besides the files in their own folders.
  public var allowed = AllowedFiles()
  /// Id or name of the source's internal snapshot that is read in the place of its disk.
  public var snapshot: String?
  /// The keys of an encrypted source and of its backing files; nil: there are none.
  public var keys: KeyRing?

  /// Told of the target while it has its name for unfinished ones.
  public var unfinished: UnfinishedFile?

  public static let threadCountMax = 16
  public static let sparseByteCountMax = 16 << 20

  public init() {}

  /// Checks what the options only say together.
  func requireConsistent(path: String) throws(ImageFault) {
    if targetFormat == .raw && compresses {
      throw ImageFault(
        path, "a raw image has no compressed clusters", wayOut: "use -O qcow2", kind: .refused)
    }
    if create.diskByteCount != nil {
      throw ImageFault(
        path, "the size of a conversion is that of its source",
        wayOut: "leave size out, and resize afterwards", kind: .refused)
    }
    if create.preallocation != .off {
      throw ImageFault(
        path, "a conversion preallocates nothing", wayOut: "use -S 0 to allocate all",
        kind: .unsupported)
    }
    if create.encryption.isWanted {
      throw ImageFault(
        path, "a conversion does not make encrypted images", wayOut: "use qemu-img convert",
        kind: .unsupported)
    }
    if targetFormat == .raw && create.backingFile != nil {
      throw ImageFault(
        path, "a raw image has no backing file", wayOut: "use -O qcow2", kind: .refused)
    }
    guard sparseByteCount == 0 || sparseByteCount.isMultiple(of: 512),
      (0...Self.sparseByteCountMax).contains(sparseByteCount)
    else {
      throw ImageFault(
        path, "'\(sparseByteCount)' is no value for -S",
        wayOut: "use 0 or a multiple of 512 of at most 16M", kind: .refused)
    }
    precondition((1...Self.threadCountMax).contains(threadCount), "too many threads")
    try create.requireConsistent(path: path)
  }
}
