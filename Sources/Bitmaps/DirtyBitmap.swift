// SPDX-License-Identifier: Apache-2.0
//
// Which blocks of a disk were written to since some moment. Sources: QEMU docs/interop/bitmaps.rst;
// qcow2.rst, "Bitmaps", for the limits of granularity. This file performs no I/O.

import BlockTypes

/// One bit for each block of a disk: dirty or clean.
///
/// Above the blocks lie two levels, one bit for each word of 64 blocks: whether any of them is
/// dirty, and whether all of them are. The ends of long runs are found there, 64 times as fast.
public struct DirtyBitmap: Hashable, Sendable {
  /// Bytes of a block, a power of two: what QEMU allows.
  public static let granularityRange: ClosedRange<UInt64> = 512...2 << 30
  /// QEMU's default for the clusters that most images have.
  public static let defaultGranularity: UInt64 = 65_536
  /// Blocks of the largest bitmap; it takes some 66 MiB. Enough for 32 TiB in blocks of 64 KiB, or
  /// for 1 PiB in blocks of 2 MiB.
  public static let blockCountMax: UInt64 = 1 << 29

  public private(set) var diskByteCount: UInt64
  private let granularityBits: UInt64
  private var blocks: BitLevel
  private var anyDirty: BitLevel
  private var allDirty: BitLevel

  /// A clean bitmap for a disk.
  ///
  /// - Throws: when the granularity is not what QEMU allows, or so fine that the bitmap would have
  ///   more blocks than `blockCountMax`.
  public init(
    diskByteCount: UInt64, granularityByteCount: UInt64 = defaultGranularity
  ) throws(BitmapFault) {
    guard DirtyBitmap.granularityRange.contains(granularityByteCount),
      granularityByteCount.isPowerOfTwo
    else {
      throw BitmapFault(
        "the granularity \(granularityByteCount) is no power of two in 512...2147483648")
    }
    granularityBits = UInt64(granularityByteCount.trailingZeroBitCount)
    let count = try DirtyBitmap.blockCount(of: diskByteCount, granularityBits)
    self.diskByteCount = diskByteCount
    blocks = BitLevel(count: count)
    anyDirty = BitLevel(count: blocks.words.count)
    allDirty = BitLevel(count: blocks.words.count)
  }

  private static func blockCount(
    of diskByteCount: UInt64, _ granularityBits: UInt64
  ) throws(BitmapFault) -> Int {
    let count = blockCount(diskByteCount, granularityBits)
    guard count > blockCountMax else { return Int(count) }
    var bits = granularityBits
    while blockCount(diskByteCount, bits) > blockCountMax { bits += 1 }
    let wayOut =
      1 << bits <= granularityRange.upperBound
      ? "; the finest granularity for this disk is \(UInt64(1) << bits)" : ""
    throw BitmapFault(
      "\(diskByteCount) bytes in blocks of \(UInt64(1) << granularityBits) make \(count) blocks,"
        + " and a bitmap has at most \(blockCountMax)" + wayOut)
  }

  private static func blockCount(_ diskByteCount: UInt64, _ granularityBits: UInt64) -> UInt64 {
    guard diskByteCount > 0 else { return 0 }
    return ((diskByteCount - 1) >> granularityBits) + 1
  }

  /// Bytes of a block.
  public var granularityByteCount: UInt64 { 1 << granularityBits }

  /// Memory that the bits take.
  public var memoryByteCount: Int { blocks.byteCount + anyDirty.byteCount + allDirty.byteCount }

  /// Bytes of memory that a bitmap like this one takes at most.
  public static let memoryByteCountMax = Int(blockCountMax / 8 + 2 * blockCountMax / 512)

  // MARK: Marking

  /// Marks every block that the range touches, which must lie on the disk. Costs a step for each
  /// 64 blocks, and no memory.
  public mutating func mark(_ range: ByteRange) {
    guard !range.isEmpty else { return }
    precondition(range.end <= diskByteCount, "a write past the end of the disk was marked")
    let first = Int(range.start >> granularityBits)
    let last = Int((range.end - 1) >> granularityBits)
    let (firstWord, lastWord) = (first >> 6, last >> 6)
    if firstWord == lastWord {
      mark(BitLevel.from(first) & BitLevel.through(last), inWord: firstWord)
      return
    }
    blocks.set(first, through: last)
    anyDirty.set(firstWord, through: lastWord)
    if firstWord + 1 < lastWord { allDirty.set(firstWord + 1, through: lastWord - 1) }
    noteIfFull(firstWord)
    noteIfFull(lastWord)
  }

  private mutating func mark(_ bits: UInt64, inWord word: Int) {
    let isFull = blocks.set(bits, inWord: word) == .max
    let place: UInt64 = 1 << UInt64(word & 63)
    anyDirty.set(place, inWord: word >> 6)
    if isFull { allDirty.set(place, inWord: word >> 6) }
  }

  private mutating func noteIfFull(_ word: Int) {
    if blocks.words[word] == .max { allDirty.set(1 << UInt64(word & 63), inWord: word >> 6) }
  }

  /// Makes every block clean.
  public mutating func clear() {
    blocks.clear()
    anyDirty.clear()
    allDirty.clear()
  }

  /// Marks what is dirty in `other`, a bitmap of the same disk: exactly if both have one
  /// granularity, else rounded out to the blocks of this one.
  ///
  /// - Source: QEMU, block-dirty-bitmap-merge, which takes bitmaps of different granularity.
  public mutating func merge(_ other: DirtyBitmap) {
    precondition(
      other.diskByteCount == diskByteCount, "bitmaps of disks of different size were merged")
    if other.granularityBits == granularityBits {
      for place in anyDirty.words.indices where other.anyDirty.words[place] != 0 {
        let words = blocks.words(below: place)
        blocks.set(other.blocks, inWords: words)
        anyDirty.set(other.anyDirty.words[place], inWord: place)
        for word in words { noteIfFull(word) }
      }
      return
    }
    var cursor: UInt64 = 0
    while let run = other.nextDirtyRun(from: cursor) {
      mark(run)
      cursor = run.end
    }
  }

  /// Follows a disk that changes its size. What a disk grows by is clean, as QEMU has it: it reads
  /// as zeroes, and nobody wrote it.
  ///
  /// - Throws: when the bitmap would have too many blocks.
  public mutating func resize(toDiskByteCount newByteCount: UInt64) throws(BitmapFault) {
    let count = try DirtyBitmap.blockCount(of: newByteCount, granularityBits)
    diskByteCount = newByteCount
    blocks = blocks.resized(to: count)
    anyDirty = BitLevel(count: blocks.words.count)
    allDirty = BitLevel(count: blocks.words.count)
    for (word, bits) in blocks.words.enumerated() where bits != 0 { mark(bits, inWord: word) }
  }

  // MARK: Words

  public var blockCount: Int { blocks.count }
  /// Words of 64 blocks; block `i` is bit `i % 64` of word `i / 64`.
  public var wordCount: Int { blocks.words.count }
  public func word(_ index: Int) -> UInt64 { blocks.words[index] }

  /// Marks the blocks of a word; bits behind the last block are ignored.
  public mutating func mark(_ bits: UInt64, ofWord index: Int) {
    let isLast = index == wordCount - 1 && blockCount & 63 != 0
    let bits = isLast ? bits & BitLevel.through(blockCount - 1) : bits
    if bits != 0 { mark(bits, inWord: index) }
  }

  // MARK: Asking

  /// Whether the block of this byte is dirty.
  public func isDirty(at offset: UInt64) -> Bool {
    precondition(offset < diskByteCount, "a place past the end of the disk was asked for")
    return blocks.isSet(Int(offset >> granularityBits))
  }

  /// The first dirty bytes at `start` or behind, up to the next clean block or the end of the disk;
  /// nil when there are none.
  public func nextDirtyRun(from start: UInt64) -> ByteRange? {
    guard start < diskByteCount,
      let first = nextDirtyBlock(from: Int(start >> granularityBits))
    else { return nil }
    return ByteRange(
      start: max(start, UInt64(first) << granularityBits), end: end(ofRunFrom: first))
  }

  /// Where the run of equal status that `start` lies in ends, and what it is.
  public func run(at start: UInt64) -> (isDirty: Bool, end: UInt64) {
    precondition(start < diskByteCount, "a place past the end of the disk was asked for")
    let block = Int(start >> granularityBits)
    if blocks.isSet(block) { return (true, end(ofRunFrom: block)) }
    guard let dirty = nextDirtyBlock(from: block) else { return (false, diskByteCount) }
    return (false, UInt64(dirty) << granularityBits)
  }

  /// Bytes of the dirty blocks; of the last one, those that are on the disk.
  public var dirtyByteCount: UInt64 {
    var blockCount = 0
    for place in anyDirty.words.indices where anyDirty.words[place] != 0 {
      blockCount += blocks.oneCount(inWords: blocks.words(below: place))
    }
    let byteCount = UInt64(blockCount) << granularityBits
    guard blocks.count > 0, blocks.isSet(blocks.count - 1) else { return byteCount }
    return byteCount - (UInt64(blocks.count) << granularityBits - diskByteCount)
  }

  public var isClean: Bool { anyDirty.nextOne(from: 0) == nil }

  private func nextDirtyBlock(from start: Int) -> Int? {
    let word = start >> 6
    let bits = blocks.words[word] & BitLevel.from(start)
    if bits != 0 { return word << 6 + bits.trailingZeroBitCount }
    guard let next = anyDirty.nextOne(from: word + 1) else { return nil }
    return next << 6 + blocks.words[next].trailingZeroBitCount
  }

  /// The end in bytes of the dirty run that holds the block `start`.
  private func end(ofRunFrom start: Int) -> UInt64 {
    let word = start >> 6
    let clean = ~blocks.words[word] & BitLevel.from(start)
    let block: Int
    if clean != 0 {
      block = word << 6 + clean.trailingZeroBitCount
    } else if let next = allDirty.nextZero(from: word + 1) {
      block = next << 6 + (~blocks.words[next]).trailingZeroBitCount
    } else {
      return diskByteCount
    }
    return min(UInt64(block) << granularityBits, diskByteCount)
  }
}
