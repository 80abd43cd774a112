// SPDX-License-Identifier: Apache-2.0
//
// A chain that is written without clients, a request at a time, by the same code that serves them:
// there is one writer of images. Blocks.

import BlockTypes
import LinuxIO
import NBDProtocol

/// A chain whose active layer is written by a verb. It has to be finished.
public struct OfflineImage: ~Copyable {
  private var image: ImageStack
  private var events: EventLoop

  /// Bytes of a write at most.
  public static let writeByteCountMax = 2 << 20

  /// Prepares the chain of `plan`, whose files are open and locked.
  ///
  /// - Throws: as `ExportLoop`: a table that is damaged, or what the kernel refuses.
  public init(_ plan: ExportPlan) throws {
    // Nothing is to be hidden behind requests of others, so there are no threads.
    let image = try ImageStack(plan, slotCount: 4, pool: BlockingPool())
    let events = try EventLoop()
    if let bell = image.disks.remoteEventDescriptor {
      try events.add(bell, .readable, token: 0)
    }
    self.image = image
    self.events = events
  }

  public var diskByteCount: UInt64 { image.diskByteCount }

  /// Writes `bytes[part]` at `offset` of the disk.
  public mutating func write(
    _ bytes: [UInt8], _ part: Range<Int>, at offset: UInt64
  ) -> BlockErrno {
    precondition(part.count <= Self.writeByteCountMax, "a write is too long")
    let range = ByteRange(start: offset, end: offset + UInt64(part.count))
    return perform(.write, range, payload: Array(bytes[part]))
  }

  /// Makes a range of the disk read as zeroes, with holes where that can be.
  public mutating func writeZeroes(_ range: ByteRange) -> BlockErrno {
    perform(.writeZeroes, range)
  }

  /// Makes the disk larger; what is new reads as zeroes.
  ///
  /// - Returns: why it cannot be; nil when it is.
  public mutating func grow(to byteCount: UInt64) -> String? {
    do throws(ResizeRefusal) {
      try image.requireResizable(to: byteCount)
    } catch {
      return error.reason
    }
    let error = perform(.resize, ByteRange(start: byteCount, end: byteCount))
    return error == .none ? nil : "\(error)"
  }

  /// Makes everything durable, stores the image's bitmaps and cuts off the room that the file grew
  /// ahead of need.
  ///
  /// - Returns: what went wrong; nil when all is in the files for good.
  public mutating func finish() -> String? {
    var flushCount = 0
    while image.needsFlush || !image.isIdle {
      guard flushCount < StopState.flushesMax else {
        return "the image's tables cannot be written: \(image.flush.error)"
      }
      flushCount += 1
      let error = perform(.flush, ByteRange(start: 0, end: 0))
      if image.lostWrites { return "writes were lost when the disk failed to flush them" }
      if error == .none { flushCount = 0 }
      while !image.isIdle { step() }
    }
    if let trouble = image.closeBitmaps() { return "its bitmaps stay marked as in use: \(trouble)" }
    do throws(SystemError) {
      try image.trimFile()
    } catch {
      return "the image cannot be trimmed to its content: \(error)"
    }
    return nil
  }

  /// Gives the memory back. Nothing is written any more.
  public consuming func close() { image.unmapAll() }

  private mutating func perform(
    _ command: Command, _ range: ByteRange, payload: [UInt8] = []
  ) -> BlockErrno {
    guard let slot = image.requests.acquire() else {
      preconditionFailure("a request of an image that is written alone is left")
    }
    let whole = range.roundedOut(to: image.alignment)
    image.requests.slots[slot].command = command
    image.requests.slots[slot].flags = []
    image.requests.slots[slot].offset = range.start
    image.requests.slots[slot].length = range.byteCount
    image.requests.slots[slot].bufferStart = whole.start
    image.requests.slots[slot].stage = .receiving
    if command == .write {
      guard let buffer = image.buffers.acquire(byteCount: Int(whole.byteCount)) else {
        image.requests.slots[slot].stage = .replying
        image.retire(slot)
        return .noMemory
      }
      image.requests.slots[slot].buffer = buffer
      buffer.copy(Int(range.start - whole.start), from: payload)
    }
    image.start(slot)
    while true {
      if let done = image.finished.popFirst(&image.requests.slots) {
        if done != slot {
          // What the image had to do for itself, such as taking its bitmaps in use.
          image.requests.slots[done].stage = .replying
          image.retire(done)
          continue
        }
        let error = image.requests.slots[slot].error
        image.requests.slots[slot].stage = .replying
        image.retire(slot)
        return error
      }
      step()
    }
  }

  /// What `ExportLoop.tick` does between two sockets; waits for remote storages when nothing else
  /// moves.
  private mutating func step() {
    image.ready.append(contentsOf: &image.deferred, &image.requests.slots)
    image.takePoolCompletions()
    let hadReady = !image.ready.isEmpty
    image.runReady()
    image.startFlushIfWanted()
    image.disks.submit()
    var moved = image.takeDiskCompletions() || hadReady || !image.ready.isEmpty
    while !image.pool.waitingTags.isEmpty {
      image.pool.doWork(0)
      moved = true
    }
    if moved || !image.finished.isEmpty || image.disks.remoteEventDescriptor == nil { return }
    if events.wait(timeoutMilliseconds: 100) > 0 { image.disks.takeRemoteEvent() }
  }
}
