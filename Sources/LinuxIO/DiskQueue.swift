// SPDX-License-Identifier: Apache-2.0
//
// Reads, writes and flushes of the files of one export, many at once. Two engines: Linux AIO
// (io_submit(2)) and plain blocking calls. The cases of a layer's storage meet here: what lies
// above asks for "file 2, offset, bytes" and learns of completions by tag.

import BlockTypes
import CAio
import CLinux
import Glibc

/// The disk operations of one export. One thread uses it.
@safe public struct DiskQueue: ~Copyable {
  public enum Engine: Sendable { case aio, sync }

  /// One finished operation.
  @frozen public struct Completion: Sendable {
    public let tag: UInt64
    /// 0, or the errno that the operation failed with.
    public let errno: Int32
  }

  @usableFromInline enum Kind { case read, write, flush }

  /// Bytes of one buffer that an operation reads or writes.
  @frozen public struct Piece {
    public var buffer: IOBuffer
    public var start: Int
    public var byteCount: Int
    @inlinable public init(_ buffer: IOBuffer, _ start: Int, _ byteCount: Int) {
      self.buffer = buffer
      self.start = start
      self.byteCount = byteCount
    }
    @inlinable public static var none: Piece { Piece(.empty, 0, 0) }
  }

  struct Operation {
    var kind: Kind = .flush
    var isDurable = false
    var file: Int32 = 0
    var pieceCount: Int32 = 0
    var pieces: [3 of Piece] = [.none, .none, .none]
    var offset: UInt64 = 0
    var byteCount = 0
    var doneByteCount = 0
    var tag: UInt64 = 0
  }

  struct File {
    let storage: LayerFile
    var direct: Bool
    var alignment: UInt64
    /// Bytes that the file is known to have: a read that ends before them has lost data.
    var byteCount: UInt64
  }

  /// Operations that may be queued or in flight at once.
  public static let depthMax = 1024

  let engine: Engine
  private var context: io_context_t?
  private let event: EventCounter
  var files: [File] = []
  var operations: FixedArray<Operation>
  private var blocks: FixedArray<iocb>
  private var vectors: FixedArray<iovec>
  private var free: FixedArray<Int32>
  private var freeCount = 0
  /// Operations prepared and not yet given to the kernel, in order.
  private var queued: FixedArray<UnsafeMutablePointer<iocb>?>
  private var queuedCount = 0
  private var events: FixedArray<io_event>
  private var eventIndex = 0
  private var eventCount = 0
  public private(set) var inFlightCount = 0
  /// System calls made to submit and reap, for `status`.
  public private(set) var systemCallCount: UInt64 = 0

  public init(engine: Engine) throws(SystemError) {
    let depth = DiskQueue.depthMax
    self.engine = engine
    let event = try EventCounter(.polled)
    let context = unsafe try DiskQueue.makeContext(engine, depth: depth)
    self.event = event
    unsafe self.context = unsafe context
    operations = FixedArray(count: depth) { _ in Operation() }
    unsafe blocks = unsafe FixedArray(count: depth) { _ in unsafe iocb() }
    unsafe vectors = FixedArray(count: depth * 3) { _ in unsafe iovec() }
    free = FixedArray(count: depth) { Int32(depth - 1 - $0) }
    freeCount = depth
    unsafe queued = unsafe FixedArray(count: depth) { _ in nil }
    unsafe events = unsafe FixedArray(count: depth) { _ in unsafe io_event() }
  }

  private static func makeContext(
    _ engine: Engine, depth: Int
  ) throws(SystemError) -> io_context_t? {
    guard engine == .aio else { return nil }
    var created: io_context_t?
    _ = try SystemError.check(unsafe io_setup(Int32(depth), &created), "io_setup")
    return unsafe created
  }

  deinit {
    // The kernel waits for all operations in flight before it destroys a context, so the buffers
    // of this process stay valid until the last one has ended.
    if let context = unsafe context { _ = unsafe io_destroy(context) }
  }

  /// Becomes readable when operations have completed (AIO engine).
  public var eventDescriptor: Int32 { event.descriptor }

  /// Registers a file and returns its index.
  public mutating func add(_ storage: LayerFile, direct: Bool, byteCount: UInt64) -> Int {
    files.append(
      File(storage: storage, direct: direct, alignment: direct ? 512 : 1, byteCount: byteCount))
    return files.count - 1
  }

  /// Tells that file `index` now spans `byteCount` bytes.
  public mutating func setByteCount(_ byteCount: UInt64, ofFile index: Int) {
    files[index].byteCount = byteCount
  }

  @inlinable public var hasRoom: Bool { availableCount > 0 }
  public var availableCount: Int { freeCount }

  // MARK: Queueing

  /// Queues a read of `piece.byteCount` bytes. Past the end of the file it delivers zeroes.
  public mutating func queueRead(file: Int, at offset: UInt64, into piece: Piece, tag: UInt64) {
    let index = take()
    operations[index] = Operation(
      kind: .read, file: Int32(file), pieceCount: 1, pieces: [piece, .none, .none],
      offset: offset, byteCount: piece.byteCount, tag: tag)
    enqueue(index)
  }

  /// Queues one write of up to three pieces that lie one behind the other in the file.
  ///
  /// `isDurable` asks for the bytes to be on stable storage at completion (RWF_DSYNC).
  public mutating func queueWrite(
    file: Int, at offset: UInt64, from pieces: [3 of Piece], isDurable: Bool, tag: UInt64
  ) {
    let index = take()
    var packed: [3 of Piece] = [.none, .none, .none]
    var count = 0
    var byteCount = 0
    for number in 0..<3 where pieces[number].byteCount > 0 {
      packed[count] = pieces[number]
      byteCount += pieces[number].byteCount
      count += 1
    }
    precondition(count > 0, "a write has no bytes")
    operations[index] = Operation(
      kind: .write, isDurable: isDurable, file: Int32(file), pieceCount: Int32(count),
      pieces: packed, offset: offset, byteCount: byteCount, tag: tag)
    enqueue(index)
  }

  /// Queues making durable all writes of the file that completed before now.
  public mutating func queueFlush(file: Int, tag: UInt64) {
    let index = take()
    operations[index] = Operation(kind: .flush, file: Int32(file), tag: tag)
    enqueue(index)
  }

  private mutating func take() -> Int {
    precondition(freeCount > 0, "an operation was queued on a full disk queue")
    freeCount -= 1
    return Int(free[freeCount])
  }

  private mutating func enqueue(_ index: Int) {
    inFlightCount += 1
    prepare(index)
  }

  /// Fills the kernel's block for what is still to do of operation `index`, and queues it.
  private mutating func prepare(_ index: Int) {
    let operation = operations[index]
    let descriptor = files[Int(operation.file)].storage.file.descriptor
    let vectorCount = fillVectors(index)
    // A flush must leave every other field at zero, or the kernel refuses it.
    let isFlush = operation.kind == .flush
    let opcode: io_iocb_cmd
    switch operation.kind {
    case .read: opcode = IO_CMD_PREADV
    case .write: opcode = IO_CMD_PWRITEV
    case .flush: opcode = IO_CMD_FDSYNC
    }
    // SAFETY: block and vectors live in arrays that never move; the buffers behind the vectors are
    // held by the request until its completion has been reported.
    let block = unsafe blocks.base + index
    unsafe caio_prepare(
      block, descriptor, Int16(opcode.rawValue), isFlush ? nil : vectors.base + index * 3,
      Int32(vectorCount),
      Int64(operation.offset) + Int64(operation.doneByteCount),
      operation.isDurable ? Int32(CLINUX_RWF_DSYNC) : 0, event.descriptor, UInt64(index))
    unsafe queued[queuedCount] = unsafe block
    queuedCount += 1
  }

  /// Points the vectors of operation `index` at the bytes behind `doneByteCount`.
  private mutating func fillVectors(_ index: Int) -> Int {
    let operation = operations[index]
    var skip = operation.doneByteCount
    var count = 0
    for number in 0..<Int(operation.pieceCount) {
      let piece = operation.pieces[number]
      guard piece.byteCount > skip else {
        skip -= piece.byteCount
        continue
      }
      unsafe vectors[index * 3 + count].iov_base = piece.buffer.address(
        of: piece.start + skip, piece.byteCount - skip)
      unsafe vectors[index * 3 + count].iov_len = piece.byteCount - skip
      skip = 0
      count += 1
    }
    return count
  }

  // MARK: Submitting and reaping

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

  /// Operations that io_submit refused, with their errno.
  private var refused: [(index: Int, errno: Int32)] = []

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
    let descriptor = files[Int(operation.file)].storage.file.descriptor
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
    let operation = operations[index]
    if operation.kind == .flush { return retire(index, errno: 0) }
    operations[index].doneByteCount += result
    let done = operations[index].doneByteCount
    if done >= operation.byteCount { return retire(index, errno: 0) }
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
      if Int(aligned) <= operation.doneByteCount { return retire(index, errno: EIO) }
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
    return Completion(tag: tag, errno: errno)
  }
}
