// SPDX-License-Identifier: Apache-2.0
//
// The two engines of a disk queue, and what becomes of their results.
// Source: io_submit(2), io_getevents(2), preadv(2), pwritev2(2).

import BlockTypes
import CAio
import CLinux
import Glibc

extension DiskQueue {
  /// Gives everything queued to the kernel (AIO), or does it (sync).
  ///
  /// What the kernel cannot take now stays queued for the next call.
  public mutating func submit() {
    switch engine {
    case .aio: submitToKernel()
    case .sync: break  // done one by one in `nextCompletion`
    }
  }

  /// Operations that a submit would hand over.
  public var hasQueued: Bool { queuedCount > 0 }

  private mutating func submitToKernel() {
    var first = 0
    while first < queuedCount {
      systemCallCount += 1
      submitCallCount += 1
      // SAFETY: here and below, blocks, vectors and events live in arrays that never move, and
      // their indices are those of operations in flight.
      let result = unsafe io_submit(context, queuedCount - first, queued.base + first)
      if result > 0 {
        first += Int(result)
      } else if result == -EAGAIN || result == 0 {
        break
      } else if result != -EINTR {
        // The kernel refuses the first one: only that one fails.
        refused.append((unsafe queued[first]! - blocks.base, Int32(-result)))
        first += 1
      }
    }
    for index in first..<queuedCount { unsafe queued[index - first] = unsafe queued[index] }
    queuedCount -= first
  }

  /// Returns the next finished operation, or nil when none has finished now.
  public mutating func nextCompletion() -> Completion? {
    while let (index, result) = nextResult() {
      if let completion = finish(index, result) { return completion }
    }
    return nil
  }

  /// The operation and the kernel's result for it: a byte count or -errno.
  private mutating func nextResult() -> (Int, Int)? {
    switch engine {
    case .sync:
      guard queuedCount > 0 else { return nil }
      let block = unsafe queued[0]!
      for index in 1..<max(queuedCount, 1) { unsafe queued[index - 1] = unsafe queued[index] }
      queuedCount -= 1
      let index = unsafe block - blocks.base
      return (index, performNow(index))
    case .aio:
      if let (index, errno) = refused.popLast() { return (index, -Int(errno)) }
      if eventIndex == eventCount, !refillEvents() { return nil }
      let event = unsafe events[eventIndex]
      eventIndex += 1
      return unsafe (Int(UInt(bitPattern: event.data)), Int(bitPattern: event.res))
    }
  }

  /// Takes completions from the ring, or by a system call where the ring is unknown.
  private mutating func refillEvents() -> Bool {
    guard inFlightCount > 0, let context = unsafe context else { return false }
    var count = unsafe caio_ring_take(context, events.base, Int32(DiskQueue.depthMax))
    if count < 0 {
      systemCallCount += 1
      var now = timespec()
      count = unsafe io_getevents(context, 0, DiskQueue.depthMax, events.base, &now)
    }
    eventIndex = 0
    eventCount = max(Int(count), 0)
    return eventCount > 0
  }

  private mutating func performNow(_ index: Int) -> Int {
    let operation = operations[index]
    let descriptor = files[Int(operation.file)].descriptor
    let offset = off_t(operation.offset) + off_t(operation.doneByteCount)
    var result: Int
    repeat {
      systemCallCount += 1
      let vectorCount = Int32(fillVectors(index))
      switch operation.kind {
      case .read:
        result = unsafe preadv(descriptor, vectors.base + index * 3, vectorCount, offset)
      case .write:
        result = unsafe clinux_write(
          descriptor, vectors.base + index * 3, vectorCount, Int64(offset),
          operation.isDurable ? 1 : 0)
      case .flush:
        result = Int(fdatasync(descriptor))
      }
    } while result < 0 && errno == EINTR
    return result < 0 ? -Int(errno) : result
  }

  // MARK: At once

  /// Writes one aligned piece and waits for it. Returns 0 or the errno.
  public mutating func writeNow(file: Int, at offset: UInt64, _ piece: Piece) -> Int32 {
    doNow(.write, file, offset, piece)
  }

  /// Reads one aligned piece and waits for it. Returns 0 or the errno; a short read is EIO.
  public mutating func readNow(file: Int, at offset: UInt64, _ piece: Piece) -> Int32 {
    doNow(.read, file, offset, piece)
  }

  private mutating func doNow(_ kind: Kind, _ file: Int, _ offset: UInt64, _ piece: Piece) -> Int32
  {
    let index = take()
    defer {
      free[freeCount] = Int32(index)
      freeCount += 1
    }
    operations[index] = Operation(
      kind: kind, file: Int32(file), pieceCount: 1, pieces: [piece, .none, .none],
      offset: offset, byteCount: piece.byteCount)
    let result = performNow(index)
    if result < 0 { return Int32(-result) }
    return result == piece.byteCount ? 0 : EIO
  }

  /// Turns a result into a completion, or queues the rest of a short read or write again.
  private mutating func finish(_ index: Int, _ result: Int) -> Completion? {
    if result < 0 { return retire(index, errno: Int32(-result)) }
    if operations[index].kind == .flush { return retire(index, errno: 0) }
    operations[index].doneByteCount += result
    let done = operations[index].doneByteCount
    if done >= operations[index].byteCount { return retire(index, errno: 0) }
    return continueShort(index, result, done)
  }

  /// Goes on behind the part of operation `index` that is done.
  private mutating func continueShort(_ index: Int, _ result: Int, _ done: Int) -> Completion? {
    let operation = operations[index]
    switch operation.kind {
    case .flush: return retire(index, errno: 0)
    case .write:
      if result == 0 { return retire(index, errno: ENOSPC) }
    case .read:
      let file = files[Int(operation.file)]
      let reached = operation.offset + UInt64(done)
      if reached >= file.byteCount {
        // Past the end of the file a disk reads as zeroes.
        operation.pieces[0].buffer.zero(
          operation.pieces[0].start + done, operation.byteCount - done)
        return retire(index, errno: 0)
      }
      // The file ended before the length it is known to have: somebody cut it.
      if result == 0 { return retire(index, errno: EIO) }
    }
    if files[Int(operation.file)].direct {
      // The rest must start aligned again.
      let aligned = UInt64(done).alignedDown(to: ImageFile.directAlignmentMax)
      if Int(aligned) <= done - result { return retire(index, errno: EIO) }
      operations[index].doneByteCount = Int(aligned)
    }
    prepare(index)
    return nil
  }

  private mutating func retire(_ index: Int, errno: Int32) -> Completion {
    let tag = operations[index].tag
    free[freeCount] = Int32(index)
    freeCount += 1
    inFlightCount -= 1
    completionCount += 1
    return Completion(tag: tag, errno: errno)
  }
}
