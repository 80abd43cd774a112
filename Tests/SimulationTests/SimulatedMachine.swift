// SPDX-License-Identifier: Apache-2.0
//
// The disks of a simulation by their names, and what the product's own tools make of them: created,
// checked and opened by the code that does so for files.

import BlockTypes
import ImageTools
import LinuxIO

@testable import DataPlane

/// Why a simulation ended badly.
struct Breach: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}

/// Disks by name.
struct SimulatedMachine: RemoteOpener {
  var disks: [String: SimulatedDisk] = [:]
  /// The image's clusters are encrypted, by a cipher that is none.
  var isEncrypted = false

  func recognises(_ name: String) -> Bool { disks[name] != nil }

  func open(
    _ address: String, namedBy overlay: String?, access: ImageFile.Access
  ) throws(ImageFault) -> LayerFile {
    guard let disk = disks[address] else { preconditionFailure("there is no disk \(address)") }
    return LayerFile(disk, path: address)
  }

  /// The same machine with other contents of its disks, as after a power cut; nothing is under way.
  func with(_ contents: [String: DiskContents]) -> SimulatedMachine {
    var other = self
    for (name, disk) in disks {
      other.disks[name] = SimulatedDisk(
        name, contents: contents[name] ?? disk.contents, blockByteCount: disk.blockByteCount)
      other.disks[name]?.punchesHoles = disk.punchesHoles
    }
    return other
  }

  /// What the disks that are written hold if the power fails now.
  func contentsAfter(
    _ cut: SimulatedDisk.Cut, _ random: inout SeededRandom
  ) -> [String: DiskContents] {
    var left = ["disk": disk.contentsAfter(cut, &random)]
    if let data = disks["data"] { left["data"] = data.contentsAfter(cut, &random) }
    return left
  }

  var disk: SimulatedDisk {
    guard let disk = disks["disk"] else { preconditionFailure("a machine has no disk") }
    return disk
  }

  /// Called at the moments at which power may fail.
  var onMoment: (() -> Void)? {
    get { disk.onMoment }
    nonmutating set {
      disk.onMoment = newValue
      disks["data"]?.onMoment = newValue
    }
  }

  /// Lets all that was done be what there always was.
  func settle() { for disk in disks.values { disk.replace(disk.contents) } }

  // MARK: Making it

  init(_ scenario: Scenario, seed: UInt64) throws {
    disks["disk"] = SimulatedDisk("disk", blockByteCount: scenario.blockByteCount, seed: seed)
    isEncrypted = scenario.isEncrypted
    if scenario.base != .none { try makeBase(scenario) }
    var options = CreateOptions()
    try options.apply(scenario.options, path: "disk")
    options.diskByteCount = scenario.diskByteCount
    if scenario.base != .none {
      options.backingFile = "base"
      options.backingFormat = scenario.base == .raw ? .raw : .qcow2
    }
    if scenario.hasSubclusters { options.diskByteCount = scenario.diskByteCount * 2 }
    _ = try Create.run(path: "disk", format: .qcow2, options: options, remote: self)
    if scenario.hasSubclusters { try extendEntries(scenario.diskByteCount) }
    if scenario.hasDataFile {
      disks["data"] = SimulatedDisk(
        "data", blockByteCount: scenario.blockByteCount, seed: seed &+ 1)
      try setFeature(0x04)
    }
  }

  /// Says that the entries of the empty image have 128 bits: half as large a disk needs the same L1
  /// table then. Spec: qcow2.rst, "Header" (size, incompatible_features, bit 4).
  private func extendEntries(_ byteCount: UInt64) throws {
    let size = (0..<8).map { UInt8(truncatingIfNeeded: byteCount >> (56 - 8 * $0)) }
    _ = try disk.run(.write(offset: 24, bytes: size, isDurable: false))
    try setFeature(0x10)
  }

  /// Sets an incompatible feature bit of the lowest byte.
  private func setFeature(_ bit: UInt8) throws {
    guard case .bytes(let features) = try disk.run(.read(ByteRange(start: 79, end: 80))) else {
      preconditionFailure("a read brings no bytes")
    }
    _ = try disk.run(.write(offset: 79, bytes: [features[0] | bit], isDurable: false))
    _ = try disk.run(.flush)
  }

  private mutating func makeBase(_ scenario: Scenario) throws {
    let size = scenario.baseByteCount
    disks["base"] = SimulatedDisk("base")
    if scenario.base == .raw {
      for range in SimulatedMachine.baseData(scenario) {
        _ = try disks["base"]?.run(
          .write(
            offset: range.start, bytes: GuestModel.bytes(range, version: 1), isDurable: false))
      }
      _ = try disks["base"]?.run(.resize(to: size))
      return
    }
    var options = CreateOptions()
    try options.apply("cluster_size=4096", path: "base")
    options.diskByteCount = size
    if scenario.base == .chain {
      disks["bottom"] = SimulatedDisk("bottom")
      var bottom = CreateOptions()
      bottom.diskByteCount = size
      _ = try Create.run(path: "bottom", format: .qcow2, options: bottom, remote: self)
      try fill("bottom", SimulatedMachine.baseData(scenario).prefix(1))
      options.backingFile = "bottom"
      options.backingFormat = .qcow2
    }
    _ = try Create.run(path: "base", format: .qcow2, options: options, remote: self)
    try fill(
      "base", SimulatedMachine.baseData(scenario).dropFirst(scenario.base == .chain ? 1 : 0))
  }

  private func fill(_ name: String, _ ranges: ArraySlice<ByteRange>) throws {
    var image = try Session.open(
      self, path: name, access: .readWrite, cacheByteCount: 0, pool: BlockingPool())
    for range in ranges {
      try Session.finish(&image, .write, range, GuestModel.bytes(range, version: 1))
    }
    try Session.settle(&image)
    image.unmapAll()
  }

  /// The ranges of the base that have data, ends of which lie in the middle of clusters.
  static func baseData(_ scenario: Scenario) -> [ByteRange] {
    let size = scenario.baseByteCount
    let third = (size / 3).alignedDown(to: 512)
    return [
      ByteRange(start: 512, end: third), ByteRange(start: third + 1024, end: size - 512),
    ].filter { $0.start < $0.end && $0.end <= size }
  }

  // MARK: Judging it

  /// Whether the image says that somebody has to repair it before anybody believes it.
  /// Spec: qcow2.rst, "Header" (version, incompatible_features, bit 0).
  var isMarkedDirty: Bool {
    let header = disk.contents.read(ByteRange(start: 0, end: 80))
    return header[7] >= 3 && header[79] & 1 == 1
  }

  /// The findings of the product's check that a power cut may not leave, and the count of leaks.
  func check() throws -> (faults: [String], leakCount: Int) {
    var faults: [String] = []
    var options = Check.Options()
    options.format = .qcow2
    options.takesLocks = false
    options.remote = self
    let outcome = try Check.run(path: "disk", options: options) { finding in
      if finding.severity == .corruption { faults.append(finding.text) }
    }
    if faults.isEmpty, outcome.report.corruptionCount > 0 { faults.append("corruptions") }
    return (faults, outcome.report.leakCount)
  }
}
