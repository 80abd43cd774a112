// SPDX-License-Identifier: Apache-2.0
//
// What a flush that failed half way leaves to the next one. Found by simulation: a table that the
// disk may know by then was written beside the counts of its clusters, and not behind them.

import BlockTypes
import Glibc
import LinuxIO
import NBDProtocol
import Testing

@testable import DataPlane

/// An empty image on a disk whose operations the test ends one by one.
private final class Bench {
  let machine: SimulatedMachine
  var image: ImageStack

  init() throws {
    machine = try SimulatedMachine(Scenario(), seed: 1)
    image = try Session.open(
      machine, path: "disk", access: .readWrite, cacheByteCount: 0,
      pool: BlockingPool())
    machine.disk.isInstant = false
  }

  deinit { image.unmapAll() }

  var l1TableOffset: UInt64 { image.layers[0].l1TableOffset }
  var l2TableOffset: UInt64 { tableOffset(image.layers[0].l1[0]) }

  func write(_ cluster: UInt64) throws -> BlockErrno {
    let range = ByteRange(start: cluster * 4096, end: (cluster + 1) * 4096)
    return try finish(.write, range, GuestModel.bytes(range, version: 7)) { _ in .done }
  }

  /// Ends operations as `outcome` says until the request has ended.
  func finish(
    _ command: Command, _ range: ByteRange = ByteRange(start: 0, end: 0), _ payload: [UInt8] = [],
    _ outcome: (RemoteOperation) -> DiskOutcome
  ) throws -> BlockErrno {
    let slot = try Session.start(&image, command, range, [], payload)
    for _ in 0..<1000 {
      Session.round(&image)
      if let done = Session.takeFinished(&image) {
        try #require(done == slot)
        let error = image.requests.slots[done].error
        image.requests.slots[done].stage = .replying
        image.retire(done)
        return error
      }
      while !image.pool.waitingTags.isEmpty { image.pool.doWork(0) }
      if let operation = machine.disk.operations.first {
        machine.disk.complete(0, outcome(operation))
      }
    }
    throw Breach("\(command) does not end")
  }
}

private func tableOffset(_ word: UInt64) -> UInt64 { word & 0x00ff_ffff_ffff_fe00 }

@Suite struct `A flush that failed at its last step` {
  @Test func `has its tables written behind the counts by the next one`() throws {
    let bench = try Bench()
    #expect(try bench.write(0) == .none)
    let l1 = bench.l1TableOffset
    let failed = try bench.finish(.flush) { operation in
      if case .write(l1, _, _) = operation { return .failed(errno: ENOSPC) }
      return .done
    }
    #expect(failed == .noSpace)

    #expect(try bench.write(1) == .none)
    let l2 = bench.l2TableOffset
    var synchronised = false
    var wasWritten = false
    let outcome = try bench.finish(.flush) { operation in
      if case .flush = operation { synchronised = true }
      if case .write(l2, _, _) = operation {
        wasWritten = true
        #expect(synchronised, "the table goes before the counts are durable")
      }
      return .done
    }
    #expect(outcome == .none)
    #expect(wasWritten)
  }

  @Test func `is followed by one that writes the L1 table again`() throws {
    let bench = try Bench()
    #expect(try bench.write(0) == .none)
    let l1 = bench.l1TableOffset
    _ = try bench.finish(.flush) { operation in
      if case .write(l1, _, _) = operation { return .failed(errno: ENOSPC) }
      return .done
    }
    var isWritten = false
    _ = try bench.finish(.flush) { operation in
      if case .write(l1, _, _) = operation { isWritten = true }
      return .done
    }
    #expect(isWritten)
    let (faults, leakCount) = try bench.machine.check()
    #expect(faults.isEmpty && leakCount == 0)
  }
}
