// SPDX-License-Identifier: Apache-2.0
//
// An image on a simulated disk whose operations a test ends one by one, as it likes.

import BlockTypes
import LinuxIO
import NBDProtocol

@testable import DataPlane

/// An empty image on a disk whose operations the test ends one by one.
final class SteppedImage {
  let machine: SimulatedMachine
  var image: ImageStack
  /// The giving back of clusters waits before it punches their holes.
  var holdsPunches = false

  init(compresses: Bool = false) throws {
    machine = try SimulatedMachine(Scenario(), seed: 1)
    image = try Session.open(
      machine, path: "disk", access: .readWrite, cacheByteCount: 0,
      pool: BlockingPool(), compresses: compresses)
    machine.disk.isInstant = false
  }

  deinit { image.unmapAll() }

  var l1TableOffset: UInt64 { image.layers[0].l1TableOffset }
  var l2TableOffset: UInt64 { tableOffset(image.layers[0].l1[0]) }

  static func range(ofCluster cluster: UInt64) -> ByteRange {
    ByteRange(start: cluster * 4096, end: (cluster + 1) * 4096)
  }

  func write(_ cluster: UInt64, version: UInt32 = 7) throws -> BlockErrno {
    let range = SteppedImage.range(ofCluster: cluster)
    return try finish(.write, range, GuestModel.bytes(range, version: version)) { _ in .done }
  }

  func flush() throws -> BlockErrno { try finish(.flush) { _ in .done } }

  /// Where the file has the cluster, once its table is in memory.
  func host(ofCluster cluster: UInt64) -> UInt64? {
    let range = SteppedImage.range(ofCluster: cluster)
    guard case .data(0, let host, _) = image.resolve(range.start, range.end) else { return nil }
    return host
  }

  /// Punches that are held back now.
  var heldPunchCount: Int { image.pool.waitingTags.count { isPunch($0) } }

  private func isPunch(_ tag: UInt64) -> Bool {
    let tag = IOTag(rawValue: tag)
    return tag.kind == .poolForSlot && tag.index == ReleaseQueue.slot
  }

  private func workOnPool() {
    while let index = image.pool.waitingTags.firstIndex(where: { !holdsPunches || !isPunch($0) }) {
      image.pool.doWork(index)
    }
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
        guard done == slot else { throw Breach("another request ended") }
        let error = image.requests.slots[done].error
        image.requests.slots[done].stage = .replying
        image.retire(done)
        return error
      }
      workOnPool()
      if let operation = machine.disk.operations.first {
        machine.disk.complete(0, outcome(operation))
      }
    }
    throw Breach("\(command) does not end")
  }
}

private func tableOffset(_ word: UInt64) -> UInt64 { word & 0x00ff_ffff_ffff_fe00 }
