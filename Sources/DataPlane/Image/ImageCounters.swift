// SPDX-License-Identifier: Apache-2.0
//
// What an image did since it was opened. This file performs no I/O.

/// Plain counters of one image stack; its owner thread increments them.
struct ImageCounters {
  /// Cuts that a flush wrote. A flush that found nothing to write is none.
  var flushCount: UInt64 = 0
  /// Runs of guest clusters that got a place in the active layer, and the clusters in them.
  var allocationCount: UInt64 = 0
  var allocatedClusterCount: UInt64 = 0
  /// Those of them that were packed, and the bytes that they take.
  var packedClusterCount: UInt64 = 0
  var packedByteCount: UInt64 = 0
  /// System calls to hand work to the blocking pool and to learn of its end.
  var poolCallCount: UInt64 = 0
  /// Rounds in which regions were marked for persistent bitmaps.
  var markRoundCount: UInt64 = 0
}
