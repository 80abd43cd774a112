// SPDX-License-Identifier: Apache-2.0
//
// One internal snapshot as lists show it, in the words and with the keys of qemu-img. This file
// performs no I/O.

import LinuxIO
import Qcow2

/// What lists tell of an internal snapshot.
public struct SnapshotRow: Hashable, Sendable {
  public var id: String
  public var name: String
  public var machineStateByteCount: UInt64
  /// Since 1970.
  public var dateSeconds: Int64
  public var dateNanoseconds: UInt32
  public var machineClockNanoseconds: UInt64
  public var instructionCount: UInt64?

  public init(_ entry: SnapshotEntry) {
    self.init(
      id: entry.id, name: entry.name, machineStateByteCount: entry.machineStateByteCount,
      dateSeconds: Int64(entry.dateSeconds), dateNanoseconds: entry.dateNanoseconds,
      machineClockNanoseconds: entry.machineClockNanoseconds,
      instructionCount: entry.instructionCount)
  }

  public init(
    id: String, name: String, machineStateByteCount: UInt64, dateSeconds: Int64,
    dateNanoseconds: UInt32, machineClockNanoseconds: UInt64, instructionCount: UInt64?
  ) {
    self.id = id
    self.name = name
    self.machineStateByteCount = machineStateByteCount
    self.dateSeconds = dateSeconds
    self.dateNanoseconds = dateNanoseconds
    self.machineClockNanoseconds = machineClockNanoseconds
    self.instructionCount = instructionCount
  }

  /// Writes the object of one snapshot.
  public func write(to json: inout JSONWriter) {
    json.beginObject()
    if let instructionCount { json.field("icount", instructionCount) }
    json.field("vm-clock-nsec", machineClockNanoseconds % 1_000_000_000)
    json.field("name", name)
    json.field("date-sec", dateSeconds)
    json.field("date-nsec", dateNanoseconds)
    json.field("vm-clock-sec", machineClockNanoseconds / 1_000_000_000)
    json.field("id", id)
    json.field("vm-state-size", machineStateByteCount)
    json.end()
  }

  /// The table of some snapshots, each line ended by a line feed; nothing for none.
  public static func text(of rows: [SnapshotRow]) -> String {
    lines(of: rows).map { $0 + "\n" }.joined()
  }

  static func lines(of rows: [SnapshotRow]) -> [String] {
    if rows.isEmpty { return [] }
    let title =
      left("ID", 10) + left("TAG", 17) + right("VM SIZE", 8) + right("DATE", 20)
      + right("VM CLOCK", 13) + right("ICOUNT", 11)
    return ["Snapshot list:", title]
      + rows.map { row in
        left(row.id, 9) + " " + left(row.name, 16) + " "
          + right(ByteCountText.describe(row.machineStateByteCount), 8)
          + right(LocalTime.describe(secondsSince1970: row.dateSeconds), 20)
          + right(clock(row.machineClockNanoseconds), 13)
          + right(row.instructionCount.map { "\($0)" } ?? "", 11)
      }
  }

  /// "00:00:00.000".
  private static func clock(_ nanoseconds: UInt64) -> String {
    let milliseconds = nanoseconds / 1_000_000
    let seconds = milliseconds / 1000
    let parts = [seconds / 3600, seconds / 60 % 60, seconds % 60].map { zeroes($0, 2) }
    return parts.joined(separator: ":") + "." + zeroes(milliseconds % 1000, 3)
  }

  private static func zeroes(_ number: UInt64, _ width: Int) -> String {
    let digits = "\(number)"
    return String(repeating: "0", count: max(0, width - digits.count)) + digits
  }

  private static func left(_ text: String, _ width: Int) -> String {
    text + String(repeating: " ", count: max(0, width - text.count))
  }

  private static func right(_ text: String, _ width: Int) -> String {
    String(repeating: " ", count: max(0, width - text.count)) + text
  }
}
