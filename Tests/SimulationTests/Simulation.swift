// SPDX-License-Identifier: Apache-2.0
//
// A whole simulation from one seed: images, requests, faults, and a power cut at every change of
// the disk. Each state that a cut leaves has to be an image without corruption whose every unit
// holds what was flushed or something asked for later; some of them are written on.

import BlockTypes
import Glibc
import ImageTools
import LinuxIO

@testable import DataPlane

/// What simulations did.
struct SimulationTally: Equatable {
  var stateCount = 0
  var continuedCount = 0
  var requestCount = 0
  /// Simulations of what the product refuses.
  var skippedCount = 0

  static func += (tally: inout SimulationTally, other: SimulationTally) {
    tally.stateCount += other.stateCount
    tally.continuedCount += other.continuedCount
    tally.requestCount += other.requestCount
    tally.skippedCount += other.skippedCount
  }
}

/// What is wrong with the disk on purpose, to see that the judge notices.
enum DiskLie {
  case none
  /// Flushes are answered, and nothing is made durable.
  case ignoresFlushes
  /// Now and then a write lands in the sector behind its own.
  case misdirectsWrites
}

final class Simulation {
  let seed: UInt64
  let scenario: Scenario
  private var random: SeededRandom
  private var cutRandom: SeededRandom
  private(set) var tally = SimulationTally()
  private var breach: Breach?
  private var snapshots = SnapshotModel()
  /// The last session ended with everything durable.
  private var isAtRest = false
  /// Of 100 states, how many are written on.
  private let continuesPercent: Int

  /// Runs the simulation of `seed`.
  ///
  /// - Throws: `Breach` when a promise was broken; anything else when the product refused what it
  ///   has to do.
  static func run(
    seed: UInt64, lie: DiskLie = .none, family: Scenario.Family = .drawn
  ) throws -> SimulationTally {
    let simulation = Simulation(seed: seed, family: family)
    try simulation.run(lie)
    return simulation.tally
  }

  /// What the seed decides, in words.
  static func describe(seed: UInt64, family: Scenario.Family = .drawn) -> String {
    Simulation(seed: seed, family: family).scenario.description
  }

  private init(seed: UInt64, family: Scenario.Family) {
    self.seed = seed
    random = SeededRandom(seed: seed)
    var scenario = Scenario(&random)
    scenario.join(family)
    self.scenario = scenario
    cutRandom = SeededRandom(seed: random.next())
    continuesPercent = 2
  }

  private func run(_ lie: DiskLie) throws {
    let machine = try SimulatedMachine(scenario, seed: random.next())
    var model = GuestModel(byteCount: scenario.diskByteCount)
    // What the disk begins with: zeroes everywhere, and what the base has.
    model.addInitial(ByteRange(start: 0, end: 8 << 20), version: 0)
    if scenario.base != .none {
      for range in SimulatedMachine.baseData(scenario) {
        // A larger base never shows, not even when the disk grows.
        let end = min(range.end, scenario.diskByteCount)
        if range.start < end {
          model.addInitial(ByteRange(start: range.start, end: end), version: 1)
        }
      }
    }
    var bitmaps = BitmapModel()
    if scenario.isPrefilled {
      snapshots = try machine.prefill(scenario, &model, &random)
      machine.settle()
    }
    for disk in machine.disks.values {
      disk.lie = lie
      disk.punchesHoles = scenario.punchesHoles
    }
    let (_, leaks) = try machine.check()
    let requestsSeed = random.next()
    do {
      try play(
        machine, &model, &bitmaps, requestsSeed: requestsSeed, leakCount: leaks, cuts: true)
      if scenario.changesSnapshots { try changeSnapshots(machine, model, bitmaps) }
    } catch let fault as ImageFault where fault.kind == .unsupported && tally.stateCount == 0 {
      tally.skippedCount += 1
    }
  }

  /// Requests on one machine, cuts between them, and the end.
  private func play(
    _ machine: SimulatedMachine, _ model: inout GuestModel, _ bitmaps: inout BitmapModel,
    requestsSeed: UInt64, leakCount: Int, cuts: Bool
  ) throws {
    let session = try Session(
      scenario, machine, model, bitmaps, snapshots, seed: requestsSeed)
    defer { (model, bitmaps) = (session.model, session.bitmaps) }
    var cached: (epoch: Int, rules: [GuestModel.Rule]) = (-1, [])
    if cuts {
      machine.onMoment = { [unowned self, unowned session] in
        guard self.breach == nil else { return }
        if cached.epoch != session.model.epoch {
          let whole = ByteRange(start: 0, end: 8 << 20)
          cached = (session.model.epoch, session.model.rulesAfterCut(whole))
        }
        self.snapshots = session.snapshots
        self.cut(
          machine, session.model, session.bitmaps, cached.rules,
          // Beside snapshots no bitmap survives a crash.
          mayBeLost: session.hasFailures || session.snapshotOrderCount > 0)
      }
    }
    defer { machine.onMoment = nil }
    try session.run()
    let isDurable = try session.stop()
    tally.requestCount += scenario.requestCount
    if let breach { throw breach }
    isAtRest = isDurable
    snapshots = session.snapshots
    guard isDurable else { return }
    machine.onMoment = nil
    // What a change of snapshots that failed leaves is repaired by who opens it.
    if machine.isMarkedDirty, session.hasFailures { try reopen(machine) }
    let (faults, leaks) = try machine.check()
    guard faults.isEmpty else { throw Breach("after the stop: \(faults.prefix(3))") }
    if !session.hasFailures, leaks > leakCount {
      throw Breach("\(leaks) clusters leak after a clean stop, of \(leakCount) before")
    }
  }

  /// The power fails now: judges what is left, and keeps the first breach.
  private func cut(
    _ machine: SimulatedMachine, _ model: GuestModel, _ bitmaps: BitmapModel,
    _ rules: [GuestModel.Rule], mayBeLost: Bool
  ) {
    let kind = SimulatedDisk.Cut.allCases[cutRandom.below(4)]
    let left = machine.contentsAfter(kind, &cutRandom)
    tally.stateCount += 1
    do {
      let judged = machine.with(left)
      let (contents, found, listed) = try judge(
        judged, model, bitmaps, rules, mayBeLost: mayBeLost)
      if cutRandom.chance(continuesPercent) {
        let kept = snapshots
        defer { snapshots = kept }
        try snapshots.keep(listed, in: judged)
        try goOn(machine.with(left), contents, found, versionsEnd: model.versionsEnd)
      }
    } catch let error as Breach {
      breach = Breach("cut \(tally.stateCount) (\(kind)): \(error)")
    } catch {
      breach = Breach("cut \(tally.stateCount) (\(kind)): \(error)")
    }
  }

  /// Checks and reads a state as whoever finds it after the power cut.
  private func judge(
    _ machine: SimulatedMachine, _ model: GuestModel, _ bitmaps: BitmapModel,
    _ rules: [GuestModel.Rule], mayBeLost: Bool
  ) throws -> ([UInt8], BitmapModel, listed: [String]) {
    let isChecked = !machine.isMarkedDirty
    if isChecked {
      let (faults, _) = try machine.check()
      guard faults.isEmpty else { throw Breach("corrupt: \(faults.prefix(3))") }
    }
    var image = try Session.open(
      machine, path: "disk", access: .readWrite, cacheByteCount: 0,
      pool: BlockingPool())
    defer { image.unmapAll() }
    if !isChecked {
      let (faults, _) = try machine.check()
      guard faults.isEmpty else { throw Breach("corrupt: \(faults.prefix(3))") }
    }
    guard model.byteCounts.contains(image.diskByteCount) else {
      throw Breach("the disk has \(image.diskByteCount) bytes, not one of \(model.byteCounts)")
    }
    let whole = ByteRange(start: 0, end: image.diskByteCount)
    let bytes = try Session.finish(&image, .read, whole)
    if let breach = GuestModel.breach(bytes, at: 0, rules) { throw Breach(breach) }
    if let breach = bitmaps.breach(image, bytes, mayBeLost: mayBeLost) { throw Breach(breach) }
    try snapshots.judgeList(image)
    let names = image.snapshots?.entries.map(\.name) ?? []
    if cutRandom.chance(25) { try snapshots.judgeBytes(machine, listed: names) }
    var found = bitmaps
    found.keep(image)
    return (bytes, found, names)
  }

  /// Opens an image as the next session does, and closes it.
  private func reopen(_ machine: SimulatedMachine) throws {
    var image = try Session.open(
      machine, path: "disk", access: .readWrite, cacheByteCount: 0, pool: BlockingPool())
    defer { image.unmapAll() }
    try Session.settle(&image)
  }

  /// Takes a snapshot and deletes it again, of a disk at rest, with a cut at each change.
  private func changeSnapshots(
    _ machine: SimulatedMachine, _ model: GuestModel, _ bitmaps: BitmapModel
  ) throws {
    // What a failed request left undecided stays so.
    guard isAtRest else { return }
    let rules = model.rulesAfterCut(ByteRange(start: 0, end: 8 << 20))
    machine.onMoment = { [unowned self] in
      guard self.breach == nil else { return }
      self.cut(machine, model, bitmaps, rules, mayBeLost: true)
    }
    defer { machine.onMoment = nil }
    var entry = SnapshotModel.Entry(
      name: "new", byteCounts: [model.byteCounts[0]], rules: rules, isDue: false)
    snapshots.set(entry)
    _ = try Snapshots.create(path: "disk", format: .qcow2, name: "new", remote: machine)
    entry.isDue = true
    snapshots.set(entry)
    if let breach { throw Breach("a snapshot is taken: \(breach)") }
    snapshots.doubt("new")
    try Snapshots.delete(path: "disk", format: .qcow2, idOrName: "new", remote: machine)
    snapshots.remove("new")
    if let breach { throw Breach("snapshots change: \(breach)") }
    machine.onMoment = nil
    let (faults, _) = try machine.check()
    guard faults.isEmpty else { throw Breach("after the snapshots: \(faults.prefix(3))") }
    try snapshots.judgeBytes(machine, listed: snapshots.dueNames)
  }

  /// Writes on in the image that a cut left.
  private func goOn(
    _ machine: SimulatedMachine, _ bytes: [UInt8], _ bitmaps: BitmapModel, versionsEnd: UInt32
  ) throws {
    tally.continuedCount += 1
    // Counts behind the end of the file are leaks that show when it grows.
    let longer = machine.with([:])
    _ = try longer.disk.run(.resize(to: longer.disk.byteCount + 8 << 20))
    let (_, leaks) = try longer.check()
    var model = GuestModel(byteCount: UInt64(bytes.count))
    model.addInitial(ByteRange(start: 0, end: 8 << 20), version: 0)
    model.addContents(bytes)
    model.skipVersions(below: versionsEnd)
    var bitmaps = bitmaps
    do {
      try play(
        machine, &model, &bitmaps, requestsSeed: cutRandom.next(), leakCount: leaks, cuts: false)
    } catch let error as Breach {
      throw Breach("written on after it: \(error)")
    }
  }
}

extension GuestModel {
  /// Takes over what a disk was found to hold.
  mutating func addContents(_ bytes: [UInt8]) {
    let unit = Int(GuestModel.unitByteCount)
    bytes.withUnsafeBytes { raw in
      var start = 0
      while start + unit <= raw.count {
        let version = GuestModel.version(raw, at: start, unit: UInt64(start / unit)) ?? 0
        var end = start + unit
        while end + unit <= raw.count,
          (GuestModel.version(raw, at: end, unit: UInt64(end / unit)) ?? 0) == version
        {
          end += unit
        }
        if version != 0 {
          addInitial(ByteRange(start: UInt64(start), end: UInt64(end)), version: version)
        }
        start = end
      }
    }
  }
}
