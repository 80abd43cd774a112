// SPDX-License-Identifier: Apache-2.0
//
// Stopping: answer what was asked, refuse what is asked from now on (ESHUTDOWN), make tables
// durable, give back what was freed, trim the file.
// Spec: proto.md, "Terminating the transmission phase".

import BlockTypes
import LinuxIO

/// How far a stop has come.
struct StopState {
  /// Milliseconds that clients have to finish what they are sending, and to take their last
  /// replies: with what comes behind, a stop takes less than two seconds.
  static let millisecondsMax: Int64 = 1_500
  /// Failed flushes after which the tables are given up.
  static let flushesMax = 3

  var isStopping = false
  /// The timer's intervals, of `millisecondsMax` each once the stop has begun.
  var intervalsLeft = 1
  var failedFlushCount = 0
}

extension ExportLoop {
  mutating func stopOrdered() -> Outcome? {
    if stopOrder.take() == .abandon { return .abandoned }
    // Who was let in before the order is to learn of it.
    takeArrivals()
    stop.isStopping = true
    stop.intervalsLeft = 1
    timer.restart(milliseconds: StopState.millisecondsMax)
    image.isStopping = true
    image.disks.hurryRemotes()
    for index in 0..<connections.capacity where connections.isOccupied(index) {
      // What the client sent before it could know is answered, be it with a refusal. Who has
      // nothing under way then learns by the end of the connection; the others, with each answer.
      receive(index)
      closeIfDone(index)
    }
    return nil
  }

  /// Goes on with a stop; returns how it ended once it has.
  mutating func continueStopping() -> Outcome? {
    guard stop.isStopping else { return nil }
    if stop.intervalsLeft <= 0 {
      for index in 0..<connections.capacity where connections.isOccupied(index) {
        breakConnection(index)
      }
    }
    while connections.count == 0, image.isIdle {
      if image.lostWrites { return .failed("writes were lost when the disk failed to flush them") }
      if !bitmapOrders.isEmpty {
        tick()
        if image.isIdle { continue }
        return nil
      }
      if !image.needsFlush {
        let trouble = image.closeBitmaps()
        do throws(SystemError) {
          try image.trimFile()
        } catch {
          return .failed("the image cannot be trimmed to its content: \(error)")
        }
        return trouble.map { .drainedWithoutBitmaps($0) } ?? .drained
      }
      if stop.failedFlushCount == StopState.flushesMax {
        return .failed("the image's tables cannot be written: \(image.flush.error)")
      }
      stop.failedFlushCount += 1
      image.wantFlush()
      tick()
      if !image.flush.isRunning, image.flush.error == .none { stop.failedFlushCount = 0 }
    }
    return nil
  }
}

extension ImageStack {
  /// No request is in work, no flush runs, nothing is being given back.
  var isIdle: Bool {
    requests.usedCount == 1 && !flush.isRunning && disks.inFlightCount == 0
      && requests.slots[ReleaseQueue.slot].poolCount == 0
      && !requests.slots[ReleaseQueue.slot].isInList && !allocator.growthIsRunning
  }

  /// Something in memory is not in the file yet, or not durable there.
  var needsFlush: Bool {
    !isReadOnly && (hasDirtyTables || hasUnsyncedWrites || !releases.isEmpty)
  }

  /// Cuts off the space that the file grew ahead of need.
  mutating func trimFile() throws(SystemError) {
    guard !isReadOnly, !layers[0].isRaw, allocator.canGrow,
      allocator.keptByteCount < allocator.fileByteCount
    else { return }
    try storages[0].file.truncate(to: allocator.keptByteCount)
    try storages[0].file.synchronize()
  }
}
