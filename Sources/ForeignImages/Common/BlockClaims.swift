// SPDX-License-Identifier: Apache-2.0
//
// Which places of a file are taken by blocks of the disk. Without it an image of a few KiB could
// name one block for each part of a disk of many TiB. This file performs no I/O.

import BlockTypes

/// The places that blocks have claimed, of a disk that is read from its start to its end.
struct BlockClaims: Sendable {
  private let strideByteCount: UInt64
  /// One bit for each stride of the file: two blocks that begin in the same one overlap.
  private var words: [UInt64] = []
  /// Blocks below this have claimed their places.
  private var nextIndex: UInt64 = 0

  /// Bits that are kept at most (16 MiB of memory); what lies behind them is not watched.
  private static let bitCountMax: UInt64 = 1 << 27

  init(strideByteCount: UInt64) { self.strideByteCount = strideByteCount }

  /// Whether block `index` may lie at `offset`. A block that was asked for before may.
  mutating func claim(_ index: UInt64, at offset: UInt64) -> Bool {
    guard index >= nextIndex else { return true }
    nextIndex = index + 1
    let bit = offset / strideByteCount
    guard bit < Self.bitCountMax else { return true }
    let word = Int(bit / 64)
    if word >= words.count {
      words += [UInt64](repeating: 0, count: max(word + 1, words.count * 2) - words.count)
    }
    let mask: UInt64 = 1 << (bit % 64)
    defer { words[word] |= mask }
    return words[word] & mask == 0
  }
}
