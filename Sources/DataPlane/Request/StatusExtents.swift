// SPDX-License-Identifier: Apache-2.0
//
// The extents of a BLOCK_STATUS answer, in the order of the wire, in the buffer of a request.
// Spec: proto.md, "NBD_REPLY_TYPE_BLOCK_STATUS"; its branch extension-ext-header for
// NBD_REPLY_TYPE_BLOCK_STATUS_EXT. This file performs no I/O.

import BlockTypes
import LinuxIO
import NBDProtocol

/// What a BLOCK_STATUS has found so far.
///
/// The buffer begins with the counts of extents, a word for each context that is told about; the
/// rest is divided evenly among them, for the extents. Contexts are numbered here by their place
/// in the set.
struct StatusExtents {
  static let bufferByteCount = 64 << 10
  private static let countsByteCount = MetaContextSet.contextsMax * 8
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
  /// Extents of one context that have room.
  private(set) var extentsMax = 0
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

  /// Starts to tell about `contexts`, at least one, in a buffer of `bufferByteCount`.
  mutating func begin(
    _ contexts: MetaContextSet, extentByteCount: Int, in buffer: IOBuffer
  ) {
    precondition(!contexts.isEmpty, "BLOCK_STATUS was admitted without contexts")
    self.contexts = contexts
    self.extentByteCount = extentByteCount
    extentsMax =
      (StatusExtents.bufferByteCount - StatusExtents.countsByteCount) / contexts.count
      / extentByteCount
    buffer.zero(0, StatusExtents.countsByteCount)
  }

  /// Whether the tables have to be asked, and not the bitmaps alone.
  var needsTables: Bool {
    contexts.contains(.baseAllocation) || contexts.contains(.allocationDepth)
  }

  func run(of contextID: UInt32, in buffer: IOBuffer) -> Run {
    let place = place(of: contextID)
    return Run(
      start: StatusExtents.countsByteCount + place * extentsMax * extentByteCount,
      count: Int(buffer.loadWord(at: place * 8)))
  }

  /// How many of the contexts have a smaller id.
  private func place(of contextID: UInt32) -> Int {
    precondition(
      contexts.contains(wireID: contextID), "context \(contextID) is not to be told about")
    return MetaContextSet(rawValue: contexts.rawValue & (1 << contextID - 1)).count
  }

  /// Whether there is something to tell and looking on would cost too much.
  func isEnough(isStopping: Bool) -> Bool {
    guard runCount > 0 else { return false }
    return isStopping || runCount >= StatusExtents.runsMax
      || tableCount >= StatusExtents.tablesMax
  }

  /// Adds a run to what `base:allocation` and `qemu:allocation-depth` tell; false, and nothing is
  /// added, when one of them that is told about already has `limit` extents and would need another.
  mutating func add(
    _ byteCount: UInt64, _ status: UInt32, depth: UInt32, limit: Int, to buffer: IOBuffer
  ) -> Bool {
    let tellsAllocation = contexts.contains(.baseAllocation)
    let tellsDepth = contexts.contains(.allocationDepth)
    let (allocationID, depthID) = (
      MetaContextSet.baseAllocationID, MetaContextSet.allocationDepthID
    )
    if tellsAllocation, !hasRoom(for: status, of: allocationID, limit, buffer) { return false }
    if tellsDepth, !hasRoom(for: depth, of: depthID, limit, buffer) { return false }
    runCount += 1
    if tellsAllocation { append(byteCount, status, of: allocationID, buffer) }
    if tellsDepth { append(byteCount, depth, of: depthID, buffer) }
    return true
  }

  /// Adds a run to what one context tells; false, and nothing is added, when it already has `limit`
  /// extents and would need another.
  func add(
    _ byteCount: UInt64, _ status: UInt32, of contextID: UInt32, limit: Int, to buffer: IOBuffer
  ) -> Bool {
    guard hasRoom(for: status, of: contextID, limit, buffer) else { return false }
    append(byteCount, status, of: contextID, buffer)
    return true
  }

  private func hasRoom(
    for status: UInt32, of contextID: UInt32, _ limit: Int, _ buffer: IOBuffer
  ) -> Bool {
    let run = run(of: contextID, in: buffer)
    return run.count < limit || lastExtent(of: run, in: buffer).status == status
  }

  private func append(
    _ byteCount: UInt64, _ status: UInt32, of contextID: UInt32, _ buffer: IOBuffer
  ) {
    let run = run(of: contextID, in: buffer)
    if run.count > 0 {
      let last = lastExtent(of: run, in: buffer)
      if last.status == status {
        store(Extent(byteCount: last.byteCount + byteCount, status: status), last: run, in: buffer)
        return
      }
    }
    buffer.storeWord(UInt64(run.count + 1), at: place(of: contextID) * 8)
    store(
      Extent(byteCount: byteCount, status: status),
      last: Run(start: run.start, count: run.count + 1), in: buffer)
  }

  // MARK: The last extent of a run, as it stands on the wire

  private func lastExtent(of run: Run, in buffer: IOBuffer) -> Extent {
    let offset = run.start + (run.count - 1) * extentByteCount
    if extentByteCount == ExtendedReply.extentByteCount {
      return Extent(
        byteCount: buffer.loadBigEndian64(at: offset),
        status: UInt32(buffer.loadBigEndian64(at: offset + 8)))
    }
    let words = buffer.loadBigEndian64(at: offset)
    return Extent(byteCount: words >> 32, status: UInt32(truncatingIfNeeded: words))
  }

  private func store(_ extent: Extent, last run: Run, in buffer: IOBuffer) {
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
