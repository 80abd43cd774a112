// SPDX-License-Identifier: Apache-2.0
//
// Sleeping for completions and for a descriptor at once. Source: io_getevents(2), io_submit(2).

import LinuxIO
import TestSupport
import Testing

/// A queue with one file of 8,192 bytes.
private func makeQueue(_ scratch: Scratch, _ engine: DiskQueue.Engine = .aio) throws -> DiskQueue {
  var queue = try DiskQueue(engine: engine)
  _ = queue.add(try scratch.file(pattern(8_192)), direct: false, byteCount: 8_192)
  return queue
}

private func queueRead(_ queue: inout DiskQueue) {
  let buffer = makeBuffer([UInt8](repeating: 0, count: 4_096))
  queue.queueRead(file: 0, at: 0, into: DiskQueue.Piece(buffer, 0, 4_096), tag: 5)
}

@Suite struct `A wait of the disk queue` {
  @Test func `ends with a completion, and says that the descriptor is not readable`() throws {
    let counter = try EventCounter(.polled)
    var queue = try makeQueue(try Scratch())
    queueRead(&queue)
    queue.submit()
    let isReadable = queue.wait(orReadable: counter.descriptor)
    #expect(!isReadable)
    #expect(queue.nextCompletion()?.tag == 5)
    let mustWait = queue.mustWait
    #expect(!mustWait)
  }

  @Test func `ends when the descriptor is readable, though nothing has completed`() throws {
    let counter = try EventCounter(.polled)
    var queue = try makeQueue(try Scratch())
    queueRead(&queue)  // and not submitted
    counter.signal()
    let isReadable = queue.wait(orReadable: counter.descriptor)
    #expect(isReadable)
    #expect(drain(&queue) == [5: 0])
  }

  @Test func `ends when the descriptor becomes readable later`() throws {
    let timer = try IntervalTimer(milliseconds: 30)
    var queue = try makeQueue(try Scratch())
    queueRead(&queue)  // and not submitted
    let start = MonotonicClock.nanoseconds
    let isReadable = queue.wait(orReadable: timer.descriptor)
    #expect(isReadable)
    #expect(MonotonicClock.nanoseconds - start < 900_000_000)
    #expect(drain(&queue) == [5: 0])
  }

  @Test func `tells again of a descriptor that stays readable`() throws {
    let counter = try EventCounter(.polled)
    var queue = try makeQueue(try Scratch())
    queueRead(&queue)
    counter.signal()
    let first = queue.wait(orReadable: counter.descriptor)
    let none = queue.nextCompletion() == nil
    let second = queue.wait(orReadable: counter.descriptor)
    #expect([first, none, second] == [true, true, true])
    #expect(drain(&queue) == [5: 0])
  }

  @Test func `is not for an engine that does its work at once`() throws {
    var queue = try makeQueue(try Scratch(), .sync)
    queueRead(&queue)
    let mustWait = queue.mustWait
    #expect(!mustWait)
    #expect(drain(&queue) == [5: 0])
  }

  @Test func `is not needed for a completion that the ring shows`() throws {
    var queue = try makeQueue(try Scratch())
    let before = queue.hasCompletion
    queueRead(&queue)
    queue.submit()
    let counter = try EventCounter(.polled)
    while !queue.hasCompletion { _ = queue.wait(orReadable: counter.descriptor) }
    #expect(!before)
    #expect(drain(&queue) == [5: 0])
  }
}
