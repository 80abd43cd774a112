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
    /// The same as the storage's, where no reference has to be followed for it.
    let descriptor: Int32
    var direct: Bool
    /// Bytes that the file is known to have: a read that ends before them has lost data.
    var byteCount: UInt64
  }

  /// Operations that may be queued or in flight at once.
  public static let depthMax = 1024

  let engine: Engine
  var context: io_context_t?
  let event: EventCounter
  var files: [File] = []
  var operations: FixedArray<Operation>
  var blocks: FixedArray<iocb>
  var vectors: FixedArray<iovec>
  var free: FixedArray<Int32>
  var freeCount = 0
  /// Operations prepared and not yet given to the kernel, in order.
  var queued: FixedArray<UnsafeMutablePointer<iocb>?>
  var queuedCount = 0
  var events: FixedArray<io_event>
  var eventIndex = 0
  var eventCount = 0
  /// Operations that io_submit refused, with their errno.
  var refused: [(index: Int, errno: Int32)] = []
  public internal(set) var inFlightCount = 0
  /// System calls made to submit and reap, for `status`.
  public internal(set) var systemCallCount: UInt64 = 0
  /// Those of them that were io_submit(2), and the operations that ended.
  public internal(set) var submitCallCount: UInt64 = 0
  public internal(set) var completionCount: UInt64 = 0

  public init(engine: Engine) throws(SystemError) {
    let depth = DiskQueue.depthMax
    self.engine = engine
    let event = try EventCounter(.polled)
    let context = unsafe try DiskQueue.makeContext(engine)
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

  /// Operations that the kernel is asked to take at once, most wanted first. All processes of the
  /// machine share `fs.aio-max-nr` (65,536 unless told otherwise): a smaller context leaves room
  /// for more exports, and what does not fit in it waits in the queue.
  private static let contextDepths: [Int32] = [256, 64, 16]

  private static func makeContext(_ engine: Engine) throws(SystemError) -> io_context_t? {
    guard engine == .aio else { return nil }
    var result: Int32 = 0
    for depth in contextDepths {
      var created: io_context_t?
      result = unsafe io_setup(depth, &created)
      if result != -EAGAIN {
        _ = try SystemError.check(result, "io_setup")
        return unsafe created
      }
    }
    throw SystemError(
      errno: -result,
      call: "io_setup (all of fs.aio-max-nr is in use; raise it, or use --aio sync)")
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
      File(
        storage: storage, descriptor: storage.file.descriptor, direct: direct,
        byteCount: byteCount))
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

  mutating func take() -> Int {
    precondition(freeCount > 0, "an operation was queued on a full disk queue")
    freeCount -= 1
    return Int(free[freeCount])
  }

  private mutating func enqueue(_ index: Int) {
    inFlightCount += 1
    prepare(index)
  }

  /// Fills the kernel's block for what is still to do of operation `index`, and queues it.
  mutating func prepare(_ index: Int) {
    let descriptor = files[Int(operations[index].file)].descriptor
    let vectorCount = fillVectors(index)
    // A flush must leave every other field at zero, or the kernel refuses it.
    let isFlush = operations[index].kind == .flush
    let opcode: io_iocb_cmd
    switch operations[index].kind {
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
      Int64(operations[index].offset) + Int64(operations[index].doneByteCount),
      operations[index].isDurable ? Int32(CLINUX_RWF_DSYNC) : 0, event.descriptor, UInt64(index))
    unsafe queued[queuedCount] = unsafe block
    queuedCount += 1
  }

  /// Points the vectors of operation `index` at the bytes behind `doneByteCount`.
  mutating func fillVectors(_ index: Int) -> Int {
    var skip = operations[index].doneByteCount
    var count = 0
    for number in 0..<Int(operations[index].pieceCount) {
      let piece = operations[index].pieces[number]
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
}
