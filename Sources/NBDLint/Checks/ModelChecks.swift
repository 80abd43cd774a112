// SPDX-License-Identifier: Apache-2.0
//
// Random requests against a shadow in memory. The seed is fixed, so that a failure comes again.
// Spec: proto.md, "Transmission phase". The probe performs the I/O.

enum ModelChecks {
  static let all = [
    LintCheck(
      "model.simple", .must, "Random requests, 12 in flight, agree with a model: simple replies.",
      Source.text("Transmission phase"), writes: true
    ) { server throws(LintStop) in try run(server, .simple) },
    LintCheck(
      "model.structured", .must, "The same with structured replies.",
      Source.text("Transmission phase"), writes: true
    ) { server throws(LintStop) in try run(server, .structured) },
    LintCheck(
      "model.extended", .must, "The same with extended headers.",
      Source.draft("Transmission phase"), writes: true
    ) { server throws(LintStop) in try run(server, .extended) },
  ]

  private static func run(_ server: LintServer, _ style: ReplyStyle) throws(LintStop) {
    try server.withArea(of: 2 << 20) { (area) throws(LintStop) in
      let probe = try server.writable(style)
      var model = ModelRun(probe: probe, area: area)
      try model.run(steps: 400)
      try demandEqual(
        try probe.bytes(area.offset, area.byteCount), model.shadow, "the model's bytes at the end")
    }
  }
}

/// SplitMix64: the same stream for the same seed.
private struct SeededGenerator: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
    return mixed ^ (mixed >> 31)
  }
}

/// Keeps up to 12 requests in flight, no two of which touch the same bytes.
private struct ModelRun {
  static let inFlightMax = 12

  enum Action: CaseIterable { case read, write, zero, trim, flush }

  struct Step {
    var action: Action
    var range: Range<Int>
    var data: [UInt8] = []
    /// A read that learns what TRIM left.
    var learns = false
  }

  let probe: Probe
  let area: LintServer.Area
  let block: Int
  var shadow: [UInt8]
  private var generator = SeededGenerator(state: 2_026)
  private var inFlight: [UInt64: Step] = [:]

  init(probe: Probe, area: LintServer.Area) {
    self.probe = probe
    self.area = area
    block = probe.blockByteCount
    shadow = area.saved
  }

  mutating func run(steps: Int) throws(LintStop) {
    for _ in 0..<steps {
      while inFlight.count >= ModelRun.inFlightMax { try finishOne() }
      try startOne()
    }
    while !inFlight.isEmpty { try finishOne() }
  }

  private mutating func startOne() throws(LintStop) {
    let action = Action.allCases.randomElement(using: &generator) ?? .flush
    let range = randomRange()
    let isFree = !inFlight.values.contains { $0.range.overlaps(range) }
    guard action == .flush || isFree else { return }
    var step = Step(action: action, range: range)
    let command: UInt16
    switch action {
    case .read: command = Command.read
    case .write:
      command = Command.write
      step.data = filler(range.count, Int.random(in: 0..<255, using: &generator))
    case .zero:
      guard probe.has(ExportFlag.sendWriteZeroes) else { return }
      command = Command.writeZeroes
    case .trim:
      guard probe.has(ExportFlag.sendTrim) else { return }
      command = Command.trim
    case .flush:
      guard probe.has(ExportFlag.sendFlush) else { return }
      command = Command.flush
      step.range = 0..<0
    }
    let isFlush = action == .flush
    let cookie = try probe.send(
      command, offset: isFlush ? 0 : area.offset + UInt64(range.lowerBound),
      length: isFlush ? 0 : UInt64(range.count), payload: step.data)
    inFlight[cookie] = step
  }

  /// Small and large, on blocks.
  private mutating func randomRange() -> Range<Int> {
    let countMax = max([64, 4096, 70_000].randomElement(using: &generator) ?? 1, block)
    let count = max(Int.random(in: 1...countMax, using: &generator) / block * block, block)
    let start = Int.random(in: 0...(area.byteCount - count) / block, using: &generator) * block
    return start..<start + count
  }

  private mutating func finishOne() throws(LintStop) {
    let answer = try probe.waitForAny()
    guard let step = inFlight.removeValue(forKey: answer.cookie) else {
      throw .broken(expected: "a cookie that was sent", got: "\(answer.cookie)")
    }
    try probe.expectSuccess(answer.outcome, "a request (\(step.action)) at \(step.range)")
    switch step.action {
    case .read:
      if step.learns {
        shadow.replaceSubrange(step.range, with: answer.outcome.data)
      } else {
        try demandEqual(
          answer.outcome.data, Array(shadow[step.range]), "the model's bytes in \(step.range)")
      }
    case .write: shadow.replaceSubrange(step.range, with: step.data)
    case .zero: shadow.replaceSubrange(step.range, with: zeroes(step.range.count))
    case .trim:
      let cookie = try probe.send(
        Command.read, offset: area.offset + UInt64(step.range.lowerBound),
        length: UInt64(step.range.count))
      inFlight[cookie] = Step(action: .read, range: step.range, learns: true)
    case .flush: break
    }
  }
}
