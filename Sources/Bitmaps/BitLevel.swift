// SPDX-License-Identifier: Apache-2.0
//
// Runs of bits in an array of words: the floor on which a dirty bitmap stands. This file performs
// no I/O.

/// A fixed number of bits. Indices outside are our own mistake, and trap.
struct BitLevel: Hashable, Sendable {
  static let bitsPerWord = 64

  /// Bit `i` is bit `i % 64` of word `i / 64`; the bits behind the last one are zero.
  private(set) var words: [UInt64]
  let count: Int

  init(count: Int) {
    self.count = count
    words = Array(repeating: 0, count: (count + BitLevel.bitsPerWord - 1) / BitLevel.bitsPerWord)
  }

  var byteCount: Int { words.count * 8 }

  func isSet(_ index: Int) -> Bool { words[index >> 6] & (1 << UInt64(index & 63)) != 0 }

  /// The bits `first...` of a word, and the bits `...last`.
  static func from(_ first: Int) -> UInt64 { .max << UInt64(first & 63) }
  static func through(_ last: Int) -> UInt64 { .max >> UInt64(63 - last & 63) }

  /// Sets bits in one word; returns what it is then.
  @discardableResult
  mutating func set(_ bits: UInt64, inWord word: Int) -> UInt64 {
    words[word] |= bits
    return words[word]
  }

  /// Sets the bits `first ... last`. Costs a step for each word.
  mutating func set(_ first: Int, through last: Int) {
    precondition(0 <= first && first <= last && last < count, "bits outside a bitmap were set")
    let (firstWord, lastWord) = (first >> 6, last >> 6)
    if firstWord == lastWord {
      words[firstWord] |= BitLevel.from(first) & BitLevel.through(last)
      return
    }
    var span = words.mutableSpan
    span[firstWord] |= BitLevel.from(first)
    for word in firstWord + 1..<lastWord { span[word] = .max }
    span[lastWord] |= BitLevel.through(last)
  }

  mutating func clear() {
    var span = words.mutableSpan
    for word in span.indices { span[word] = 0 }
  }

  /// Sets what is set in `other`, which has as many bits, among the words `range`.
  mutating func set(_ other: BitLevel, inWords range: Range<Int>) {
    var span = words.mutableSpan
    let others = other.words.span
    for word in range { span[word] |= others[word] }
  }

  /// How many bits of the words `range` are set.
  func oneCount(inWords range: Range<Int>) -> Int {
    let span = words.span
    var count = 0
    for word in range { count += span[word].nonzeroBitCount }
    return count
  }

  /// The 64 words that bit word `index` of the level above stands for, as far as they are there.
  func words(below index: Int) -> Range<Int> {
    index << 6..<min((index + 1) << 6, words.count)
  }

  /// The first bit from `start` on that is one; nil when there is none.
  func nextOne(from start: Int) -> Int? { next(from: start) { $0 } }

  /// The first bit from `start` on that is zero; nil when there is none.
  func nextZero(from start: Int) -> Int? { next(from: start) { ~$0 } }

  @inline(__always)
  private func next(from start: Int, _ wanted: (UInt64) -> UInt64) -> Int? {
    guard start < count else { return nil }
    var word = start >> 6
    var bits = wanted(words[word]) & BitLevel.from(start)
    while bits == 0 {
      word += 1
      guard word < words.count else { return nil }
      bits = wanted(words[word])
    }
    let found = word << 6 + bits.trailingZeroBitCount
    return found < count ? found : nil
  }

  /// The same bits among `newCount`: those that come are zero, those that go are forgotten.
  func resized(to newCount: Int) -> BitLevel {
    var resized = BitLevel(count: newCount)
    for word in 0..<min(words.count, resized.words.count) { resized.words[word] = words[word] }
    if newCount & 63 != 0, let last = resized.words.indices.last {
      resized.words[last] &= BitLevel.through(newCount - 1)
    }
    return resized
  }
}
