// SPDX-License-Identifier: Apache-2.0
//
// What internal snapshots of a simulated disk must hold, and which of them there must be: a
// snapshot is the disk at one moment, for as long as it is there, whatever happens to the power.
// Source: decision 0031; qcow2.rst, "Snapshots".

import BlockTypes
import LinuxIO

@testable import DataPlane

/// The snapshots of a simulation.
struct SnapshotModel {
  /// One snapshot.
  struct Entry {
    let name: String
    /// Sizes that its disk may have.
    var byteCounts: [UInt64]
    var rules: [GuestModel.Rule]
    /// A cut may not take it: it was answered, and nobody has begun to delete it.
    var isDue: Bool
  }

  private(set) var entries: [Entry] = []

  /// Names of those that are there for sure.
  var dueNames: [String] { entries.filter(\.isDue).map(\.name) }

  mutating func set(_ entry: Entry) {
    remove(entry.name)
    entries.append(entry)
  }

  /// From now on a cut may take it.
  mutating func doubt(_ name: String) {
    for index in entries.indices where entries[index].name == name { entries[index].isDue = false }
  }

  /// From now on it may not be there.
  mutating func remove(_ name: String) { entries.removeAll { $0.name == name } }

  /// What the snapshot holds was seen just now, and stays so.
  mutating func settle(_ name: String, in machine: SimulatedMachine) throws {
    let bytes = try SnapshotModel.read(name, in: machine.with([:]))
    guard let old = entries.first(where: { $0.name == name }) else { return }
    try SnapshotModel.require(old, bytes)
    var seen = GuestModel(byteCount: UInt64(bytes.count))
    let whole = ByteRange(start: 0, end: UInt64(bytes.count))
    seen.addInitial(whole, version: 0)
    seen.addContents(bytes)
    set(
      Entry(
        name: name, byteCounts: [whole.end], rules: seen.rulesAfterCut(whole), isDue: true))
  }

  /// What there is in an image in which `names` are listed is there for sure from now on.
  mutating func keep(_ names: [String], in machine: SimulatedMachine) throws {
    for entry in entries {
      if names.contains(entry.name) {
        try settle(entry.name, in: machine)
      } else {
        remove(entry.name)
      }
    }
  }

  // MARK: Judging

  /// Requires that an image lists the snapshots that are due, and no others than are asked for.
  func judgeList(_ image: borrowing ImageStack) throws {
    guard let table = image.snapshots else { throw Breach("the snapshots cannot be listed") }
    let names = table.entries.map(\.name)
    for name in dueNames where !names.contains(name) { throw Breach("snapshot \(name) is lost") }
    for name in names where !entries.contains(where: { $0.name == name }) {
      throw Breach("snapshot \(name) is there, which nobody has taken or which was deleted")
    }
  }

  /// Reads each snapshot that `names` lists.
  func judgeBytes(_ machine: SimulatedMachine, listed names: [String]) throws {
    for entry in entries where names.contains(entry.name) {
      try SnapshotModel.require(entry, try SnapshotModel.read(entry.name, in: machine))
    }
  }

  private static func require(_ entry: Entry, _ bytes: [UInt8]) throws {
    guard entry.byteCounts.contains(UInt64(bytes.count)) else {
      throw Breach(
        "snapshot \(entry.name) has \(bytes.count) bytes, not one of \(entry.byteCounts)")
    }
    if let breach = GuestModel.breach(bytes, at: 0, entry.rules) {
      throw Breach("snapshot \(entry.name): \(breach)")
    }
  }

  private static func read(_ name: String, in machine: SimulatedMachine) throws -> [UInt8] {
    var image = try Session.open(
      machine, path: "disk", access: .readOnly, cacheByteCount: 0, pool: BlockingPool(),
      snapshot: name)
    defer { image.unmapAll() }
    return try Session.finish(&image, .read, ByteRange(start: 0, end: image.diskByteCount))
  }
}
