// SPDX-License-Identifier: Apache-2.0
//
// O_DIRECT: the alignment that a file needs, and what the queue does with it.
// Source: open(2) "O_DIRECT", statx(2) "STATX_DIOALIGN".

import Foundation
import LinuxIO
import TestSupport
import Testing

/// Whether files in the temporary folder can bypass the page cache.
private let directIsPossible: Bool = {
  do {
    return try Scratch().file(pattern(8_192)).file.enableDirect() != nil
  } catch { return false }
}()

@Suite(.enabled(if: directIsPossible, "the temporary folder's filesystem has no O_DIRECT"))
struct `A file without the page cache` {
  @Test func `needs an alignment that is a power of two from 512 to 4096`() throws {
    let file = try Scratch().file(pattern(8_192))
    let alignment = try #require(file.enableDirect())
    #expect(alignment.nonzeroBitCount == 1)
    #expect((512...4_096).contains(alignment))
  }

  @Test func `has O_DIRECT set, and has it no more after it was turned off`() throws {
    let file = try Scratch().file(pattern(8_192))
    let before = fcntl(file.file.descriptor, F_GETFL)
    #expect(file.file.enableDirect() != nil)
    #expect(fcntl(file.file.descriptor, F_GETFL) == before | 0x4000)
    file.file.disableDirect()
    #expect(fcntl(file.file.descriptor, F_GETFL) == before)
  }

  @Test(arguments: [DiskQueue.Engine.aio, .sync])
  func `is read and written at aligned places`(engine: DiskQueue.Engine) throws {
    let scratch = try Scratch()
    let storage = try scratch.file(pattern(1 << 16))
    let alignment = Int(try #require(storage.enableDirect()))
    var queue = try DiskQueue(engine: engine)
    _ = queue.add(storage, direct: true, byteCount: 1 << 16)
    let buffer = makeBuffer(pattern(alignment, seed: 4), byteCount: 8_192)
    queue.queueWrite(
      file: 0, at: UInt64(alignment),
      from: [DiskQueue.Piece(buffer, 0, alignment), .none, .none], isDurable: true, tag: 1)
    #expect(drain(&queue) == [1: 0])
    queue.queueRead(
      file: 0, at: UInt64(2 * alignment), into: DiskQueue.Piece(buffer, 0, alignment), tag: 2)
    #expect(drain(&queue) == [2: 0])
    let bytes = pattern(1 << 16)
    #expect(buffer.bytes(0, alignment) == Array(bytes[2 * alignment..<3 * alignment]))
    #expect(
      Array(try scratch.contents()[alignment..<2 * alignment]) == pattern(alignment, seed: 4))
  }

  @Test(arguments: [DiskQueue.Engine.aio, .sync])
  func `fails one misaligned read with EINVAL and serves its neighbours`(
    engine: DiskQueue.Engine
  ) throws {
    let storage = try Scratch().file(pattern(1 << 16))
    #expect(storage.file.enableDirect() != nil)
    var queue = try DiskQueue(engine: engine)
    _ = queue.add(storage, direct: true, byteCount: 1 << 16)
    let buffer = makeBuffer([], byteCount: 16_384)
    for tag in 0..<UInt64(3) {
      queue.queueRead(
        file: 0, at: tag == 1 ? 1 : tag * 4_096,
        into: DiskQueue.Piece(buffer, Int(tag) * 4_096, 4_096), tag: tag)
    }
    #expect(drain(&queue) == [0: 0, 1: EINVAL, 2: 0])
    #expect(buffer.bytes(8_192, 4_096) == Array(pattern(1 << 16)[8_192..<12_288]))
  }

  @Test(arguments: [DiskQueue.Engine.aio, .sync])
  func `reads as zeroes behind an end that is not aligned`(engine: DiskQueue.Engine) throws {
    let storage = try Scratch().file(pattern(5_000))
    #expect(storage.file.enableDirect() != nil)
    var queue = try DiskQueue(engine: engine)
    _ = queue.add(storage, direct: true, byteCount: 5_000)
    let buffer = makeBuffer([UInt8](repeating: 0xee, count: 8_192))
    queue.queueRead(file: 0, at: 0, into: DiskQueue.Piece(buffer, 0, 8_192), tag: 1)
    #expect(drain(&queue) == [1: 0])
    #expect(buffer.bytes(0, 5_000) == pattern(5_000))
    #expect(buffer.bytes(5_000, 3_192) == [UInt8](repeating: 0, count: 3_192))
  }

  @Test(arguments: [DiskQueue.Engine.aio, .sync])
  func `that was cut at an odd place fails with EIO and does not spin`(
    engine: DiskQueue.Engine
  ) throws {
    let storage = try Scratch().file(pattern(12_288))
    #expect(storage.file.enableDirect() != nil)
    var queue = try DiskQueue(engine: engine)
    _ = queue.add(storage, direct: true, byteCount: 12_288)
    try storage.file.truncate(to: 5_000)
    let buffer = makeBuffer([], byteCount: 12_288)
    queue.queueRead(file: 0, at: 0, into: DiskQueue.Piece(buffer, 0, 12_288), tag: 1)
    #expect(drain(&queue) == [1: EIO])
  }
}
