// SPDX-License-Identifier: Apache-2.0
//
// A disk queue with a storage that is no file: what it asks for, and how answers come back.

import BlockTypes
import Foundation
import LinuxIO
import TestSupport
import Testing

/// A storage that answers when the test says so.
private final class HeldStorage: RemoteStorage, @unchecked Sendable {  // guarded by its lock
  typealias Completion = @Sendable (Result<RemoteAnswer, RemoteFault>) -> Void

  private let lock = NSLock()
  private var held: [(operation: RemoteOperation, completion: Completion)] = []
  private var begun = 0

  var identity: String { "held" }
  var byteCount: UInt64 { 8_192 }
  var blockByteCount: UInt64 { 512 }
  var tellsStatus: Bool { false }
  var isGrowable: Bool { false }
  var beginCount: Int { lock.withLock { begun } }
  var operations: [RemoteOperation] { lock.withLock { held.map(\.operation) } }

  func start(_ operation: RemoteOperation, completion: @escaping Completion) {
    lock.withLock { held.append((operation, completion)) }
  }

  func run(_ operation: RemoteOperation) throws(RemoteFault) -> RemoteAnswer {
    throw .failed("not here")
  }

  func begin() throws(SystemError) { lock.withLock { begun += 1 } }
  func hurry() {}

  /// Answers the operation at `index` on another thread, and waits until that is done.
  func answer(_ index: Int, _ result: Result<RemoteAnswer, RemoteFault>) {
    let completion = lock.withLock { held[index].completion }
    let done = DispatchSemaphore(value: 0)
    Thread.detachNewThread {
      completion(result)
      done.signal()
    }
    done.wait()
  }
}

@Suite struct `A remote storage in a disk queue` {
  private let scratch: Scratch
  private let storage = HeldStorage()

  init() throws { scratch = try Scratch() }

  /// A queue with a file and the storage.
  private func makeQueue(_ engine: DiskQueue.Engine) throws -> DiskQueue {
    var queue = try DiskQueue(engine: engine)
    _ = queue.add(try scratch.file(pattern(8_192)), direct: false, byteCount: 8_192)
    let index = try queue.addRemote(LayerFile(storage, path: "held"))
    #expect(index == 1)
    #expect(storage.beginCount == 1)
    return queue
  }

  @Test(arguments: [DiskQueue.Engine.aio, .sync])
  func `answers in its own time, beside files that go on`(engine: DiskQueue.Engine) throws {
    var queue = try makeQueue(engine)
    let descriptor = queue.remoteEventDescriptor
    let bell = try #require(descriptor)
    let first = makeBuffer([UInt8](repeating: 0xee, count: 512))
    let second = makeBuffer([UInt8](repeating: 0xee, count: 512))
    let local = makeBuffer([UInt8](repeating: 0xee, count: 512))
    queue.queueRead(file: 1, at: 512, into: DiskQueue.Piece(first, 0, 512), tag: 1)
    queue.queueRead(file: 1, at: 1_024, into: DiskQueue.Piece(second, 0, 512), tag: 2)
    let mustWait = queue.mustWait
    #expect(!mustWait, "nobody sleeps for the kernel")
    queue.queueRead(file: 0, at: 0, into: DiskQueue.Piece(local, 0, 512), tag: 3)
    queue.submit()
    var outcomes: [UInt64: Int32] = [:]
    let deadline = Deadline(seconds: 10)
    while outcomes.isEmpty, deadline.secondsLeft > 0 {
      if let completion = queue.nextCompletion() { outcomes[completion.tag] = completion.errno }
    }
    #expect(outcomes == [3: 0])
    #expect(!waitForInput(bell, milliseconds: 0))
    storage.answer(1, .success(.bytes(pattern(512))))
    #expect(waitForInput(bell, milliseconds: 5_000))
    queue.takeRemoteEvent()
    let answered = queue.nextCompletion()
    #expect(answered?.tag == 2)
    let none = queue.nextCompletion()
    #expect(none?.tag == nil)
    #expect(second.bytes(0, 512) == pattern(512))
    storage.answer(0, .failure(.unanswered("nobody")))
    let failed = queue.nextCompletion()
    #expect(failed?.tag == 1)
    #expect(failed?.errno == ETIMEDOUT)
    let inFlightCount = queue.inFlightCount
    #expect(inFlightCount == 0)
  }

  @Test func `that ends before a read does gives zeroes there`() throws {
    var queue = try makeQueue(.sync)
    let buffer = makeBuffer([UInt8](repeating: 0xee, count: 1_024))
    queue.queueRead(file: 1, at: 8_000, into: DiskQueue.Piece(buffer, 0, 1_024), tag: 1)
    storage.answer(0, .success(.bytes(pattern(192))))
    let completion = queue.nextCompletion()
    #expect(completion?.errno == 0)
    #expect(buffer.bytes(0, 1_024) == pattern(192) + [UInt8](repeating: 0, count: 832))
  }

  @Test func `is asked on for the rest of a short read`() throws {
    var queue = try makeQueue(.sync)
    let buffer = makeBuffer([UInt8](repeating: 0xee, count: 1_536))
    queue.queueRead(file: 1, at: 512, into: DiskQueue.Piece(buffer, 512, 1_024), tag: 1)
    storage.answer(0, .success(.bytes(Array(pattern(1_024)[..<512]))))
    let none = queue.nextCompletion()
    #expect(none?.tag == nil)
    guard case .read(let rest) = storage.operations[1] else {
      Issue.record("no read follows")
      return
    }
    #expect(rest == ByteRange(start: 1_024, end: 1_536))
    storage.answer(1, .success(.bytes(Array(pattern(1_024)[512...]))))
    let completion = queue.nextCompletion()
    #expect(completion?.errno == 0)
    #expect(buffer.bytes(512, 1_024) == pattern(1_024))
  }

  @Test func `is asked on for the rest of a short write`() throws {
    var queue = try makeQueue(.sync)
    let buffer = makeBuffer(pattern(4_096))
    queue.queueWrite(
      file: 1, at: 1_024,
      from: [DiskQueue.Piece(buffer, 0, 512), DiskQueue.Piece(buffer, 2_048, 1_024), .none],
      isDurable: false, tag: 1)
    storage.answer(0, .success(.part(byteCount: 1_024)))
    let none = queue.nextCompletion()
    #expect(none?.tag == nil)
    guard case .write(2_048, let bytes, false) = storage.operations[1] else {
      Issue.record("no write follows")
      return
    }
    #expect(bytes == buffer.bytes(2_560, 512))
    storage.answer(1, .success(.done))
    let completion = queue.nextCompletion()
    #expect(completion?.errno == 0)
  }

  @Test func `gets the pieces of a write in one, and is asked to make it durable`() throws {
    var queue = try makeQueue(.aio)
    let buffer = makeBuffer(pattern(4_096))
    queue.queueWrite(
      file: 1, at: 1_024,
      from: [
        DiskQueue.Piece(buffer, 512, 512), .none, DiskQueue.Piece(buffer, 2_048, 1_024),
      ], isDurable: true, tag: 9)
    guard case .write(1_024, let bytes, true) = storage.operations[0] else {
      Issue.record("\(storage.operations)")
      return
    }
    #expect(bytes == Array(pattern(4_096)[512..<1_024] + pattern(4_096)[2_048..<3_072]))
    storage.answer(0, .success(.done))
    let written = queue.nextCompletion()
    #expect(written?.tag == 9)
    queue.queueFlush(file: 1, tag: 10)
    guard case .flush = storage.operations[1] else {
      Issue.record("\(storage.operations)")
      return
    }
    storage.answer(1, .failure(.failed("broken")))
    let failed = queue.nextCompletion()
    #expect(failed?.errno == EIO)
  }
}
