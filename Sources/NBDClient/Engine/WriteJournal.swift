// SPDX-License-Identifier: Apache-2.0
//
// Writes that a server acknowledged and nothing has made durable yet. Spec: proto.md,
// "NBD_CMD_FLUSH": what was answered before a flush is durable after it. This file performs no I/O.

import NBDProtocol

/// The writes since the last flush, in the order of their answers, as far as they fit.
///
/// FUA writes are kept too: writing an older, overlapping one again would undo them.
struct WriteJournal {
  /// A write that can be sent again.
  struct Entry: Hashable, Sendable {
    let sequence: UInt64
    let command: Command
    let flags: CommandFlags
    let offset: UInt64
    let length: UInt64
    let payload: [UInt8]
  }

  /// Bytes that an entry counts for beside its payload.
  static let entryByteCount = 64

  private let byteCountMax: Int
  private(set) var entries: [Entry] = []
  private(set) var byteCount = 0
  /// The number of the next answer; a flush covers all that are below it when it is sent.
  private(set) var nextSequence: UInt64 = 0
  /// Entries below this were dropped for want of room, and no flush has covered them.
  private(set) var droppedBelow: UInt64?

  /// With 0 nothing is kept, and each write counts as dropped.
  init(byteCountMax: Int) { self.byteCountMax = byteCountMax }

  /// Whether writes are out there that could not be sent again.
  var isIncomplete: Bool { droppedBelow != nil }

  /// Notes an acknowledged write.
  mutating func add(
    _ command: Command, _ flags: CommandFlags, offset: UInt64, length: UInt64, payload: [UInt8]
  ) {
    let entry = Entry(
      sequence: nextSequence, command: command, flags: flags, offset: offset, length: length,
      payload: payload)
    nextSequence += 1
    byteCount += payload.count + Self.entryByteCount
    entries.append(entry)
    guard byteCount > byteCountMax else { return }
    // Half of a history is no history: an old write that stayed would undo a newer one.
    entries = []
    byteCount = 0
    droppedBelow = nextSequence
  }

  /// Forgets what a flush has made durable: all answers below `sequence`.
  mutating func flushed(below sequence: UInt64) {
    let count = entries.firstIndex { $0.sequence >= sequence } ?? entries.count
    for entry in entries[..<count] { byteCount -= entry.payload.count + Self.entryByteCount }
    entries.removeFirst(count)
    if let droppedBelow, droppedBelow <= sequence { self.droppedBelow = nil }
  }

  /// The loss was noted elsewhere.
  mutating func forgetDropped() { droppedBelow = nil }
}
