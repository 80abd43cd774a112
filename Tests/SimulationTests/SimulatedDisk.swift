// SPDX-License-Identifier: Apache-2.0
//
// A disk in memory that does what the schedule says, when it says so, and that knows what a power
// cut would leave of it. The product uses it as it uses any storage that is no file
// (tools/decisions/0029). One thread uses it.
//
// A write is made at the moment of its completion; until the disk is synchronised, each of its
// sectors may survive a cut or not, whatever becomes of the others. What is in flight may survive
// too. Source: proto.md, "Ordering of messages and writes"; fsync(2).

import BlockTypes
import Glibc
import LinuxIO

/// How one operation ends.
enum DiskOutcome {
  case done
  /// Only the first bytes, in whole sectors.
  case short(byteCount: Int)
  /// An error; of a write, some sectors may have been written.
  case failed(errno: Int32)
}

/// What a disk does that a schedule may hold up.
enum DiskWork {
  case read(byteCount: Int)
  case write(byteCount: Int)
  case flush
}

final class SimulatedDisk: RemoteStorage, @unchecked Sendable {
  typealias Completion = @Sendable (Result<RemoteAnswer, RemoteFault>) -> Void

  /// One change of the disk that has not been synchronised.
  private struct Effect {
    enum Change {
      /// Whole sectors as they were afterwards. The disk has at least `end` bytes since.
      case write(offset: UInt64, bytes: [UInt8], end: UInt64)
      case zero(ByteRange)
      case length(UInt64)
    }
    let change: Change
    /// It went to stable storage by itself.
    let isDurable: Bool
  }

  private struct Pending {
    let operation: RemoteOperation
    let completion: Completion
    /// Changes that were made when the operation came: those that a flush makes durable.
    let effectCount: Int
  }

  let identity: String
  let blockByteCount: UInt64
  /// What reads see.
  private(set) var contents: DiskContents
  /// What is there after every cut.
  private(set) var durable: DiskContents
  private var effects: [Effect] = []
  private var firstEffect = 0
  private var pending: [Pending] = []
  private var random: SeededRandom

  /// Operations end as soon as they come, as long as nobody schedules them.
  var isInstant = true
  /// Of 100 sectors of a write that fails, how many are written.
  var damagePercent = 30
  /// Whether it can zero ranges and take space ahead.
  var punchesHoles = true
  /// What would make it longer fails.
  var byteCountMax = UInt64.max
  /// For the judge's own test.
  var lie = DiskLie.none
  /// Called after each change and each flush: the moments at which power may fail.
  var onMoment: (() -> Void)?
  /// What becomes of an operation that somebody waits for on the spot.
  var onBlockingCall: ((RemoteOperation) -> Int32)?

  init(
    _ identity: String, contents: DiskContents = DiskContents(), blockByteCount: UInt64 = 1,
    seed: UInt64 = 0
  ) {
    self.identity = identity
    self.contents = contents
    self.durable = contents
    self.blockByteCount = blockByteCount
    random = SeededRandom(seed: seed)
  }

  // MARK: As a storage

  var byteCount: UInt64 { contents.byteCount }
  var isGrowable: Bool { true }
  var tellsStatus: Bool { true }
  func begin() throws(SystemError) {}
  func hurry() {}

  func start(_ operation: RemoteOperation, completion: @escaping Completion) {
    if let refusal = refusal(operation) { return completion(.failure(refusal)) }
    guard isInstant else {
      pending.append(
        Pending(operation: operation, completion: completion, effectCount: effectCount))
      return
    }
    completion(.success(perform(operation, flushing: effectCount)))
  }

  func run(_ operation: RemoteOperation) throws(RemoteFault) -> RemoteAnswer {
    if let errno = onBlockingCall?(operation), errno != 0 {
      damage(operation)
      throw RemoteFault(errno: errno, "the simulated disk fails")
    }
    if let refusal = refusal(operation) { throw refusal }
    return perform(operation, flushing: effectCount)
  }

  private func refusal(_ operation: RemoteOperation) -> RemoteFault? {
    switch operation {
    case .zero where !punchesHoles, .provision where !punchesHoles:
      RemoteFault.unsupported("the simulated disk has no holes")
    case .resize(let byteCount) where byteCount > byteCountMax,
      .write(let byteCount, _, _) where byteCount > byteCountMax:
      RemoteFault(errno: EFBIG, "the simulated disk would be too large")
    case .read, .write, .flush, .trim, .zero, .status, .resize, .provision: nil
    }
  }

  // MARK: The schedule's side

  /// Other contents, as if they had always been there.
  func replace(_ other: DiskContents) {
    (contents, durable) = (other, other)
    firstEffect += effects.count
    effects.removeAll()
  }

  /// Changes so far.
  var changeCount: Int { effectCount }

  var pendingCount: Int { pending.count }

  /// What was asked for and is not done.
  var operations: [RemoteOperation] { pending.map(\.operation) }

  func work(_ index: Int) -> DiskWork {
    switch pending[index].operation {
    case .read(let range): .read(byteCount: Int(range.byteCount))
    case .write(_, let bytes, _): .write(byteCount: bytes.count)
    case .flush: .flush
    case .trim, .zero, .status, .resize, .provision: .read(byteCount: 0)
    }
  }

  /// Ends operation `index` of those that are pending.
  func complete(_ index: Int, _ outcome: DiskOutcome) {
    let ended = pending.remove(at: index)
    switch outcome {
    case .done:
      ended.completion(.success(perform(ended.operation, flushing: ended.effectCount)))
    case .short(let byteCount): ended.completion(.success(performPart(ended, byteCount)))
    case .failed(let errno):
      damage(ended.operation)
      ended.completion(.failure(RemoteFault(errno: errno, "the simulated disk fails")))
    }
  }

  private func performPart(_ ended: Pending, _ byteCount: Int) -> RemoteAnswer {
    switch ended.operation {
    case .read(let range):
      return perform(
        .read(ByteRange(start: range.start, end: range.start + UInt64(byteCount))), flushing: 0)
    case .write(let offset, let bytes, let isDurable):
      _ = perform(
        .write(offset: offset, bytes: Array(bytes[..<byteCount]), isDurable: isDurable),
        flushing: 0)
      return .part(byteCount: byteCount)
    case .flush, .trim, .zero, .status, .resize, .provision:
      return perform(ended.operation, flushing: ended.effectCount)
    }
  }

  /// What a failed write leaves: any of its sectors.
  private func damage(_ operation: RemoteOperation) {
    guard case .write(let offset, let bytes, _) = operation else { return }
    var at = 0
    while at < bytes.count {
      let next = min(at + 512, bytes.count)
      if random.chance(damagePercent) {
        note(.write(offset: offset + UInt64(at), bytes: Array(bytes[at..<next]), isDurable: false))
      }
      at = next
    }
    onMoment?()
  }

  // MARK: Doing it

  private var effectCount: Int { firstEffect + effects.count }

  private func perform(_ operation: RemoteOperation, flushing covered: Int) -> RemoteAnswer {
    switch operation {
    case .read(let range): return .bytes(contents.read(range))
    case .status(let range):
      let run = contents.run(at: range.start)
      return .run(
        StatusRun(
          byteCount: min(run.byteCount, range.byteCount), isHole: run.isHole, isZero: run.isHole))
    case .provision: return .done
    case .flush: if lie != .ignoresFlushes { makeDurable(covered) }
    case .write, .trim, .zero, .resize: note(operation)
    }
    onMoment?()
    return .done
  }

  private func note(_ operation: RemoteOperation) {
    switch operation {
    case .write(var offset, let bytes, let isDurable):
      if lie == .misdirectsWrites, random.chance(5) { offset += DiskContents.sectorByteCount }
      contents.write(bytes[...], at: offset)
      let end = offset + UInt64(bytes.count)
      let sectors = ByteRange(start: offset, end: end)
        .roundedOut(to: DiskContents.sectorByteCount)
      let whole = sectors == ByteRange(start: offset, end: end) ? bytes : contents.read(sectors)
      append(
        .write(offset: sectors.start, bytes: whole, end: end), isDurable && lie != .ignoresFlushes)
    case .trim(let range), .zero(let range, _, _):
      contents.zero(range)
      append(.zero(range), false)
    case .resize(let byteCount):
      contents.resize(to: byteCount)
      append(.length(byteCount), false)
    case .read, .flush, .status, .provision: break
    }
  }

  private func append(_ change: Effect.Change, _ isDurable: Bool) {
    effects.append(Effect(change: change, isDurable: isDurable))
  }

  /// Takes over the changes up to number `count`.
  private func makeDurable(_ count: Int) {
    let taken = max(count - firstEffect, 0)
    for effect in effects[..<taken] { SimulatedDisk.apply(effect.change, to: &durable) }
    effects.removeFirst(taken)
    firstEffect += taken
  }

  private static func apply(_ change: Effect.Change, to contents: inout DiskContents) {
    switch change {
    case .write(let offset, let bytes, let end):
      let reach = min(max(contents.byteCount, end), offset + UInt64(bytes.count))
      contents.write(bytes[..<Int(reach - offset)], at: offset)
    case .zero(let range): contents.zero(range)
    case .length(let byteCount): contents.resize(to: byteCount)
    }
  }

  // MARK: The cut

  enum Cut: CaseIterable {
    /// Everything that was done survives: only what is in flight is lost.
    case nothingIsLost
    /// Only what was synchronised survives.
    case allIsLost
    /// Each operation survives whole or not at all, those in flight too.
    case operationsAreLost
    /// Each sector survives or not.
    case sectorsAreLost
  }

  /// What the disk holds if the power fails now.
  func contentsAfter(_ cut: Cut, _ random: inout SeededRandom) -> DiskContents {
    if cut == .nothingIsLost { return contents }
    var left = durable
    for effect in effects {
      if effect.isDurable {
        SimulatedDisk.apply(effect.change, to: &left)
      } else {
        survive(effect.change, cut, &left, &random)
      }
    }
    for operation in pending.map(\.operation).shuffled(using: &random) {
      switch operation {
      case .write(let offset, let bytes, _):
        let end = offset + UInt64(bytes.count)
        survive(.write(offset: offset, bytes: bytes, end: end), cut, &left, &random)
      case .trim(let range), .zero(let range, _, _): survive(.zero(range), cut, &left, &random)
      case .read, .flush, .status, .resize, .provision: break
      }
    }
    return left
  }

  private func survive(
    _ change: Effect.Change, _ cut: Cut, _ left: inout DiskContents, _ random: inout SeededRandom
  ) {
    switch cut {
    case .nothingIsLost: SimulatedDisk.apply(change, to: &left)
    case .allIsLost: return
    case .operationsAreLost:
      if random.chance(50) { SimulatedDisk.apply(change, to: &left) }
    case .sectorsAreLost:
      let size = DiskContents.sectorByteCount
      switch change {
      case .length: if random.chance(50) { SimulatedDisk.apply(change, to: &left) }
      case .zero(let range):
        for start in stride(from: range.start, to: range.end, by: Int(size))
        where random.chance(50) {
          left.zero(ByteRange(start: start, end: min(start + size, range.end)))
        }
      case .write(let offset, let bytes, let end):
        for start in stride(from: 0, to: bytes.count, by: Int(size)) where random.chance(50) {
          let next = min(start + Int(size), bytes.count)
          SimulatedDisk.apply(
            .write(
              offset: offset + UInt64(start), bytes: Array(bytes[start..<next]),
              end: min(end, offset + UInt64(next))), to: &left)
        }
      }
    }
  }
}
