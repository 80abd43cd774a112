// SPDX-License-Identifier: Apache-2.0
//
// How much a UNIX socket may hold on its way to the client. Room for several large replies saves
// sends and wake-ups (a fifth of the CPU of 1 MiB reads); with small replies the same room only
// spreads them over more memory than the caches of two cores share (a third more CPU for 4 KiB
// reads, 64 at once). Measured; see tools/decisions/0011. This file performs no I/O.

/// The room that the reads of one client ask for.
struct SendRoom {
  /// What the kernel gives to a socket that asks for nothing (net.core.wmem_default, halved: the
  /// kernel doubles what it is told).
  static let smallByteCount: Int32 = 106_496
  static let largeByteCount: Int32 = 512 << 10
  /// Bytes of a read from which on it is a large one.
  static let largeReadByteCountMin: UInt64 = 64 << 10
  /// Small reads in a row until the room shrinks again.
  static let smallReadsMax = 256

  private(set) var isLarge = false
  private var smallReadCount = 0

  /// Learns of a read; returns the new room in bytes when it changes.
  mutating func learn(readByteCount: UInt64) -> Int32? {
    if readByteCount >= SendRoom.largeReadByteCountMin {
      smallReadCount = 0
      if isLarge { return nil }
      isLarge = true
      return SendRoom.largeByteCount
    }
    guard isLarge else { return nil }
    smallReadCount += 1
    guard smallReadCount > SendRoom.smallReadsMax else { return nil }
    smallReadCount = 0
    isLarge = false
    return SendRoom.smallByteCount
  }
}
