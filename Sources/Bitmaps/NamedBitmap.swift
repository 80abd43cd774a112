// SPDX-License-Identifier: Apache-2.0
//
// A bitmap of a disk with its name and its state. This file performs no I/O.

/// One of the bitmaps of a disk.
public struct NamedBitmap: Sendable {
  /// 1...1023 bytes of UTF-8 without control characters.
  public let name: String
  /// Tells it from the other bitmaps of the disk; that of one that was removed may come again.
  public let number: Int
  /// The revision of the set that it came with.
  public let firstRevision: UInt64
  /// Kept in the image when the disk is not served.
  public let isPersistent: Bool
  /// Taken from an image that was not closed in order: more may be dirty than was written.
  public internal(set) var isRecovered = false
  /// Whether writes are recorded.
  public internal(set) var isEnabled: Bool
  /// Where they are.
  var recorder: DirtyBitmap
  /// What is shown in place of the recorder, while a backup is made.
  var frozen: DirtyBitmap?

  public var isFrozen: Bool { frozen != nil }
  /// What clients are told.
  public var shown: DirtyBitmap { frozen ?? recorder }
  public var granularityByteCount: UInt64 { recorder.granularityByteCount }
  public var memoryByteCount: Int {
    recorder.memoryByteCount + (frozen?.memoryByteCount ?? 0)
  }

  /// 64 blocks as they are to be kept: also what is frozen, since nobody knows yet how the backup
  /// will go. Block `i` is bit `i % 64` of word `i / 64`.
  public func keptWord(_ index: Int) -> UInt64 {
    recorder.word(index) | (frozen?.word(index) ?? 0)
  }
  public var wordCount: Int { recorder.wordCount }
  public var blockCount: Int { recorder.blockCount }

  /// Bytes of a name: QEMU's limit.
  public static let nameByteCountMax = 1023

  public static func validate(name: String) throws(BitmapFault) {
    guard (1...nameByteCountMax).contains(name.utf8.count) else {
      throw BitmapFault(
        "a bitmap's name has 1...\(nameByteCountMax) bytes, not \(name.utf8.count)")
    }
    guard !name.unicodeScalars.contains(where: { $0.properties.generalCategory == .control })
    else { throw BitmapFault("a bitmap's name has no control characters") }
  }
}
