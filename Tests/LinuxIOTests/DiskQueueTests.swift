// SPDX-License-Identifier: Apache-2.0
//
// What both engines of the disk queue do alike, on real files. Source: io_submit(2), preadv(2),
// pwritev2(2), fdatasync(2).

import Foundation
import LinuxIO
import TestSupport
import Testing

private let engines: [DiskQueue.Engine] = [.aio, .sync]

/// Queues one read, drains, and returns the error and what is in the buffer.
private func read(
  _ queue: inout DiskQueue, at offset: UInt64, _ byteCount: Int
) -> (errno: Int32?, bytes: [UInt8]) {
  let buffer = makeBuffer([UInt8](repeating: 0xee, count: byteCount))
  queue.queueRead(file: 0, at: offset, into: DiskQueue.Piece(buffer, 0, byteCount), tag: 7)
  return (drain(&queue)[7], buffer.bytes(0, byteCount))
}

@Suite struct `A read of a disk queue` {
  @Test(arguments: engines)
  func `delivers the bytes of the file at its offset`(engine: DiskQueue.Engine) throws {
    let scratch = try Scratch()
    let bytes = pattern(10_000)
    var queue = try DiskQueue(engine: engine)
    _ = queue.add(try scratch.file(bytes), direct: false, byteCount: 10_000)
    let result = read(&queue, at: 1_234, 5_000)
    #expect(result.errno == 0)
    #expect(result.bytes == Array(bytes[1_234..<6_234]))
  }

  @Test(arguments: engines)
  func `that ends with the file is not padded`(engine: DiskQueue.Engine) throws {
    let scratch = try Scratch()
    let bytes = pattern(5_000)
    var queue = try DiskQueue(engine: engine)
    _ = queue.add(try scratch.file(bytes), direct: false, byteCount: 5_000)
    let result = read(&queue, at: 4_000, 1_000)
    #expect(result.errno == 0)
    #expect(result.bytes == Array(bytes[4_000...]))
  }

  @Test(arguments: engines)
  func `that passes the end of the file gets zeroes there`(engine: DiskQueue.Engine) throws {
    let scratch = try Scratch()
    let bytes = pattern(5_000)
    var queue = try DiskQueue(engine: engine)
    _ = queue.add(try scratch.file(bytes), direct: false, byteCount: 5_000)
    let result = read(&queue, at: 4_000, 1_001)
    #expect(result.errno == 0)
    #expect(result.bytes == Array(bytes[4_000...]) + [0])
  }

  @Test(arguments: engines)
  func `that starts behind the file gets zeroes only`(engine: DiskQueue.Engine) throws {
    let scratch = try Scratch()
    var queue = try DiskQueue(engine: engine)
    _ = queue.add(try scratch.file(pattern(5_000)), direct: false, byteCount: 5_000)
    let result = read(&queue, at: 1 << 40, 4_096)
    #expect(result.errno == 0)
    #expect(result.bytes == [UInt8](repeating: 0, count: 4_096))
  }

  @Test(arguments: engines)
  func `of bytes that the file lost meanwhile fails with EIO`(engine: DiskQueue.Engine) throws {
    let scratch = try Scratch()
    let storage = try scratch.file(pattern(8_192))
    var queue = try DiskQueue(engine: engine)
    _ = queue.add(storage, direct: false, byteCount: 8_192)
    try storage.file.truncate(to: 6_000)
    #expect(read(&queue, at: 4_096, 4_096).errno == EIO)
    #expect(read(&queue, at: 6_000, 1).errno == EIO)
  }

  @Test(arguments: engines)
  func `of bytes before the cut still works`(engine: DiskQueue.Engine) throws {
    let scratch = try Scratch()
    let bytes = pattern(8_192)
    let storage = try scratch.file(bytes)
    var queue = try DiskQueue(engine: engine)
    _ = queue.add(storage, direct: false, byteCount: 8_192)
    try storage.file.truncate(to: 6_000)
    let result = read(&queue, at: 1_000, 5_000)
    #expect(result.errno == 0)
    #expect(result.bytes == Array(bytes[1_000..<6_000]))
  }

  @Test(arguments: engines)
  func `knows the new length after a growth`(engine: DiskQueue.Engine) throws {
    let scratch = try Scratch()
    let storage = try scratch.file(pattern(4_096))
    var queue = try DiskQueue(engine: engine)
    _ = queue.add(storage, direct: false, byteCount: 4_096)
    #expect(read(&queue, at: 4_096, 4_096).errno == 0)
    // The file does not really have these bytes, so now their lack is a loss.
    queue.setByteCount(8_192, ofFile: 0)
    #expect(read(&queue, at: 4_096, 4_096).errno == EIO)
  }

  @Test(arguments: engines)
  func `touches no byte beside its piece`(engine: DiskQueue.Engine) throws {
    let scratch = try Scratch()
    var queue = try DiskQueue(engine: engine)
    _ = queue.add(try scratch.file(pattern(600)), direct: false, byteCount: 600)
    let buffer = makeBuffer([UInt8](repeating: 0xee, count: 3_000))
    queue.queueRead(file: 0, at: 0, into: DiskQueue.Piece(buffer, 1_000, 1_000), tag: 1)
    #expect(drain(&queue) == [1: 0])
    #expect(buffer.bytes(999, 1) == [0xee])
    #expect(buffer.bytes(2_000, 1) == [0xee])
    #expect(buffer.bytes(1_000, 600) == pattern(600))
    #expect(buffer.bytes(1_600, 400) == [UInt8](repeating: 0, count: 400))
  }
}

@Suite struct `A write of a disk queue` {
  @Test(arguments: engines, [false, true])
  func `puts three pieces one behind the other`(engine: DiskQueue.Engine, isDurable: Bool) throws {
    let scratch = try Scratch()
    var queue = try DiskQueue(engine: engine)
    _ = queue.add(try scratch.file(pattern(20_000)), direct: false, byteCount: 20_000)
    let parts = (0..<3).map { pattern(1_000 + $0 * 777, seed: $0 + 1) }
    let buffers = parts.map { makeBuffer($0) }
    queue.queueWrite(
      file: 0, at: 5_000,
      from: [
        DiskQueue.Piece(buffers[0], 0, parts[0].count),
        DiskQueue.Piece(buffers[1], 0, parts[1].count),
        DiskQueue.Piece(buffers[2], 0, parts[2].count),
      ], isDurable: isDurable, tag: 9)
    #expect(drain(&queue) == [9: 0])
    let whole = parts.flatMap { $0 }
    let contents = try scratch.contents()
    #expect(Array(contents[5_000..<5_000 + whole.count]) == whole)
    #expect(Array(contents[..<5_000]) == Array(pattern(20_000)[..<5_000]))
    #expect(
      Array(contents[(5_000 + whole.count)...])
        == Array(pattern(20_000)[(5_000 + whole.count)...]))
  }

  @Test(arguments: engines)
  func `leaves out pieces without bytes`(engine: DiskQueue.Engine) throws {
    let scratch = try Scratch()
    var queue = try DiskQueue(engine: engine)
    _ = queue.add(try scratch.file(pattern(4_096)), direct: false, byteCount: 4_096)
    let buffer = makeBuffer(pattern(100, seed: 5))
    queue.queueWrite(
      file: 0, at: 50, from: [.none, DiskQueue.Piece(buffer, 0, 100), .none], isDurable: false,
      tag: 3)
    #expect(drain(&queue) == [3: 0])
    #expect(Array(try scratch.contents()[50..<150]) == pattern(100, seed: 5))
  }

  @Test func `without any bytes traps`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      var queue = try DiskQueue(engine: .sync)
      _ = queue.add(try Scratch().file([1]), direct: false, byteCount: 1)
      queue.queueWrite(file: 0, at: 0, from: [.none, .none, .none], isDurable: false, tag: 1)
    }
    #expect(said("a write has no bytes", result))
  }

  @Test(arguments: engines)
  func `to a file that is open for reading fails alone`(engine: DiskQueue.Engine) throws {
    let scratch = try Scratch()
    var queue = try DiskQueue(engine: engine)
    _ = queue.add(try scratch.file(pattern(4_096)), direct: false, byteCount: 4_096)
    let sealed = try scratch.file(pattern(4_096), access: .readOnly, name: "sealed")
    _ = queue.add(sealed, direct: false, byteCount: 4_096)
    let buffer = makeBuffer(pattern(64, seed: 8))
    for tag: UInt64 in 0..<9 {
      queue.queueWrite(
        file: tag == 4 ? 1 : 0, at: tag * 64, from: [DiskQueue.Piece(buffer, 0, 64), .none, .none],
        isDurable: false, tag: tag)
    }
    let outcomes = drain(&queue)
    #expect(outcomes.count == 9)
    #expect(outcomes[4] == EBADF)
    #expect(outcomes.filter { $0.key != 4 }.values.allSatisfy { $0 == 0 })
    #expect(try scratch.contents("sealed") == pattern(4_096))
  }
}

@Suite struct `A disk queue` {
  @Test(arguments: engines)
  func `completes a flush under its tag`(engine: DiskQueue.Engine) throws {
    let scratch = try Scratch()
    var queue = try DiskQueue(engine: engine)
    _ = queue.add(try scratch.file(pattern(4_096)), direct: false, byteCount: 4_096)
    queue.queueFlush(file: 0, tag: .max)
    #expect(drain(&queue) == [.max: 0])
  }

  @Test(arguments: engines)
  func `gives each of a hundred reads its own bytes`(engine: DiskQueue.Engine) throws {
    let scratch = try Scratch()
    let bytes = pattern(100 * 512)
    var queue = try DiskQueue(engine: engine)
    _ = queue.add(try scratch.file(bytes), direct: false, byteCount: UInt64(bytes.count))
    let buffer = makeBuffer([], byteCount: 100 * 512)
    for index in 0..<100 {
      let place = (index * 37 % 100) * 512
      queue.queueRead(
        file: 0, at: UInt64(place), into: DiskQueue.Piece(buffer, place, 512), tag: UInt64(index))
    }
    let outcomes = drain(&queue)
    #expect(outcomes.count == 100)
    #expect(outcomes.values.allSatisfy { $0 == 0 })
    #expect(buffer.bytes(0, bytes.count) == bytes)
  }

  @Test(arguments: engines)
  func `takes as many operations as it says and has room again after them`(engine: DiskQueue.Engine)
    throws
  {
    let scratch = try Scratch()
    var queue = try DiskQueue(engine: engine)
    _ = queue.add(try scratch.file(pattern(512)), direct: false, byteCount: 512)
    let buffer = makeBuffer([], byteCount: 512)
    for tag in 0..<UInt64(DiskQueue.depthMax) {
      let hadRoom = queue.hasRoom
      #expect(hadRoom)
      queue.queueRead(file: 0, at: 0, into: DiskQueue.Piece(buffer, 0, 512), tag: tag)
    }
    let isFull = !queue.hasRoom
    #expect(isFull)
    #expect(drain(&queue).count == DiskQueue.depthMax)
    let available = queue.availableCount
    #expect(available == DiskQueue.depthMax)
  }

  @Test func `traps when it is given one operation too many`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      var queue = try DiskQueue(engine: .sync)
      _ = queue.add(try Scratch().file([1]), direct: false, byteCount: 1)
      for tag in 0...UInt64(DiskQueue.depthMax) { queue.queueFlush(file: 0, tag: tag) }
    }
    #expect(said("an operation was queued on a full disk queue", result))
  }

  @Test func `can be given up with reads in flight`() throws {
    let scratch = try Scratch()
    let storage = try scratch.file(pattern(1 << 20))
    let buffer = makeBuffer([], byteCount: 1 << 20)
    do {
      var queue = try DiskQueue(engine: .aio)
      _ = queue.add(storage, direct: false, byteCount: 1 << 20)
      for tag in 0..<UInt64(64) {
        queue.queueRead(file: 0, at: 0, into: DiskQueue.Piece(buffer, 0, 1 << 20), tag: tag)
      }
      queue.submit()
    }
    // io_destroy(2) waits for them, so nobody writes to the buffer any more.
    buffer.put([1, 2, 3], at: 0)
    #expect(buffer.bytes(0, 3) == [1, 2, 3])
  }

  @Test(arguments: engines)
  func `writes and reads at once when asked to`(engine: DiskQueue.Engine) throws {
    let scratch = try Scratch()
    var queue = try DiskQueue(engine: engine)
    _ = queue.add(try scratch.file(pattern(8_192)), direct: false, byteCount: 8_192)
    let buffer = makeBuffer(pattern(4_096, seed: 3))
    #expect(queue.writeNow(file: 0, at: 4_096, DiskQueue.Piece(buffer, 0, 4_096)) == 0)
    #expect(queue.readNow(file: 0, at: 0, DiskQueue.Piece(buffer, 0, 4_096)) == 0)
    #expect(buffer.bytes(0, 4_096) == pattern(4_096))
    #expect(Array(try scratch.contents()[4_096...]) == pattern(4_096, seed: 3))
    let available = queue.availableCount
    #expect(available == DiskQueue.depthMax)
  }

  @Test func `fails a read at once that finds too few bytes`() throws {
    let scratch = try Scratch()
    var queue = try DiskQueue(engine: .sync)
    _ = queue.add(try scratch.file(pattern(5_000)), direct: false, byteCount: 5_000)
    let buffer = makeBuffer([], byteCount: 4_096)
    #expect(queue.readNow(file: 0, at: 904, DiskQueue.Piece(buffer, 0, 4_096)) == 0)
    #expect(queue.readNow(file: 0, at: 905, DiskQueue.Piece(buffer, 0, 4_096)) == EIO)
  }
}
