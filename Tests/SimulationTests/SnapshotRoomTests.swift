// SPDX-License-Identifier: Apache-2.0
//
// Snapshots of an image that a power cut has left shorter than what it counts. Found by simulation:
// it was called damaged, and got no snapshot. Spec: qcow2.rst, "Host cluster management".

import BlockTypes
import LinuxIO
import Testing

@testable import DataPlane
@testable import ImageTools

@Suite struct `An image that counts clusters behind the end of its file` {
  @Test func `gets snapshots, and loses them, like any other`() throws {
    var scenario = Scenario()
    scenario.options = "cluster_size=512,refcount_bits=64"
    scenario.clusterByteCount = 512
    scenario.diskByteCount = 64 << 10
    let machine = try SimulatedMachine(scenario, seed: 1)
    let range = ByteRange(start: 0, end: 8192)
    let data = GuestModel.bytes(range, version: 5)
    var image = try Session.open(
      machine, path: "disk", access: .readWrite, cacheByteCount: 0, pool: BlockingPool())
    try Session.finish(&image, .write, range, data)
    try Session.settle(&image)
    image.unmapAll()

    #expect(try leak(behindTheEndOf: machine) > 0)
    let id = try Snapshots.create(path: "disk", format: .qcow2, name: "one", remote: machine)
    #expect(try machine.check().faults.isEmpty)
    var snapshot = try Session.open(
      machine, path: "disk", access: .readOnly, cacheByteCount: 0, pool: BlockingPool(),
      snapshot: "one")
    defer { snapshot.unmapAll() }
    #expect(try Session.finish(&snapshot, .read, range) == data)
    try Snapshots.delete(path: "disk", format: .qcow2, idOrName: id, remote: machine)
    #expect(try machine.check().faults.isEmpty)
  }

  /// Counts all that the first refcount block can count behind the end of the file, as a cut does
  /// that keeps counts and loses the file's length. Returns how many clusters that are.
  private func leak(behindTheEndOf machine: SimulatedMachine) throws -> UInt64 {
    let storage = LayerFile(machine.disk, path: "disk")
    let header = try OpenedLayer.readHeader(of: storage)
    let counts = try RefcountEditor(storage, header)
    let end = header.geometry.clusterCount(for: machine.disk.byteCount)
    let limit = header.geometry.refcountBlockEntryCount
    for cluster in end..<max(limit, end) { try counts.set(1, of: cluster) }
    try counts.flush()
    return limit - min(end, limit)
  }
}
