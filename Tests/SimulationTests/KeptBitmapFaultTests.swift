// SPDX-License-Identifier: Apache-2.0
//
// The n-th operation of the disk fails, for every n of a workload that changes, clears and merges
// bitmaps which the image keeps: with any error, and with the bytes written or not. What was
// answered holds, the image stays right, and no bitmap says less than the truth after a cut.
// Source: decision 0024.

import Bitmaps
import BlockTypes
import Glibc
import LinuxIO
import NBDProtocol
import Testing

@testable import DataPlane

/// One workload with one fault.
private final class FaultedBitmaps {
  private let machine: SimulatedMachine
  private var image: ImageStack
  private var model = GuestModel(byteCount: FaultedBitmaps.diskByteCount)
  private var bitmaps = BitmapModel()
  private static let diskByteCount: UInt64 = 32 << 10
  private let whole = ByteRange(start: 0, end: FaultedBitmaps.diskByteCount)
  private var random = SeededRandom(seed: 1)
  private var operationsLeft: Int
  private let errno: Int32
  private(set) var refusals: [String] = []
  var hasFailed: Bool { operationsLeft < 0 }

  /// - Parameters:
  ///   - number: the operation that fails, from 0 on.
  ///   - isWritten: what fails has been done all the same, if it is a write.
  init(number: Int, errno: Int32, isWritten: Bool) throws {
    var scenario = Scenario()
    scenario.diskByteCount = FaultedBitmaps.diskByteCount
    machine = try SimulatedMachine(scenario, seed: 1)
    self.errno = errno
    operationsLeft = .max
    image = try Session.open(
      machine, path: "disk", access: .readWrite, cacheByteCount: 0, pool: BlockingPool())
    model.addInitial(whole, version: 0)
    try order(.add(name: "b0", granularityByteCount: 512, isEnabled: true, isPersistent: true))
    try write(0)
    try Session.settle(&image)
    image.unmapAll()
    machine.settle()
    machine.disk.damagePercent = isWritten ? 100 : 0
    machine.disk.isInstant = false
    machine.disk.onBlockingCall = { [unowned self] operation in
      if case .read = operation { 0 } else { self.fails() ? self.errno : 0 }
    }
    image = try Session.open(
      machine, path: "disk", access: .readWrite, cacheByteCount: 0, pool: BlockingPool())
    operationsLeft = number
  }

  deinit { image.unmapAll() }

  private func fails() -> Bool {
    operationsLeft -= 1
    return operationsLeft == -1
  }

  func run() throws {
    try write(1)
    try order(.add(name: "b1", granularityByteCount: 4096, isEnabled: true, isPersistent: true))
    try write(2)
    try order(.clear(name: "b0"))
    try write(3)
    try order(.merge(sources: ["b0"], target: "b1"))
    try write(1)
    try order(.remove(name: "b0"))
    try write(5)
    try judge()
  }

  /// Moves everything until `isOver` says so of a slot that has ended.
  private func until(_ isOver: (Int) throws -> Bool) throws {
    for _ in 0..<5_000 {
      Session.round(&image)
      if let done = Session.takeFinished(&image) {
        if try isOver(done) { return }
        continue
      }
      while !image.pool.waitingTags.isEmpty { image.pool.doWork(0) }
      if let operation = machine.disk.operations.first {
        var isCounted = true
        if case .read = operation { isCounted = false }
        machine.disk.complete(0, isCounted && fails() ? .failed(errno: errno) : .done)
      }
    }
    throw Breach("nothing moves any more")
  }

  private func retire(_ slot: Int) -> BlockErrno {
    let error = image.requests.slots[slot].error
    image.requests.slots[slot].stage = .replying
    image.retire(slot)
    return error
  }

  private func write(_ cluster: UInt64) throws {
    model.tick()
    let range = ByteRange(start: cluster * 4096, end: cluster * 4096 + 1024)
    let version = model.takeVersion()
    let change = model.begin(range, version: version)
    let slot = try Session.start(
      &image, .write, range, .fua, GuestModel.bytes(range, version: version))
    try until { done in
      let error = self.retire(done)
      guard done == slot else { return false }
      self.model.tick()
      self.model.end(change, replaces: error == .none, isDurable: error == .none)
      if error != .none {
        self.refusals.append("write: \(error)")
        guard self.hasFailed else { throw Breach("a write fails with \(error) on a sound disk") }
      }
      return true
    }
    try judge()
  }

  private func order(_ action: BitmapAction) throws {
    guard image.startBitmapWork(.change([action])) else { throw Breach("work goes on") }
    try until { done in
      guard self.image.store.work.slot == Int32(done) else {
        _ = self.retire(done)
        return false
      }
      self.model.tick()
      self.bitmaps.begin([action], self.model.rulesOfThePast(self.whole, done: []))
      let fault = self.image.commitBitmapChange(done) { _ in nil }
      self.bitmaps.end([action], isKept: fault == nil)
      _ = self.retire(done)
      if let fault {
        self.refusals.append(fault.reason)
        guard self.hasFailed else { throw Breach("\(action): \(fault.reason)") }
      }
      return true
    }
    try judge()
  }

  /// The power fails now, in two ways.
  private func judge() throws {
    for cut in [SimulatedDisk.Cut.nothingIsLost, .allIsLost] {
      let left = machine.with(machine.contentsAfter(cut, &random))
      let (faults, _) = try left.check()
      guard faults.isEmpty else { throw Breach("\(cut): \(faults.prefix(2))") }
      var found = try Session.open(
        left, path: "disk", access: .readWrite, cacheByteCount: 0, pool: BlockingPool())
      defer { found.unmapAll() }
      let bytes = try Session.finish(&found, .read, whole)
      if let breach = GuestModel.breach(bytes, at: 0, model.rulesAfterCut(whole))
        ?? bitmaps.breach(found, bytes, mayBeLost: hasFailed)
      {
        throw Breach("\(cut): \(breach)")
      }
    }
  }
}

@Suite struct `A disk that fails once under bitmaps that the image keeps` {
  @Test(arguments: [false, true])
  func `leaves them as wide as the truth, or unusable`(isWritten: Bool) throws {
    var number = 0
    var refusedCount = 0
    while true {
      let errno = [EIO, ENOSPC, EDQUOT][number % 3]
      let workload = try FaultedBitmaps(number: number, errno: errno, isWritten: isWritten)
      do { try workload.run() } catch {
        Issue.record("operation \(number) fails with \(errno): \(error); \(workload.refusals)")
      }
      guard workload.hasFailed else { break }
      if !workload.refusals.isEmpty { refusedCount += 1 }
      number += 1
    }
    #expect(number > 30)
    #expect(refusedCount > 5, "only \(refusedCount) of \(number) faults were told")
  }
}
