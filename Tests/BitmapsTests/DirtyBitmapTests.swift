// SPDX-License-Identifier: Apache-2.0
//
// A dirty bitmap against a plain set of blocks, and its limits. Source: QEMU
// docs/interop/bitmaps.rst; qcow2.rst, "Bitmaps".

import Bitmaps
import BlockTypes
import Testing

/// The same as a set of block numbers.
private struct Model {
  let diskByteCount: UInt64
  let granularity: UInt64
  var dirty: Set<UInt64> = []

  mutating func mark(_ range: ByteRange) {
    guard !range.isEmpty else { return }
    for block in range.start / granularity...(range.end - 1) / granularity { dirty.insert(block) }
  }

  /// The runs of equal status that cover `start ..< diskByteCount`.
  func runs(from start: UInt64) -> [(isDirty: Bool, end: UInt64)] {
    var runs: [(isDirty: Bool, end: UInt64)] = []
    var cursor = start
    while cursor < diskByteCount {
      let block = cursor / granularity
      let end = min((block + 1) * granularity, diskByteCount)
      if runs.last?.isDirty == dirty.contains(block) {
        runs[runs.count - 1].end = end
      } else {
        runs.append((dirty.contains(block), end))
      }
      cursor = end
    }
    return runs
  }

  var dirtyByteCount: UInt64 {
    dirty.reduce(0) { $0 + min(($1 + 1) * granularity, diskByteCount) - $1 * granularity }
  }
}

private func expectEqual(_ bitmap: DirtyBitmap, _ model: Model, from start: UInt64, seed: UInt64) {
  var cursor = start
  for run in model.runs(from: start) {
    let found = bitmap.run(at: cursor)
    #expect(found == run, "at \(cursor), seed \(seed)")
    let next = bitmap.nextDirtyRun(from: cursor)
    if run.isDirty { #expect(next == ByteRange(start: cursor, end: run.end), "seed \(seed)") }
    cursor = run.end
  }
  #expect(bitmap.nextDirtyRun(from: cursor) == nil)
  #expect(bitmap.dirtyByteCount == model.dirtyByteCount, "seed \(seed)")
  #expect(bitmap.isClean == model.dirty.isEmpty)
}

private struct Generator: RandomNumberGenerator {
  var state: UInt64
  mutating func next() -> UInt64 {
    state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
    return (state ^ state >> 29) &* 0xbf58_476d_1ce4_e5b9
  }

  /// A range of the disk: mostly short, sometimes long, often at borders of words.
  mutating func range(_ diskByteCount: UInt64, _ granularity: UInt64) -> ByteRange {
    let longest = Bool.random(using: &self) ? granularity * 3 : diskByteCount
    var start = UInt64.random(in: 0..<diskByteCount, using: &self)
    if Bool.random(using: &self) { start = start / (granularity * 64) * granularity * 64 }
    let length = UInt64.random(in: 0...min(longest, diskByteCount - start), using: &self)
    return ByteRange(start: start, end: start + length)
  }
}

@Suite struct `A dirty bitmap` {
  @Test(arguments: 1...40 as ClosedRange<UInt64>)
  func `is what a set of blocks is, whatever is marked`(seed: UInt64) throws {
    var random = Generator(state: seed)
    let granularity = UInt64(1) << UInt64.random(in: 9...13, using: &random)
    // One word of words at least, so that all levels have borders.
    let blockCount = UInt64.random(in: 1...9_000, using: &random)
    let diskByteCount = max(
      1, blockCount * granularity - .random(in: 0..<granularity, using: &random))
    var bitmap = try DirtyBitmap(
      diskByteCount: diskByteCount, granularityByteCount: granularity)
    var model = Model(diskByteCount: diskByteCount, granularity: granularity)
    for round in 0..<30 {
      if round == 20 {
        bitmap.clear()
        model.dirty = []
        expectEqual(bitmap, model, from: 0, seed: seed)
      }
      let range = random.range(diskByteCount, granularity)
      bitmap.mark(range)
      model.mark(range)
      expectEqual(
        bitmap, model, from: UInt64.random(in: 0..<diskByteCount, using: &random), seed: seed)
    }
    expectEqual(bitmap, model, from: 0, seed: seed)
  }

  @Test(arguments: 1...20 as ClosedRange<UInt64>)
  func `takes over another one, rounded out to its own blocks`(seed: UInt64) throws {
    var random = Generator(state: seed)
    let diskByteCount = UInt64.random(in: 1...3 << 20, using: &random)
    func make() throws -> (DirtyBitmap, Model) {
      let granularity = UInt64(1) << UInt64.random(in: 9...16, using: &random)
      var bitmap = try DirtyBitmap(
        diskByteCount: diskByteCount, granularityByteCount: granularity)
      var model = Model(diskByteCount: diskByteCount, granularity: granularity)
      for _ in 0..<5 {
        let start = UInt64.random(in: 0..<diskByteCount, using: &random)
        let end = min(start + UInt64.random(in: 0...40_000, using: &random), diskByteCount)
        bitmap.mark(ByteRange(start: start, end: end))
        model.mark(ByteRange(start: start, end: end))
      }
      return (bitmap, model)
    }
    var (target, targetModel) = try make()
    let (source, sourceModel) = try make()
    target.merge(source)
    for block in sourceModel.dirty {
      let start = block * sourceModel.granularity
      targetModel.mark(
        ByteRange(start: start, end: min(start + sourceModel.granularity, diskByteCount)))
    }
    expectEqual(target, targetModel, from: 0, seed: seed)
  }

  @Test(arguments: [1, 64, 100, 4_096, 5_000] as [UInt64], [1, 63, 64, 4_097, 9_000] as [UInt64])
  func `follows a disk that changes its size, and what is new is clean`(
    blockCount: UInt64, newBlockCount: UInt64
  ) throws {
    var bitmap = try DirtyBitmap(
      diskByteCount: blockCount * 512, granularityByteCount: 512)
    bitmap.mark(ByteRange(start: 0, end: blockCount * 512))
    try bitmap.resize(toDiskByteCount: newBlockCount * 512)
    var model = Model(diskByteCount: newBlockCount * 512, granularity: 512)
    model.mark(ByteRange(start: 0, end: min(blockCount, newBlockCount) * 512))
    expectEqual(bitmap, model, from: 0, seed: 0)
  }

  @Test(arguments: [0, 1, 256, 511, 513, 65_537, 4 << 30, .max] as [UInt64])
  func `has no granularity but powers of two from 512 to 2 GiB`(granularity: UInt64) {
    #expect(throws: BitmapFault.self) {
      try DirtyBitmap(diskByteCount: 1 << 30, granularityByteCount: granularity)
    }
  }

  @Test(arguments: [512, 65_536, 2 << 30] as [UInt64])
  func `has those`(granularity: UInt64) throws {
    let bitmap = try DirtyBitmap(diskByteCount: 1 << 20, granularityByteCount: granularity)
    #expect(bitmap.granularityByteCount == granularity)
  }

  @Test func `of a petabyte is refused when it is fine, with the way out, and small when coarse`()
    throws
  {
    let refusal = #expect(throws: BitmapFault.self) {
      try DirtyBitmap(diskByteCount: 1 << 50, granularityByteCount: 65_536)
    }
    #expect(
      refusal?.reason.hasSuffix("the finest granularity for this disk is 2097152") == true,
      "\(refusal?.reason ?? "")")
    var coarse = try DirtyBitmap(diskByteCount: 1 << 50, granularityByteCount: 2 << 30)
    #expect(coarse.memoryByteCount < 100_000)
    coarse.mark(ByteRange(start: 1 << 50 - 1, end: 1 << 50))
    #expect(coarse.run(at: 0) == (false, 1 << 50 - 2 << 30))
    #expect(coarse.dirtyByteCount == 2 << 30)
    let finest = try DirtyBitmap(diskByteCount: 1 << 50, granularityByteCount: 2 << 20)
    #expect(finest.memoryByteCount == DirtyBitmap.memoryByteCountMax)
  }

  @Test func `of no bytes is clean`() throws {
    var bitmap = try DirtyBitmap(diskByteCount: 0)
    bitmap.mark(ByteRange(start: 0, end: 0))
    #expect(bitmap.isClean)
    #expect(bitmap.dirtyByteCount == 0)
    #expect(bitmap.nextDirtyRun(from: 0) == nil)
  }
}
