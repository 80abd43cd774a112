// SPDX-License-Identifier: Apache-2.0
//
// The two engines of a disk queue, and what becomes of their results.
// Source: io_submit(2), io_getevents(2), preadv(2), pwritev2(2).

import BlockTypes
import CLinux
import Glibc

extension DiskQueue {
  /// Gives everything queued to the kernel (AIO); the blocking engine works in `nextCompletion`.
  ///
  /// What the kernel cannot take now stays queued for the next call.
  public mutating func submit() {
    if engine == .aio, native[0].queuedCount > 0 { native[0].submit() }
  }

  /// Operations that a submit would hand over.
  public var hasQueued: Bool { engine == .aio ? native[0].queuedCount > 0 : toDoCount > 0 }

  /// System calls made for the disk so far.
  public var systemCallCount: UInt64 {
    blockingCallCount + (engine == .aio ? native[0].systemCallCount : 0)
  }

  /// Those of them that were io_submit(2).
  public var submitCallCount: UInt64 { engine == .aio ? native[0].submitCallCount : 0 }

  // MARK: Sleeping

  /// Whether the kernel has operations in hand whose completions have to be slept for.
  ///
  /// Those of remote storages are waited for with their descriptor.
  public var mustWait: Bool { engine == .aio && inFlightCount > remoteInFlightCount }

  /// Whether a completion can be taken now, as far as can be told without a system call.
  public var hasCompletion: Bool { mustWait && native[0].hasResult }

  /// Sleeps until an operation has completed or `descriptor` is readable, for a second at most.
  ///
  /// - Returns: whether the descriptor may be readable. The completions are taken by
  ///   `nextCompletion`.
  public mutating func wait(orReadable descriptor: Int32) -> Bool {
    precondition(mustWait, "nothing is in flight to be waited for")
    return native[0].wait(orReadable: descriptor)
  }

  // MARK: Completions

  /// Returns the next finished operation, or nil when none has finished now.
  public mutating func nextCompletion() -> Completion? {
    while let (index, result) = nextResult() {
      if let completion = finish(index, result) { return completion }
    }
    return nil
  }

  /// The operation and the kernel's result for it: a byte count or -errno.
  private mutating func nextResult() -> (Int, Int)? {
    if remoteInFlightCount > 0, let result = nextRemoteResult() { return result }
    switch engine {
    case .sync:
      guard toDoCount > 0 else { return nil }
      let index = Int(toDo[0])
      for place in 1..<toDoCount { toDo[place - 1] = toDo[place] }
      toDoCount -= 1
      return (index, performNow(index))
    case .aio:
      guard inFlightCount > remoteInFlightCount, let result = native[0].nextResult() else {
        return nil
      }
      return (result.index, result.value)
    }
  }

  private mutating func performNow(_ index: Int) -> Int {
    let operation = operations[index]
    let descriptor = files[Int(operation.file)].descriptor
    guard descriptor >= 0 else { return performRemoteNow(index) }
    let offset = off_t(operation.offset) + off_t(operation.doneByteCount)
    var result: Int
    repeat {
      blockingCallCount += 1
      let vectorCount = Int32(fillVectors(index))
      // SAFETY: the vectors of an operation lie in an array that never moves, and point into
      // buffers that its request holds.
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

  /// Reads one aligned piece and waits for it. Returns 0 or the errno; EIO where the file ends.
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
    while true {
      let result = performNow(index)
      if result < 0 { return Int32(-result) }
      let done = operations[index].doneByteCount + result
      if done >= piece.byteCount { return 0 }
      // A part was transferred; the rest begins aligned again.
      let next =
        files[file].direct
        ? Int(UInt64(done).alignedDown(to: ImageFile.directAlignmentMax)) : done
      guard next > operations[index].doneByteCount else { return EIO }
      operations[index].doneByteCount = next
    }
  }

  /// Turns a result into a completion, or queues the rest of a short read or write again.
  private mutating func finish(_ index: Int, _ result: Int) -> Completion? {
    if result < 0 {
      var losesWrites = false
      if operations[index].isDurable { losesWrites = mayLoseWrites(index, Int32(-result)) }
      return retire(index, errno: Int32(-result), losesWrites: losesWrites)
    }
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

  /// Whether a durable write that failed with `errno` may have been told of the loss of other
  /// writes: the kernel tells a file of it once, at a synchronisation or at a durable write.
  ///
  /// A full disk refuses a write before anything is synchronised, and then refuses it again. A
  /// remote storage that did not answer in time keeps what it has not made durable.
  private mutating func mayLoseWrites(_ index: Int, _ errno: Int32) -> Bool {
    let file = files[Int(operations[index].file)]
    guard file.descriptor >= 0 else { return errno != ETIMEDOUT }
    guard errno == ENOSPC || errno == EDQUOT else { return true }
    if file.direct { return false }
    operations[index].isDurable = false
    return performNow(index) >= 0
  }

  private mutating func retire(
    _ index: Int, errno: Int32, losesWrites: Bool = false
  ) -> Completion {
    let tag = operations[index].tag
    var errno = errno
    if operations[index].cipher >= 0 { errno = finishCipher(index, errno: errno) }
    free[freeCount] = Int32(index)
    freeCount += 1
    inFlightCount -= 1
    completionCount += 1
    return Completion(tag: tag, errno: errno, losesWrites: losesWrites)
  }
}
