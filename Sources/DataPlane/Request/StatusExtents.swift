// SPDX-License-Identifier: Apache-2.0
//
// The extents of a BLOCK_STATUS answer, in the order of the wire, in the buffer of a request.
// Spec: proto.md, "NBD_REPLY_TYPE_BLOCK_STATUS"; its branch extension-ext-header for
// NBD_REPLY_TYPE_BLOCK_STATUS_EXT. This file performs no I/O.

import BlockTypes
import LinuxIO
import NBDProtocol

/// What a BLOCK_STATUS has found so far: the extents of `base:allocation` lie in the first half of
/// the buffer, those of `qemu:allocation-depth` in the second.
struct StatusExtents {
  static let bufferByteCount = 64 << 10
  /// Runs that one request looks at; the answer is shorter than what was asked for then. In
  /// clusters of 64 KiB they cover at least 4 GiB.
  static let runsMax = 65_536
  /// Pages of tables that one request waits for, once it has something to tell: 128 GiB in clusters
  /// of 64 KiB.
  static let tablesMax = 4096

  /// The contexts that are told about.
  private(set) var contexts: MetaContextSet = []
  /// 8 bytes with compact headers, 16 with extended ones.
  private(set) var extentByteCount = 8
  private(set) var allocationCount = 0
  private(set) var depthCount = 0
  private var lastAllocation = Extent(byteCount: 0, status: 0)
  private var lastDepth = Extent(byteCount: 0, status: 0)
  private(set) var runCount = 0
  /// Pages of tables that were waited for.
  var tableCount = 0
  /// What the raw layer under the cursor says, as the blocking pool or a remote storage found it.
  var rawWasAsked = false
  var rawLayer = -1
  /// The bits of `base:allocation`.
  var rawStatus: UInt32 = 0
  var rawEnd: UInt64 = 0

  /// Where the extents of a context lie, and how many they are.
  struct Run {
    var start: Int
    var count: Int
  }

  mutating func begin(_ contexts: MetaContextSet, extentByteCount: Int) {
    self.contexts = contexts
    self.extentByteCount = extentByteCount
  }

  var extentsMax: Int { StatusExtents.bufferByteCount / 2 / extentByteCount }

  func run(of contextID: UInt32) -> Run {
    switch contextID {
    case MetaContextSet.baseAllocationID: Run(start: 0, count: allocationCount)
    case MetaContextSet.allocationDepthID:
      Run(start: StatusExtents.bufferByteCount / 2, count: depthCount)
    default: preconditionFailure("context \(contextID) was selected and never offered")
    }
  }

  /// Whether there is something to tell and looking on would cost too much.
  func isEnough(isStopping: Bool) -> Bool {
    guard runCount > 0 else { return false }
    return isStopping || runCount >= StatusExtents.runsMax
      || tableCount >= StatusExtents.tablesMax
  }

  /// Adds a run to the answers; false, and nothing is added, when one that is told about already
  /// has `limit` extents and would need another.
  mutating func add(
    _ byteCount: UInt64, _ status: UInt32, depth: UInt32, limit: Int, to buffer: IOBuffer
  ) -> Bool {
    let tellsAllocation = contexts.contains(.baseAllocation)
    let tellsDepth = contexts.contains(.allocationDepth)
    let startsAllocation =
      tellsAllocation && (allocationCount == 0 || lastAllocation.status != status)
    let startsDepth = tellsDepth && (depthCount == 0 || lastDepth.status != depth)
    if startsAllocation, allocationCount == limit { return false }
    if startsDepth, depthCount == limit { return false }
    runCount += 1
    if startsAllocation {
      allocationCount += 1
      lastAllocation = Extent(byteCount: 0, status: status)
    }
    if startsDepth {
      depthCount += 1
      lastDepth = Extent(byteCount: 0, status: depth)
    }
    if tellsAllocation {
      lastAllocation.byteCount += byteCount
      store(lastAllocation, in: buffer, run(of: MetaContextSet.baseAllocationID))
    }
    if tellsDepth {
      lastDepth.byteCount += byteCount
      store(lastDepth, in: buffer, run(of: MetaContextSet.allocationDepthID))
    }
    return true
  }

  /// Stores the last extent of a run.
  private func store(_ extent: Extent, in buffer: IOBuffer, _ run: Run) {
    let offset = run.start + (run.count - 1) * extentByteCount
    if extentByteCount == ExtendedReply.extentByteCount {
      buffer.storeBigEndian64(extent.byteCount, at: offset)
      buffer.storeBigEndian64(UInt64(extent.status), at: offset + 8)
    } else {
      // A request spans less than 2^32 bytes with compact headers, so its runs fit.
      buffer.storeBigEndian32(UInt32(extent.byteCount), at: offset)
      buffer.storeBigEndian32(extent.status, at: offset + 4)
    }
  }
}
