// SPDX-License-Identifier: Apache-2.0
//
// What an image holds before the first request: data, some of it packed, snapshots that share it,
// and bitmaps. Spec: qcow2.rst, "Compressed Cluster Descriptor", "Snapshots".

import Bitmaps
import BlockTypes
import Compression
import LinuxIO
import NBDProtocol
import Qcow2

@testable import DataPlane
@testable import ImageTools

extension SimulatedMachine {
  /// Fills the image as the scenario wants it; `model` learns of the data.
  func prefill(
    _ scenario: Scenario, _ model: inout GuestModel, _ random: inout SeededRandom
  ) throws -> SnapshotModel {
    var snapshots = SnapshotModel()
    for round in 0...scenario.snapshotCount {
      try write(scenario, &model, &random)
      if scenario.hasPackedClusters { try pack(&random) }
      guard round < scenario.snapshotCount else { break }
      snapshots.set(try takeSnapshot(named: "s\(round)", model))
    }
    if scenario.isOutgrown { try fillUp(&random) }
    return snapshots
  }

  /// Takes a snapshot of a disk at rest.
  func takeSnapshot(named name: String, _ model: GuestModel) throws -> SnapshotModel.Entry {
    _ = try Snapshots.create(path: "disk", format: .qcow2, name: name, remote: self)
    let byteCount = model.byteCounts[0]
    return SnapshotModel.Entry(
      name: name, byteCounts: [byteCount],
      rules: model.rulesAfterCut(ByteRange(start: 0, end: byteCount)), isDue: true)
  }

  private func write(
    _ scenario: Scenario, _ model: inout GuestModel, _ random: inout SeededRandom
  ) throws {
    var image = try Session.open(
      self, path: "disk", access: .readWrite, cacheByteCount: 0, pool: BlockingPool())
    defer { image.unmapAll() }
    let size = scenario.diskByteCount.alignedDown(to: 512)
    for _ in 0..<3 {
      let cluster = scenario.clusterByteCount
      let count = UInt64(1 + random.below(6)) * cluster
      let limit = min(size, cluster * 24)
      let start = UInt64(random.below(max(Int(limit / cluster), 1))) * cluster
      let range = ByteRange(start: start, end: min(start + count, size))
      guard !range.isEmpty else { continue }
      let version = model.takeVersion()
      try Session.finish(&image, .write, range, GuestModel.bytes(range, version: version))
      model.addInitial(range, version: version)
    }
    try Session.settle(&image)
  }

  /// Takes clusters for nothing, until the next refcount block will be one of the last that the
  /// refcount table has room for.
  private func fillUp(_ random: inout SeededRandom) throws {
    let storage = LayerFile(disk, path: "disk")
    let header = try OpenedLayer.readHeader(of: storage)
    let counts = try RefcountEditor(storage, header)
    let perBlock = header.geometry.refcountBlockEntryCount
    let bits = UInt64(header.geometry.clusterBits)
    let end = (UInt64(counts.table.count) - 1) * perBlock - UInt64(random.below(Int(perBlock)))
    let used = header.geometry.clusterCount(for: disk.byteCount)
    // The blocks that count them lie behind them.
    let blockCount = (end - used) / perBlock + 1
    _ = try counts.allocate(byteCount: (end - used - blockCount) << bits)
    try counts.flush()
    _ = try disk.run(.resize(to: max(end << bits, disk.byteCount)))
  }

  // MARK: Packed clusters

  /// Packs some clusters that nobody shares where they lie; a packed one leaves room for the next.
  private func pack(_ random: inout SeededRandom) throws {
    let storage = LayerFile(disk, path: "disk")
    let header = try OpenedLayer.readHeader(of: storage)
    let counts = try RefcountEditor(storage, header)
    let geometry = header.geometry
    let clusterByteCount = geometry.clusterByteCount
    let bits = UInt64(geometry.clusterBits)
    let l1 = try storage.read(
      at: header.l1TableOffset.byteOffset, byteCount: header.l1EntryCount * 8
    ).bigEndianWords()
    var room: (host: UInt64, used: UInt64) = (0, 0)
    for word in l1 where L1Entry(rawValue: word).tableOffset.byteOffset != 0 {
      let table = L1Entry(rawValue: word).tableOffset.byteOffset
      guard word >> 63 == 1 else { continue }
      let width = geometry.l2EntryByteCount
      for at in stride(from: 0, to: Int(clusterByteCount), by: width) {
        let place = table + UInt64(at)
        let entry = try storage.read(at: place, byteCount: 8).bigEndianWords()[0]
        let host = entry & 0x00ff_ffff_ffff_fe00
        guard entry >> 62 == 2, host != 0, entry & 1 == 0, random.chance(60) else { continue }
        let plain = try storage.read(at: host, byteCount: Int(clusterByteCount))
        guard plain.count == Int(clusterByteCount),
          let packed = try ClusterCodec.deflate.pack(plain, 0..<plain.count)
        else { continue }
        let byteCount = UInt64(packed.count)
        var offset = host
        if room.used > 0, room.used + byteCount <= clusterByteCount, random.chance(50),
          geometry.refcountMax >= 15, try counts.count(of: room.host >> bits) == 1
        {
          offset = room.host + room.used
          try counts.raise(room.host >> bits)
          try counts.lower(host >> bits)
          room.used += byteCount
        } else {
          room = (host, byteCount)
        }
        try storage.write(packed, at: offset)
        let sectors = (offset % 512 + byteCount - 1) / 512
        let word: UInt64 = 1 << 62 | sectors << (62 - (bits - 8)) | offset
        let bytes = (0..<width).map {
          $0 < 8 ? UInt8(truncatingIfNeeded: word >> (56 - 8 * $0)) : 0
        }
        try storage.write(bytes, at: place)
      }
    }
    try counts.flush()
  }
}

/// A cipher that every sector number changes, and that is no secret.
final class SimulatedCipher: SectorCipher {
  func decrypt(_ bytes: inout MutableRawSpan, firstSector: UInt64) -> Bool {
    bytes.withUnsafeMutableBytes { SimulatedCipher.turn($0, firstSector) }
    return true
  }

  func encrypt(
    _ plain: RawSpan, into sealed: inout MutableRawSpan, firstSector: UInt64
  ) -> Bool {
    sealed.withUnsafeMutableBytes { target in
      plain.withUnsafeBytes { target.copyMemory(from: $0) }
      SimulatedCipher.turn(
        UnsafeMutableRawBufferPointer(rebasing: target[..<plain.byteCount]), firstSector)
    }
    return true
  }

  private static func turn(_ bytes: UnsafeMutableRawBufferPointer, _ first: UInt64) {
    for at in stride(from: 0, to: bytes.count, by: 8) {
      let sector = first + UInt64(at / CipherSector.byteCount)
      let word = bytes.loadUnaligned(fromByteOffset: at, as: UInt64.self)
      let key = (sector &+ 1) &* 0x9e37_79b9_7f4a_7c15 &+ UInt64(at % CipherSector.byteCount)
      bytes.storeBytes(of: word ^ key, toByteOffset: at, as: UInt64.self)
    }
  }
}
