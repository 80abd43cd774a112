// SPDX-License-Identifier: Apache-2.0
//
// What an export tells about a dirty bitmap. This file performs no I/O.

import Bitmaps

/// One bitmap at the end of a tick.
public struct BitmapStatus: Sendable {
  public internal(set) var name: String
  public internal(set) var granularityByteCount: UInt64
  /// The image keeps it.
  public internal(set) var isPersistent: Bool
  /// Taken from an image that was not closed in order: it may be wider than the truth.
  public internal(set) var isRecovered: Bool
  /// Why the image keeps it and nobody can use it; nil when it is as it should be.
  public internal(set) var unusableReason: String?
  /// Writes are recorded.
  public internal(set) var isEnabled: Bool
  /// Shown as it was at a moment, for a backup; what was written since is recorded apart.
  public internal(set) var isFrozen: Bool
  /// Bytes of the blocks that are shown as dirty.
  public internal(set) var dirtyByteCount: UInt64
  public internal(set) var memoryByteCount: Int
  /// The numbers of the clients that have selected it.
  public internal(set) var clients: [UInt64]
}
