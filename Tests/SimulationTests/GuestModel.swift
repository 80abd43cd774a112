// SPDX-License-Identifier: Apache-2.0
//
// What a guest may read: every change that was asked for, when it began and ended and since when it
// is durable. From that follows, for each unit of the disk, which versions are legal for a read and
// which after a power cut. Source: proto.md, "Ordering of messages and writes", "NBD_CMD_FLUSH",
// NBD_CMD_FLAG_FUA.

import BlockTypes

/// The history of a disk, in units of 64 bytes, each of which holds one version.
struct GuestModel {
  static let unitByteCount: UInt64 = 64

  struct Change {
    let range: ByteRange
    /// 0 is zeroes; every write has its own.
    let version: UInt32
    let began: Int
    /// When it was answered; in the future while it is not.
    var ended = Int.max
    /// It replaced what was there. A trim need not, nor a write that failed.
    var replaces = false
    /// Since when a cut cannot take it back.
    var durableSince = Int.max
  }

  /// A run of bytes for which the same versions are legal.
  struct Rule {
    let range: ByteRange
    let versions: [UInt32]
  }

  private(set) var changes: [Change] = []
  private(set) var now = 0
  private var nextVersion: UInt32 = 2
  /// Counts what can change the rules of a cut.
  private(set) var epoch = 0
  /// Sizes that the disk may have after a cut: the last sure one, and those asked for since.
  private(set) var byteCounts: [UInt64]

  init(byteCount: UInt64) { byteCounts = [byteCount] }

  mutating func tick() { now += 1 }

  // MARK: Changes

  /// A change that is over and durable: what the disk began with.
  mutating func addInitial(_ range: ByteRange, version: UInt32) {
    // Each replaces those before it.
    let time = Int.min / 2 + changes.count
    changes.append(
      Change(
        range: range, version: version, began: time, ended: time, replaces: true,
        durableSince: time))
    nextVersion = max(nextVersion, version + 1)
    epoch += 1
  }

  /// A version that no write has had.
  mutating func takeVersion() -> UInt32 {
    nextVersion += 1
    return nextVersion - 1
  }

  /// Notes the beginning of a change, and returns its number.
  mutating func begin(_ range: ByteRange, version: UInt32) -> Int {
    changes.append(Change(range: range, version: version, began: now))
    epoch += 1
    return changes.count - 1
  }

  mutating func end(_ number: Int, replaces: Bool, isDurable: Bool) {
    changes[number].ended = now
    changes[number].replaces = replaces
    guard isDurable else { return }
    changes[number].durableSince = now
    epoch += 1
  }

  /// A flush that began at `began` has been answered.
  mutating func flushed(since began: Int) {
    for number in changes.indices
    where changes[number].ended <= began && changes[number].durableSince == .max {
      changes[number].durableSince = now
    }
    epoch += 1
  }

  mutating func beginResize(to byteCount: UInt64) { byteCounts.append(byteCount) }

  mutating func endResize(to byteCount: UInt64, isDone: Bool) {
    guard isDone, let index = byteCounts.firstIndex(of: byteCount) else { return }
    byteCounts.removeFirst(index)
  }

  /// Gives none of the versions below `version` again.
  mutating func skipVersions(below version: UInt32) { nextVersion = max(nextVersion, version) }

  /// The version of the next write.
  var versionsEnd: UInt32 { nextVersion }

  // MARK: Rules

  /// What a read of `range` that began at `began` and ends now may bring.
  func rulesForReading(_ range: ByteRange, since began: Int) -> [Rule] {
    rules(range) { $0.replaces && $0.ended < began }
  }

  /// What the disk may hold after a cut at this moment.
  func rulesAfterCut(_ range: ByteRange) -> [Rule] {
    rules(range) { $0.replaces && $0.durableSince != .max }
  }

  /// What the disk holds now without any change that comes, or is under way: what a cut may leave
  /// of it, too.
  ///
  /// - Parameter done: numbers of changes that are done and not answered yet.
  func rulesOfThePast(_ range: ByteRange, done: Set<Int>) -> [Rule] {
    past(done: done).rulesAfterCut(range)
  }

  /// The same where a cut cannot take back what was answered.
  func rulesNow(_ range: ByteRange, done: Set<Int>) -> [Rule] {
    past(done: done).rules(range) { $0.replaces && $0.ended != .max }
  }

  private func past(done: Set<Int>) -> GuestModel {
    var past = self
    past.changes = changes.indices.filter { changes[$0].ended != .max || done.contains($0) }
      .map { changes[$0] }
    return past
  }

  /// For each run of bytes the versions that no settled change has replaced.
  private func rules(_ range: ByteRange, isSettled: (Change) -> Bool) -> [Rule] {
    let near = changes.filter { $0.range.overlaps(range) }
    var borders: Set<UInt64> = [range.start, range.end]
    for change in near {
      borders.insert(max(change.range.start, range.start))
      borders.insert(min(change.range.end, range.end))
    }
    let places = borders.sorted()
    return zip(places, places.dropFirst()).map { start, end in
      let covering = near.filter { $0.range.start <= start && end <= $0.range.end }
      let settled = covering.filter(isSettled).map(\.began).max() ?? .min
      let versions = covering.filter { $0.ended >= settled }.map(\.version)
      return Rule(range: ByteRange(start: start, end: end), versions: versions)
    }
  }
}

// MARK: Bytes

extension GuestModel {
  /// The bytes of a range that holds `version`.
  static func bytes(_ range: ByteRange, version: UInt32) -> [UInt8] {
    guard version != 0 else { return [UInt8](repeating: 0, count: Int(range.byteCount)) }
    return [UInt8](unsafeUninitializedCapacity: Int(range.byteCount)) { buffer, count in
      let raw = UnsafeMutableRawBufferPointer(buffer)
      for at in stride(from: 0, to: Int(range.byteCount), by: 8) {
        let start = range.start + UInt64(at)
        let word = UInt64(version) << 32 | (start / unitByteCount & 0xffff_ffff)
        raw.storeBytes(
          of: version % 4 == 3 ? mixed(word, start % unitByteCount) : word, toByteOffset: at,
          as: UInt64.self)
      }
      count = Int(range.byteCount)
    }
  }

  /// Every fourth version is noise that no compression makes smaller: the word, and where it is in
  /// its unit, mixed in a way that can be taken back.
  private static func mixed(_ word: UInt64, _ place: UInt64) -> UInt64 {
    let first = (word &+ place << 58) &* 0x9e37_79b9_7f4a_7c15
    return (first ^ first >> 32) &* 0xd6e8_feb8_6659_fd93
  }

  private static func noisyVersion(
    _ bytes: UnsafeRawBufferPointer, at: Int, unit: UInt64
  ) -> UInt32? {
    // The inverse factors modulo 2^64.
    let first = bytes.loadUnaligned(fromByteOffset: at, as: UInt64.self) &* 0xcfee_444d_8b59_a89b
    let word = (first ^ first >> 32) &* 0xf1de_83e1_9937_733d
    guard word & 0xffff_ffff == unit & 0xffff_ffff else { return nil }
    for other in stride(from: 0, to: Int(unitByteCount), by: 8)
    where bytes.loadUnaligned(fromByteOffset: at + other, as: UInt64.self)
      != mixed(word, UInt64(other))
    { return nil }
    return UInt32(word >> 32)
  }

  /// The version that a unit holds; nil when its bytes are those of no version of this unit.
  static func version(_ bytes: UnsafeRawBufferPointer, at: Int, unit: UInt64) -> UInt32? {
    let word = bytes.loadUnaligned(fromByteOffset: at, as: UInt64.self)
    if word != 0, word & 0xffff_ffff != unit & 0xffff_ffff {
      return noisyVersion(bytes, at: at, unit: unit)
    }
    for other in stride(from: at + 8, to: at + Int(unitByteCount), by: 8)
    where bytes.loadUnaligned(fromByteOffset: other, as: UInt64.self) != word { return nil }
    if word == 0 { return 0 }
    return word & 0xffff_ffff == unit & 0xffff_ffff ? UInt32(word >> 32) : nil
  }

  /// The first unit of `bytes`, which were read at `start`, that breaks its rule, in words.
  static func breach(_ bytes: [UInt8], at start: UInt64, _ rules: [Rule]) -> String? {
    bytes.withUnsafeBytes { raw in
      for rule in rules {
        for place in stride(from: rule.range.start, to: rule.range.end, by: Int(unitByteCount)) {
          let at = Int(place - start)
          guard at + Int(unitByteCount) <= raw.count else { return nil }
          let version = version(raw, at: at, unit: place / unitByteCount)
          if let version, rule.versions.contains(version) { continue }
          let word = raw.loadUnaligned(fromByteOffset: at, as: UInt64.self)
          let held =
            version.map { "version \($0)" }
            ?? "what looks like version \(word >> 32) of unit \(word & 0xffff_ffff)"
          return "byte \(place) holds \(held), allowed are \(rule.versions)"
        }
      }
      return nil
    }
  }
}
