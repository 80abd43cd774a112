// SPDX-License-Identifier: Apache-2.0
//
// Random requests against a shadow in memory, against a running server.
// Tests are named by their line in nbd-checks. The seed is printed with each failure.

import TestSupport
import Testing

/// SplitMix64: the same stream for the same seed.
struct SeededGenerator: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
    return mixed ^ (mixed >> 31)
  }
}

/// Keeps up to 12 requests in flight on one connection, no two of which touch the same bytes.
struct ModelRun {
  static let areaByteCount = 4 << 20
  static let inFlightMax = 12

  let client: WireClient
  var generator: SeededGenerator
  var shadow = ServedDisk.expected(0, ModelRun.areaByteCount)
  var inFlight: [UInt64: Step] = [:]

  enum Action: CaseIterable { case read, readUnfragmented, write, zero, zeroNoHole, trim, flush }

  struct Step {
    var action: Action
    var range: Range<Int>
    var data: [UInt8] = []
    /// The read that learns what a TRIM left behind.
    var learns = false
  }

  mutating func run(steps: Int) throws {
    for _ in 0..<steps {
      while inFlight.count >= ModelRun.inFlightMax { try finishOne() }
      try startOne()
    }
    while !inFlight.isEmpty { try finishOne() }
  }

  private mutating func startOne() throws {
    let action = Action.allCases.randomElement(using: &generator) ?? .flush
    let range = randomRange()
    guard action == .flush || !inFlight.values.contains(where: { $0.range.overlaps(range) }) else {
      return
    }
    var step = Step(action: action, range: range)
    let flags: UInt16 = Int.random(in: 0..<8, using: &generator) == 0 ? WireFlag.fua : 0
    let offset = UInt64(range.lowerBound)
    let length = UInt32(range.count)
    let cookie: UInt64
    switch action {
    case .read: cookie = try client.send(.read, offset: offset, length: length)
    case .readUnfragmented:
      let flag = client.structuredReplies || client.extendedHeaders ? WireFlag.dontFragment : 0
      cookie = try client.send(.read, flags: flag, offset: offset, length: length)
    case .write:
      step.data = filler(range.count, UInt8.random(in: 0...255, using: &generator))
      cookie = try client.send(
        .write, flags: flags, offset: offset, length: length, payload: step.data)
    case .zero:
      cookie = try client.send(.writeZeroes, flags: flags, offset: offset, length: length)
    case .zeroNoHole:
      cookie = try client.send(
        .writeZeroes, flags: flags | WireFlag.noHole, offset: offset, length: length)
    case .trim: cookie = try client.send(.trim, flags: flags, offset: offset, length: length)
    case .flush:
      step.range = 0..<0
      cookie = try client.send(.flush)
    }
    inFlight[cookie] = step
  }

  /// Small and large, aligned and not.
  private mutating func randomRange() -> Range<Int> {
    let countMax = [64, 4096, 70_000, 300_000].randomElement(using: &generator) ?? 1
    var count = Int.random(in: 1...countMax, using: &generator)
    var start = Int.random(in: 0..<ModelRun.areaByteCount - count, using: &generator)
    if Bool.random(using: &generator) {
      start &= ~4095
      count = max(4096, count & ~4095)
    }
    return start..<start + count
  }

  private mutating func finishOne() throws {
    let answer = try client.waitForAny()
    guard let step = inFlight.removeValue(forKey: answer.cookie) else {
      throw WireError.violation("an unknown cookie")
    }
    guard answer.outcome.error == 0 else {
      throw WireError.violation("\(step.action) at \(step.range): errno \(answer.outcome.error)")
    }
    switch step.action {
    case .read, .readUnfragmented:
      if step.learns {
        shadow.replaceSubrange(step.range, with: answer.outcome.data.bytes)
      } else if let text = answer.outcome.data.difference(from: Array(shadow[step.range])) {
        throw WireError.violation("a read of \(step.range): \(text)")
      }
    case .write: shadow.replaceSubrange(step.range, with: step.data)
    case .zero, .zeroNoHole: shadow.replaceSubrange(step.range, with: zeroes(step.range.count))
    case .trim:
      // What TRIM leaves is not defined, but from now on it must stay the same.
      let cookie = try client.send(
        .read, offset: UInt64(step.range.lowerBound), length: UInt32(step.range.count))
      inFlight[cookie] = Step(action: .read, range: step.range, learns: true)
    case .flush: break
    }
  }
}

@Suite struct `random requests` {
  enum Style: CaseIterable { case simple, structured, extended }

  @Test(arguments: DiskKind.allCases, Style.allCases)
  func `model.simple, model.structured, model.extended: agree with a shadow`(
    _ kind: DiskKind, _ style: Style
  ) throws {
    let seed = UInt64.random(in: 0..<1_000_000)
    let disk = try ServedDisk(kind)
    var model = ModelRun(
      client: try disk.client(
        structured: style == .structured, extended: style == .extended, blockSizes: false),
      generator: SeededGenerator(state: seed))
    #expect(throws: Never.self, "seed \(seed)") { try model.run(steps: 1500) }
    let all = try disk.client().read(0, ModelRun.areaByteCount).data
    #expect(all.difference(from: model.shadow) == nil, "seed \(seed)")
    #expect(disk.daemon.stop() == 0 || ServedDisk.peer != nil)
    if kind == .qcow2 { try run("qemu-img", "check", "-q", disk.imagePath) }
  }
}
