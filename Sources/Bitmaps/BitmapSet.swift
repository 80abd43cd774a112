// SPDX-License-Identifier: Apache-2.0
//
// All bitmaps of one disk, and what may be done to them. Source: QEMU docs/interop/bitmaps.rst.
// This file performs no I/O.

import BlockTypes

/// The bitmaps of a disk, by name.
///
/// A value: a change is made on a copy, which shares the bits of what it does not touch, and takes
/// effect as a whole or not at all.
public struct BitmapSet: Sendable {
  /// Memory of all bitmaps of a disk.
  public static let memoryByteCountMax = 256 << 20
  /// Actions of one change.
  public static let actionsMax = 64

  public private(set) var diskByteCount: UInt64
  /// Bitmaps that there may be; their numbers are below this.
  public let countMax: Int
  /// Counts changes of which bitmaps there are.
  public private(set) var revision: UInt64 = 0
  public private(set) var all: [NamedBitmap] = []
  /// Whether any write has to be recorded.
  public private(set) var isRecording = false

  public init(diskByteCount: UInt64, countMax: Int) {
    self.diskByteCount = diskByteCount
    self.countMax = countMax
  }

  public subscript(number number: Int) -> NamedBitmap? { all.first { $0.number == number } }

  public var memoryByteCount: Int { all.reduce(0) { $0 + $1.memoryByteCount } }

  // MARK: Recording

  /// Records that the range is being written.
  public mutating func mark(_ range: ByteRange) {
    for index in all.indices where all[index].isEnabled { all[index].recorder.mark(range) }
  }

  /// Follows a disk that changes its size.
  public mutating func resize(toDiskByteCount newByteCount: UInt64) throws(BitmapFault) {
    var next = self
    for index in next.all.indices {
      try next.all[index].recorder.resize(toDiskByteCount: newByteCount)
      try next.all[index].frozen?.resize(toDiskByteCount: newByteCount)
    }
    next.diskByteCount = newByteCount
    try next.requireMemory()
    self = next
  }

  // MARK: Changing

  /// Does all of `actions`, in order, or none of them.
  ///
  /// - Parameter holder: the client that has selected the bitmap of a number, if any has: such a
  ///   bitmap is not removed.
  /// - Throws: why one of them cannot be done.
  public mutating func perform(
    _ actions: [BitmapAction], holder: (Int) -> UInt64? = { _ in nil }
  ) throws(BitmapFault) {
    guard actions.count <= BitmapSet.actionsMax else {
      throw BitmapFault("at most \(BitmapSet.actionsMax) actions can be done at once")
    }
    var next = self
    for action in actions { try next.perform(action, holder) }
    try next.requireMemory()
    next.isRecording = next.all.contains { $0.isEnabled }
    self = next
  }

  private mutating func perform(
    _ action: BitmapAction, _ holder: (Int) -> UInt64?
  ) throws(BitmapFault) {
    switch action {
    case .add(let name, let granularityByteCount, let isEnabled, let isPersistent):
      let bitmap = try DirtyBitmap(
        diskByteCount: diskByteCount, granularityByteCount: granularityByteCount)
      _ = try add(name, bitmap, isEnabled: isEnabled, isPersistent: isPersistent)
    case .remove(let name):
      let index = try thawed(name)
      if let client = holder(all[index].number) {
        throw BitmapFault("bitmap \"\(name)\" is used by client \(client)")
      }
      revision += 1
      all.remove(at: index)
    case .clear(let name):
      let index = try thawed(name)
      all[index].recorder.clear()
      all[index].isRecovered = false
    case .enable(let name): all[try thawed(name)].isEnabled = true
    case .disable(let name): all[try thawed(name)].isEnabled = false
    case .merge(let sources, let target): try merge(sources, into: target)
    case .freeze(let name): try freeze(name)
    case .thaw(let name, let outcome): try thaw(name, outcome)
    }
  }

  /// Takes over a bitmap that the image has kept; returns its number.
  ///
  /// - Parameter isRecovered: the image was not closed in order.
  public mutating func restore(
    _ name: String, _ bits: DirtyBitmap, isEnabled: Bool, isRecovered: Bool
  ) throws(BitmapFault) -> Int {
    precondition(bits.diskByteCount == diskByteCount, "a bitmap of another disk was restored")
    var next = self
    let index = try next.add(name, bits, isEnabled: isEnabled, isPersistent: true)
    next.all[index].isRecovered = isRecovered
    next.isRecording = next.all.contains { $0.isEnabled }
    self = next
    return all[index].number
  }

  private mutating func add(
    _ name: String, _ bitmap: DirtyBitmap, isEnabled: Bool, isPersistent: Bool
  ) throws(BitmapFault) -> Int {
    try NamedBitmap.validate(name: name)
    guard index(of: name) == nil else {
      throw BitmapFault("there is a bitmap \"\(name)\" already")
    }
    let used = Set(all.map(\.number))
    guard let number = (0..<countMax).first(where: { !used.contains($0) }) else {
      throw BitmapFault("a disk has at most \(countMax) bitmaps")
    }
    revision += 1
    all.append(
      NamedBitmap(
        name: name, number: number, firstRevision: revision, isPersistent: isPersistent,
        isEnabled: isEnabled, recorder: bitmap))
    // Checked for each one, so that a list of actions never takes much more than is allowed.
    try requireMemory()
    return all.count - 1
  }

  private mutating func merge(_ sources: [String], into target: String) throws(BitmapFault) {
    guard !sources.isEmpty else { throw BitmapFault("there is no bitmap to merge") }
    let targetIndex = try thawed(target)
    for source in sources {
      // A frozen source is what it shows: reading does no harm to a backup.
      let bits = all[try required(source)].shown
      if source != target { all[targetIndex].recorder.merge(bits) }
    }
  }

  private mutating func freeze(_ name: String) throws(BitmapFault) {
    let index = try thawed(name)
    all[index].frozen = all[index].recorder
    all[index].recorder = try DirtyBitmap(
      diskByteCount: diskByteCount, granularityByteCount: all[index].granularityByteCount)
    try requireMemory()
  }

  private mutating func thaw(_ name: String, _ outcome: BackupOutcome) throws(BitmapFault) {
    let index = try required(name)
    guard let frozen = all[index].frozen else {
      throw BitmapFault("bitmap \"\(name)\" is not frozen")
    }
    if outcome == .failed {
      all[index].recorder.merge(frozen)
    } else {
      all[index].isRecovered = false
    }
    all[index].frozen = nil
  }

  // MARK: Finding

  private func index(of name: String) -> Int? {
    // Names are equal when their bytes are.
    all.firstIndex { $0.name.utf8.elementsEqual(name.utf8) }
  }

  private func required(_ name: String) throws(BitmapFault) -> Int {
    guard let index = index(of: name) else {
      throw BitmapFault("there is no bitmap \"\(name.prefix(64))\"")
    }
    return index
  }

  private func thawed(_ name: String) throws(BitmapFault) -> Int {
    let index = try required(name)
    guard !all[index].isFrozen else {
      throw BitmapFault("bitmap \"\(name)\" is frozen for a backup; thaw it first")
    }
    return index
  }

  private func requireMemory() throws(BitmapFault) {
    guard memoryByteCount <= BitmapSet.memoryByteCountMax else {
      throw BitmapFault(
        "the bitmaps would take \(memoryByteCount) bytes of memory, and a disk's may take"
          + " \(BitmapSet.memoryByteCountMax); choose a coarser granularity")
    }
  }
}
