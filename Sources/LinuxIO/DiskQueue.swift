// SPDX-License-Identifier: Apache-2.0
//
// Reads, writes and flushes of the files of one export, many at once. Two engines: Linux AIO
// (io_submit(2)) and plain blocking calls. The cases of a layer's storage meet here: what lies
// above asks for "file 2, offset, bytes" and learns of completions by tag.

import BlockTypes
import Glibc

/// The disk operations of one export. One thread uses it.
@safe public struct DiskQueue: ~Copyable {
  public enum Engine: Sendable { case aio, sync }

  /// One finished operation.
  @frozen public struct Completion: Sendable {
    public let tag: UInt64
    /// 0, or the errno that the operation failed with.
    public let errno: Int32
    /// Of a durable write that failed: others that have ended may be lost with it.
    public let losesWrites: Bool
  }

  @usableFromInline enum Kind: BitwiseCopyable, Sendable { case read, write, flush }

  /// Bytes of one buffer that an operation reads or writes.
  @frozen public struct Piece: BitwiseCopyable, Sendable {
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

  struct Operation: BitwiseCopyable, Sendable {
    var kind: Kind = .flush
    var isDurable = false
    var file: Int32 = 0
    var pieceCount: Int32 = 0
    var pieces: [3 of Piece] = [.none, .none, .none]
    var offset: UInt64 = 0
    var byteCount = 0
    var doneByteCount = 0
    var tag: UInt64 = 0
    /// What encrypts the bytes on the disk; -1: nothing.
    var cipher: Int32 = -1
    /// Of an encrypted write: what goes to the disk.
    var sealed: IOBuffer = .empty
  }

  struct File {
    let storage: LayerFile
    /// The same as the storage's, where no reference has to be followed for it; -1 when remote.
    let descriptor: Int32
    var direct: Bool
    /// Bytes that the file is known to have: a read that ends before them has lost data.
    var byteCount: UInt64
  }

  /// Operations that may be queued or in flight at once.
  public static let depthMax = 1024

  /// The kernel's context of the native engine; vacant for the blocking one.
  var native: FixedPool<AIOContext>
  let engine: Engine
  var files: [File] = []
  var operations: FixedArray<Operation>
  var vectors: FixedArray<iovec>
  var free: FixedArray<Int32>
  var freeCount = 0
  /// Operations that the blocking engine has still to do, in order.
  var toDo: FixedArray<Int32>
  var toDoCount = 0
  public internal(set) var inFlightCount = 0
  /// Those of them that remote storages have in hand.
  var remoteInFlightCount = 0
  /// Where their results arrive; nil while all storages are local.
  var remoteCompletions: RemoteCompletions?
  /// Operations that ended, whatever became of them.
  public internal(set) var completionCount: UInt64 = 0
  /// What encrypts the data of files, by the number that reads and writes name (DiskQueue+Ciphers).
  var ciphers: [any SectorCipher] = []
  /// Memory for what is encrypted and on its way to the disk.
  var sealedBuffers = BufferPool()
  /// System calls that the blocking engine made.
  var blockingCallCount: UInt64 = 0

  public init(engine: Engine) throws(SystemError) {
    let depth = DiskQueue.depthMax
    self.engine = engine
    native = FixedPool(capacity: 1)
    // Zero bytes cost no memory until an operation is first used, which sets all of it.
    operations = FixedArray(zeroedCount: depth)
    unsafe vectors = FixedArray(zeroedCount: depth * 3)
    free = FixedArray(count: depth) { Int32(depth - 1 - $0) }
    freeCount = depth
    toDo = FixedArray(zeroedCount: depth)
    if engine == .aio { _ = native.insert(try AIOContext(capacity: depth)) }
  }

  /// Registers a local file and returns its index.
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

  /// Bytes that file `index` spans, as far as this queue was told.
  public func byteCount(ofFile index: Int) -> UInt64 { files[index].byteCount }

  /// Whether file `index` is read and written beside the page cache.
  public func isDirect(file index: Int) -> Bool { files[index].direct }

  @inlinable public var hasRoom: Bool { availableCount > 0 }
  public var availableCount: Int { freeCount }

  // MARK: Queueing

  /// Queues a read of `piece.byteCount` bytes. Past the end of the file it delivers zeroes.
  ///
  /// - Parameter cipher: decrypts what was read, zeroes past the end, too; -1: nothing does.
  public mutating func queueRead(
    file: Int, at offset: UInt64, into piece: Piece, cipher: Int32 = -1, tag: UInt64
  ) {
    let index = take()
    operations[index] = Operation(
      kind: .read, file: Int32(file), pieceCount: 1, pieces: [piece, .none, .none],
      offset: offset, byteCount: piece.byteCount, tag: tag, cipher: cipher)
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

  mutating func enqueue(_ index: Int) {
    inFlightCount += 1
    prepare(index)
  }

  /// Queues what is still to do of operation `index`.
  mutating func prepare(_ index: Int) {
    let descriptor = files[Int(operations[index].file)].descriptor
    guard descriptor >= 0 else { return prepareRemote(index) }
    guard engine == .aio else {
      toDo[toDoCount] = Int32(index)
      toDoCount += 1
      return
    }
    let vectorCount = fillVectors(index)
    // SAFETY: the vectors live in an array that never moves; the buffers behind them are held by
    // the request until its completion has been reported.
    unsafe native[0].queue(
      index, operations[index].kind, descriptor, vectors.base + index * 3, vectorCount,
      at: operations[index].offset + UInt64(operations[index].doneByteCount),
      isDurable: operations[index].isDurable)
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
