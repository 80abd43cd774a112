// SPDX-License-Identifier: Apache-2.0
//
// One opened image and the requests on it, driven in one thread: who may go on, which operation of
// the disk ends next and how, and when the blocking pool works, all come from the seed. The code
// that runs is the data plane's own, without sockets.

import Bitmaps
import BlockTypes
import Glibc
import ImageTools
import LinuxIO
import NBDProtocol

@testable import DataPlane

/// A request that has been started.
struct Running {
  let slot: Int
  let command: Command
  let range: ByteRange
  let flags: CommandFlags
  let began: Int
  /// The number of its change in the model; -1 for one that changes nothing.
  let change: Int
}

/// The images open, and what is asked of them.
final class Session {
  let scenario: Scenario
  let machine: SimulatedMachine
  let pool: BlockingPool
  /// What the image was opened by.
  let plan: ExportPlan
  var image: ImageStack
  var model: GuestModel
  var bitmaps: BitmapModel
  var snapshots: SnapshotModel
  /// The change of snapshots that goes on, and how many there were.
  var snapshotOrder: SnapshotOrder?
  var snapshotOrderCount = 0
  /// The change of bitmaps that goes on.
  var ordered: [BitmapAction] = []
  var random: SeededRandom
  var running: [Running] = []
  private var startedCount = 0
  /// Steps for which the held kind of work stays back.
  private var patience = 0
  /// Something failed: leaks are to be expected, and perhaps nothing can be made durable any more.
  private(set) var hasFailures = false

  init(
    _ scenario: Scenario, _ machine: SimulatedMachine, _ model: GuestModel, _ bitmaps: BitmapModel,
    _ snapshots: SnapshotModel, seed: UInt64
  ) throws {
    self.scenario = scenario
    self.machine = machine
    self.model = model
    self.bitmaps = bitmaps
    self.snapshots = snapshots
    random = SeededRandom(seed: seed)
    pool = try BlockingPool()
    plan = try Session.plan(
      machine, path: "disk", access: .readWrite, cacheByteCount: scenario.cacheByteCount,
      compresses: scenario.compresses)
    image = try ImageStack(plan, slotCount: Session.slotCount, pool: pool)
  }

  deinit { image.unmapAll() }

  // MARK: Opening

  private static let slotCount = 24

  static func open(
    _ machine: any RemoteOpener, path: String, access: ImageFile.Access, cacheByteCount: Int,
    pool: BlockingPool, snapshot: String? = nil, compresses: Bool = false
  ) throws -> ImageStack {
    let plan = try plan(
      machine, path: path, access: access, cacheByteCount: cacheByteCount, snapshot: snapshot,
      compresses: compresses)
    return try ImageStack(plan, slotCount: slotCount, pool: pool)
  }

  private static func plan(
    _ machine: any RemoteOpener, path: String, access: ImageFile.Access, cacheByteCount: Int,
    snapshot: String? = nil, compresses: Bool = false
  ) throws -> ExportPlan {
    let simulated = path == "disk" ? machine as? SimulatedMachine : nil
    let data = simulated?.disks["data"].map { LayerFile($0, path: "data") }
    var options = OpenChain.Options(detection: .none, snapshot: snapshot, remote: machine)
    options.keepsBitmaps = true
    // An image that is no file may not name a data file: it gets its own here.
    options.requiresSupport = data == nil
    let layers = try OpenChain.open(path: path, format: .qcow2, access: access, options: options)
    var plan = ExportPlan(
      name: "", description: "", isReadOnly: access == .readOnly,
      layers: layers.enumerated().map { number, layer in
        LayerPlan(
          storage: layer.storage, dataStorage: number == 0 ? data : nil,
          format: layer.header.map { .qcow2($0) } ?? .raw,
          diskByteCount: layer.exactDiskByteCount,
          cipher: number == 0 && simulated?.isEncrypted == true ? SimulatedCipher() : nil)
      }, engine: .sync, limits: RequestLimits(), minimumBlockByteCount: 1,
      metadataCacheByteCount: cacheByteCount, spinNanosecondsMax: 0)
    plan.packsWrites = compresses
    return plan
  }

  /// Puts a request in a slot and starts it, as the loop does.
  static func start(
    _ image: inout ImageStack, _ command: Command, _ range: ByteRange, _ flags: CommandFlags = [],
    _ payload: [UInt8] = []
  ) throws -> Int {
    guard let slot = image.requests.acquire() else { throw Breach("no slot is free") }
    let whole = range.roundedOut(to: image.alignment)
    image.requests.slots[slot].command = command
    image.requests.slots[slot].flags = flags
    image.requests.slots[slot].offset = range.start
    image.requests.slots[slot].length = range.byteCount
    image.requests.slots[slot].bufferStart = whole.start
    image.requests.slots[slot].stage = .receiving
    if command == .read || command == .write {
      guard let buffer = image.buffers.acquire(byteCount: Int(whole.byteCount)) else {
        throw Breach("no memory is left")
      }
      image.requests.slots[slot].buffer = buffer
      buffer.copy(Int(range.start - whole.start), from: payload)
    }
    image.start(slot)
    return slot
  }

  static func payload(_ image: borrowing ImageStack, _ slot: Int) -> [UInt8] {
    let request = image.requests.slots[slot]
    var bytes: [UInt8] = []
    request.buffer.append(
      Int(request.offset - request.bufferStart), Int(request.length), to: &bytes)
    return bytes
  }

  static func takeFinished(_ image: inout ImageStack) -> Int? { image.takeOneFinished() }

  /// What `ExportLoop.tick` does between two sockets. Returns whether anything moved.
  @discardableResult static func round(_ image: inout ImageStack) -> Bool {
    image.wakeAllDeferred()
    image.takePoolCompletions()
    let hadReady = !image.ready.isEmpty
    image.runReady()
    image.startFlushIfWanted()
    image.disks.submit()
    let hasMoved = image.takeDiskCompletions()
    return image.endDraining() || hasMoved || hadReady || !image.ready.isEmpty
  }

  /// Does one request on disks that nobody schedules.
  @discardableResult static func finish(
    _ image: inout ImageStack, _ command: Command, _ range: ByteRange, _ payload: [UInt8] = []
  ) throws -> [UInt8] {
    let slot = try start(&image, command, range, [], payload)
    for _ in 0..<100_000 {
      round(&image)
      while !image.pool.waitingTags.isEmpty { image.pool.doWork(0) }
      guard let done = takeFinished(&image) else { continue }
      let error = image.requests.slots[done].error
      let bytes = command == .read && error == .none ? Session.payload(image, done) : []
      image.requests.slots[done].stage = .replying
      image.retire(done)
      guard done == slot, error == .none else { throw Breach("\(command) \(range): \(error)") }
      return bytes
    }
    throw Breach("\(command) \(range) does not end")
  }

  /// Makes all durable and gives all back, as a stop does, on disks that nobody schedules. Returns
  /// why bitmaps were not kept.
  @discardableResult static func settle(_ image: inout ImageStack) throws -> String? {
    for _ in 0..<20 where image.needsFlush {
      try finish(&image, .flush, ByteRange(start: 0, end: 0))
      for _ in 0..<100_000 where !image.isIdle {
        round(&image)
        while !image.pool.waitingTags.isEmpty { image.pool.doWork(0) }
      }
    }
    guard !image.needsFlush else { throw Breach("the image does not come to rest") }
    let trouble = image.closeBitmaps()
    try image.trimFile()
    return trouble
  }

  // MARK: Running

  /// Runs all requests of the scenario to their ends.
  func run() throws {
    for disk in machine.disks.values {
      disk.isInstant = false
      disk.onBlockingCall = { [unowned self] operation in self.errnoOfBlockingCall(operation) }
    }
    var idleSteps = 0
    while startedCount < scenario.requestCount || !running.isEmpty {
      let moved = try step()
      idleSteps = moved ? 0 : idleSteps + 1
      if idleSteps > 2_000 { throw Breach("nothing moves any more: \(stuck)") }
    }
  }

  /// Lets everything end, and stops as the daemon does. Returns whether all is durable.
  func stop() throws -> Bool {
    image.isStopping = true
    var steps = 0
    while !image.isIdle || !running.isEmpty {
      _ = try step()
      steps += 1
      if steps > 200_000 { throw Breach("the image does not come to rest: \(stuck)") }
    }
    for disk in machine.disks.values {
      disk.isInstant = true
      disk.onBlockingCall = nil
    }
    if image.lostWrites { return false }
    let trouble = try Session.settle(&image)
    if let trouble, !hasFailures { throw Breach("bitmaps are not kept: \(trouble)") }
    return true
  }

  private var stuck: String {
    running.map { "\($0.command) \($0.range) at \(image.requests.slots[$0.slot].stage)" }
      .joined(separator: ", ")
  }

  /// One thing happens. Returns whether it did.
  private func step() throws -> Bool {
    model.tick()
    if scenario.bitmapCount > 0, random.chance(4) { orderBitmaps() }
    if scenario.hasLiveSnapshots, !image.isStopping, random.chance(3) { orderSnapshot() }
    let mayStart =
      startedCount < scenario.requestCount && running.count < scenario.requestsAtOnceMax
    var moved = false
    if mayStart, random.chance(40) {
      try startRequest()
      moved = true
    } else {
      moved = endSomeWork(force: !mayStart && random.chance(20))
    }
    if random.chance(60) || !moved {
      if Session.round(&image) { moved = true }
      try collect()
    }
    return moved
  }

  // MARK: Work

  /// Ends one operation of a disk, or has the pool do one thing.
  private func endSomeWork(force: Bool) -> Bool {
    var candidates: [() -> Void] = []
    var held: [() -> Void] = []
    for disk in machine.disks.values.sorted(by: { $0.identity < $1.identity }) {
      for index in 0..<disk.pendingCount {
        let work = disk.work(index)
        let end = { [unowned self] in disk.complete(index, self.outcome(of: work)) }
        if isHeld(work) { held.append(end) } else { candidates.append(end) }
      }
    }
    for (index, tag) in pool.waitingTags.enumerated() {
      let work = { [unowned self] in self.pool.doWork(index) }
      if isHeld(IOTag(rawValue: tag)) { held.append(work) } else { candidates.append(work) }
    }
    if !held.isEmpty {
      patience += 1
      if candidates.isEmpty && force || patience > 60 {
        patience = 0
        candidates = held
      }
    }
    guard !candidates.isEmpty else { return !held.isEmpty }
    // Mostly in order, as disks do; then anything.
    candidates[random.chance(30) ? 0 : random.below(candidates.count)]()
    return true
  }

  private func isHeld(_ work: DiskWork) -> Bool {
    let page = Int(min(scenario.clusterByteCount, UInt64(TableCache.pageByteCountMax)))
    switch (scenario.hold, work) {
    case (.flushStep, .flush): return true
    case (.tableLoad, .read(let byteCount)): return byteCount == page
    case (.bigWrite, .write(let byteCount)): return byteCount > page
    default: return false
    }
  }

  private func isHeld(_ tag: IOTag) -> Bool {
    switch scenario.hold {
    case .punch: tag.kind == .poolForSlot && tag.index == ReleaseQueue.slot
    case .growth: tag.kind == .poolForGrowth
    case .nothing, .flushStep, .tableLoad, .bigWrite: false
    }
  }

  private func outcome(of work: DiskWork) -> DiskOutcome {
    if random.below(1000) < scenario.failuresPerThousand {
      hasFailures = true
      return .failed(errno: random.pick([EIO, ENOSPC]))
    }
    guard random.below(1000) < scenario.shortsPerThousand else { return .done }
    switch work {
    case .read(let byteCount), .write(let byteCount):
      let unit = max(Int(scenario.blockByteCount), 512)
      guard byteCount > unit else { return .done }
      return .short(byteCount: unit * (1 + random.below((byteCount - 1) / unit)))
    case .flush: return .done
    }
  }

  private func errnoOfBlockingCall(_ operation: RemoteOperation) -> Int32 {
    switch operation {
    case .read, .status: return 0
    case .write, .flush, .trim, .zero, .resize, .provision:
      guard random.below(1000) < scenario.failuresPerThousand else { return 0 }
      hasFailures = true
      return random.pick([EIO, ENOSPC])
    }
  }

  // MARK: Requests

  private func startRequest() throws {
    startedCount += 1
    let kind = random.below(100)
    let range = chooseRange()
    switch kind {
    case 0..<45:
      let flags: CommandFlags = random.chance(20) ? .fua : []
      let version = model.takeVersion()
      try start(.write, range, flags, version: version)
    case 45..<58:
      var flags: CommandFlags = []
      if random.chance(30) { flags.insert(.noHole) }
      if random.chance(15) { flags.insert(.fastZero) }
      if random.chance(20) { flags.insert(.fua) }
      try start(.writeZeroes, range, flags, version: 0)
    case 58..<70: try start(.trim, range, random.chance(20) ? .fua : [], version: 0)
    case 70..<82: try start(.flush, ByteRange(start: 0, end: 0), [], version: nil)
    case 82..<96: try start(.read, range, [], version: nil)
    default:
      if scenario.resizes { return try startResize() }
      try start(.flush, ByteRange(start: 0, end: 0), [], version: nil)
    }
  }

  private func start(
    _ command: Command, _ range: ByteRange, _ flags: CommandFlags, version: UInt32?
  ) throws {
    model.tick()
    let change = version.map { model.begin(range, version: $0) } ?? -1
    let began = model.now
    let payload =
      command == .write ? GuestModel.bytes(range, version: version ?? 0) : []
    let slot = try Session.start(&image, command, range, flags, payload)
    running.append(
      Running(
        slot: slot, command: command, range: range, flags: flags, began: began, change: change))
  }

  private func startResize() throws {
    let step = random.pick([512, 4096, scenario.clusterByteCount * 3, 1 << 20])
    let last = model.byteCounts.max() ?? 0
    guard last + step <= 4 << 20 else { return }
    let byteCount = last + step
    model.beginResize(to: byteCount)
    try start(.resize, ByteRange(start: byteCount, end: byteCount), [], version: nil)
  }

  /// Mostly a few clusters that many requests share.
  private func chooseRange() -> ByteRange {
    let size = model.byteCounts[0]
    let unit = scenario.requestUnit
    let hot = min(size, scenario.clusterByteCount * 8)
    let area = random.chance(scenario.isOutgrown ? 0 : 70) ? hot : size
    let start = UInt64(random.below(Int(area / unit))) * unit
    let longest = random.pick([
      unit, 2048, scenario.clusterByteCount,
      scenario.clusterByteCount * scenario.requestClusterCountMax,
    ])
    let length = UInt64(1 + random.below(max(Int(longest / unit), 1))) * unit
    return ByteRange(start: start, end: min(start + length, size))
  }

  /// Takes what has ended, and holds it against the model.
  private func collect() throws {
    while let slot = Session.takeFinished(&image) {
      guard let index = running.firstIndex(where: { $0.slot == slot }) else {
        try collectOwnWork(slot)
        continue
      }
      let request = running.remove(at: index)
      model.tick()
      let error = image.requests.slots[slot].error
      try settle(request, error)
      image.requests.slots[slot].stage = .replying
      image.retire(slot)
    }
  }

  private func settle(_ request: Running, _ error: BlockErrno) throws {
    if error != .none {
      let isRefusal = request.flags.contains(.fastZero) && error == .notSupported
      guard hasFailures || isRefusal || request.command == .resize else {
        throw Breach("\(request.command) \(request.range) fails with \(error) on a sound disk")
      }
    }
    switch request.command {
    case .write, .writeZeroes:
      model.end(
        request.change, replaces: error == .none,
        isDurable: error == .none && request.flags.contains(.fua))
    case .trim: model.end(request.change, replaces: false, isDurable: false)
    case .flush: if error == .none { model.flushed(since: request.began) }
    case .read:
      guard error == .none else { return }
      let bytes = Session.payload(image, request.slot)
      let rules = model.rulesForReading(request.range, since: request.began)
      if let breach = GuestModel.breach(bytes, at: request.range.start, rules) {
        throw Breach("READ \(request.range): \(breach)")
      }
    case .resize: model.endResize(to: request.range.start, isDone: error == .none)
    case .blockStatus, .cache, .disconnect: break
    }
  }
}

// MARK: Bitmaps

extension Session {
  /// Orders a change of the bitmaps that the image keeps, unless one goes on.
  fileprivate func orderBitmaps() {
    let held = bitmaps.entries.map(\.name)
    guard !image.standstill.isHolding else { return }
    let name = random.pick(BitmapModel.names + held.prefix(1))
    let action: BitmapAction
    if image.store.unusable(named: name) != nil {
      action = .remove(name: name)
    } else if !held.contains(name) {
      guard held.count < scenario.bitmapCount else { return }
      action = .add(
        name: name, granularityByteCount: UInt64(random.pick([512, 4096, 65536])),
        isEnabled: true, isPersistent: true)
    } else if random.chance(15) {
      action = .remove(name: name)
    } else if held.count > 1, random.chance(30) {
      action = .merge(sources: held, target: name)
    } else {
      action = .clear(name: name)
    }
    guard image.changesStore([action]) else { return }
    if image.startBitmapWork(.change([action])) {
      ordered = [action]
    }
  }

  /// Changes that are in force and not answered.
  var changesDone: Set<Int> {
    Set(running.filter { image.requests.slots[$0.slot].stage == .finished }.map(\.change))
  }

  /// The moment of a change that was made ready, or the end of other work of the image's own.
  fileprivate func collectOwnWork(_ slot: Int) throws {
    model.tick()
    if image.standstill.slot == Int32(slot) { try endSnapshotOrder() }
    if image.store.work.slot == Int32(slot) {
      let actions = ordered
      bitmaps.begin(
        actions, model.rulesOfThePast(ByteRange(start: 0, end: 8 << 20), done: changesDone))
      let fault = image.commitBitmapChange(slot) { _ in nil }
      bitmaps.end(actions, isKept: fault == nil)
      if let fault, !hasFailures { throw Breach("\(actions): \(fault.reason)") }
    }
    image.requests.slots[slot].stage = .replying
    image.retire(slot)
  }
}

// Several of its parts are changed at once, which only a method may do.
extension ImageStack {
  fileprivate mutating func wakeAllDeferred() {
    ready.append(contentsOf: &deferred, &requests.slots)
  }
  fileprivate mutating func takeOneFinished() -> Int? { finished.popFirst(&requests.slots) }
}
