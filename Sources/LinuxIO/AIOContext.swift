// SPDX-License-Identifier: Apache-2.0
//
// A Linux AIO context: operations in by number, results out by number. Completions are read from
// the ring that the kernel maps into this process, without a system call.
//
// A completion that raises an eventfd costs the kernel a wake-up and the loop a look at it, also
// where the completion was found without sleeping (a hot disk, a file in memory). So nothing is
// raised: who sleeps while operations are in flight sleeps in the context, and has the kernel
// watch the event loop's descriptor there too.
// Source: io_setup(2), io_submit(2) and its IOCB_CMD_POLL (Linux 4.18), io_getevents(2).

import BlockTypes
import CAio
import CLinux
import Glibc

/// The kernel's side of the native engine of a `DiskQueue`.
@safe struct AIOContext: ~Copyable {
  /// What the kernel said of operation `index`: a byte count or -errno.
  struct Result {
    let index: Int
    let value: Int
  }

  /// Operations that the kernel is asked to take at once, most wanted first. All processes of the
  /// machine share `fs.aio-max-nr` (65,536 unless told otherwise), and what is asked for counts
  /// there; the ring has more than twice as many places (254 for 64), and all of them may be used.
  /// What does not fit in it waits in the queue.
  private static let depths: [Int32] = [64, 16]

  private let handle: io_context_t
  private let capacity: Int
  /// One block for each operation, and one for `wait`.
  private var blocks: FixedArray<iocb>
  /// Blocks prepared and not yet given to the kernel, in order.
  private var queued: FixedArray<UnsafeMutablePointer<iocb>?>
  private(set) var queuedCount = 0
  private var events: FixedArray<io_event>
  private var eventIndex = 0
  private var eventCount = 0
  /// Operations that io_submit refused, with their errno.
  private var refused: [(index: Int, errno: Int32)] = []
  /// The kernel watches a descriptor for `wait`, or is asked to by what is queued.
  private var isWatching = false
  /// The descriptor that the last wait was about, when that wait had to sleep: the next one will
  /// probably sleep too, so the watch is submitted with the operations. -1 for none.
  private var watchedAhead: Int32 = -1
  private(set) var systemCallCount: UInt64 = 0
  /// Those of them that were io_submit(2).
  private(set) var submitCallCount: UInt64 = 0

  /// A context for operations numbered `0 ..< capacity`.
  init(capacity: Int) throws(SystemError) {
    self.capacity = capacity
    unsafe handle = unsafe try AIOContext.setUp()
    // SAFETY: all three hold C structures or pointers, which are trivial; zero bytes are valid.
    unsafe blocks = unsafe FixedArray(zeroedTrivialCount: capacity + 1)
    unsafe queued = unsafe FixedArray(zeroedTrivialCount: capacity + 1)
    unsafe events = unsafe FixedArray(zeroedTrivialCount: capacity)
  }

  private static func setUp() throws(SystemError) -> io_context_t {
    var result: Int32 = 0
    for depth in depths {
      var created: io_context_t?
      result = unsafe io_setup(depth, &created)
      if let created = unsafe created, result == 0 { return unsafe created }
      if result != -EAGAIN { throw SystemError(errno: -result, call: "io_setup") }
    }
    throw SystemError(
      errno: -result,
      call: "io_setup (all of fs.aio-max-nr is in use; raise it, or use --aio sync)")
  }

  deinit {
    // The kernel waits for all operations in flight before it destroys a context, so the buffers
    // of this process stay valid until the last one has ended.
    _ = unsafe io_destroy(handle)
  }

  // MARK: Submitting

  /// Queues operation `index` on the bytes that `vectors` point at; a flush has none.
  ///
  /// The vectors and their bytes must stay where they are until the result has been taken.
  mutating func queue(
    _ index: Int, _ kind: DiskQueue.Kind, _ descriptor: Int32,
    _ vectors: UnsafeMutablePointer<iovec>, _ vectorCount: Int, at offset: UInt64, isDurable: Bool
  ) {
    let block = unsafe blocks.base + index
    let flags = isDurable ? Int32(CLINUX_RWF_DSYNC) : 0
    let (command, what, count): (io_iocb_cmd, UnsafeMutableRawPointer?, Int)
    // One range of bytes costs the kernel less to understand than a vector of one.
    switch (kind, vectorCount == 1) {
    case (.read, true):
      unsafe (command, what, count) = unsafe (
        IO_CMD_PREAD, vectors.pointee.iov_base, vectors.pointee.iov_len
      )
    case (.write, true):
      unsafe (command, what, count) = unsafe (
        IO_CMD_PWRITE, vectors.pointee.iov_base, vectors.pointee.iov_len
      )
    case (.read, false):
      unsafe (command, what, count) = unsafe (IO_CMD_PREADV, .init(vectors), vectorCount)
    case (.write, false):
      unsafe (command, what, count) = unsafe (IO_CMD_PWRITEV, .init(vectors), vectorCount)
    case (.flush, _): unsafe (command, what, count) = (IO_CMD_FDSYNC, nil, 0)
    }
    unsafe caio_prepare(
      block, descriptor, Int16(command.rawValue), what, UInt(count),
      // The kernel refuses a flush with an offset.
      kind == .flush ? 0 : Int64(offset), flags, UInt64(index))
    unsafe queued[queuedCount] = unsafe block
    queuedCount += 1
  }

  /// Gives everything queued to the kernel. What it cannot take now stays queued.
  mutating func submit() {
    if watchedAhead >= 0 { skipWatchResults() }
    if watchedAhead >= 0, !isWatching {
      unsafe caio_prepare_poll(blocks.base + capacity, watchedAhead, UInt64(capacity))
      unsafe queued[queuedCount] = unsafe blocks.base + capacity
      queuedCount += 1
      isWatching = true
    }
    watchedAhead = -1
    var first = 0
    while first < queuedCount {
      systemCallCount += 1
      submitCallCount += 1
      // SAFETY: here and below, blocks and events live in arrays that never move, and their
      // indices are those of operations in flight.
      let result = unsafe io_submit(handle, queuedCount - first, queued.base + first)
      if result > 0 {
        first += Int(result)
      } else if result == -EAGAIN || result == 0 {
        break
      } else if result != -EINTR {
        // The kernel refuses the first one: only that one fails.
        let index = unsafe queued[first]! - blocks.base
        if index == capacity {
          isWatching = false
        } else {
          refused.append((index, Int32(-result)))
        }
        first += 1
      }
    }
    for index in first..<queuedCount { unsafe queued[index - first] = unsafe queued[index] }
    queuedCount -= first
  }

  // MARK: Results

  /// Whether a result can be taken now, as far as can be told without a system call.
  var hasResult: Bool {
    if eventIndex < eventCount || !refused.isEmpty { return true }
    return unsafe caio_ring_has_any(handle) != 0
  }

  /// Takes the next result; nil when there is none now.
  mutating func nextResult() -> Result? {
    if let (index, errno) = refused.popLast() { return Result(index: index, value: -Int(errno)) }
    skipWatchResults()
    guard eventIndex < eventCount else { return nil }
    let event = unsafe events[eventIndex]
    eventIndex += 1
    return Result(
      index: unsafe Int(UInt(bitPattern: event.data)), value: unsafe Int(bitPattern: event.res))
  }

  /// Takes results until the next one is that of an operation, or there is none.
  private mutating func skipWatchResults() {
    while eventIndex < eventCount || refillEvents() {
      guard unsafe Int(UInt(bitPattern: events[eventIndex].data)) == capacity else { return }
      eventIndex += 1
      isWatching = false
    }
  }

  /// Takes completions from the ring, or by a system call where the ring is unknown.
  private mutating func refillEvents() -> Bool {
    var count = unsafe caio_ring_take(handle, events.base, Int32(capacity))
    if count < 0 {
      systemCallCount += 1
      var now = timespec()
      count = unsafe io_getevents(handle, 0, capacity, events.base, &now)
    }
    eventIndex = 0
    eventCount = max(Int(count), 0)
    return eventCount > 0
  }

  // MARK: Sleeping

  /// Sleeps until there is a result or `descriptor` is readable, for a second at most.
  ///
  /// - Returns: whether the descriptor may be readable.
  mutating func wait(orReadable descriptor: Int32) -> Bool {
    precondition(eventIndex == eventCount, "a completion was slept over")
    // Where the kernel cannot watch (its context is full, or it is older than 4.18), look often.
    let sleepsLong = queuedCount == 0 && (isWatching || watch(descriptor))
    watchedAhead = descriptor
    var longest = timespec(tv_sec: sleepsLong ? 1 : 0, tv_nsec: sleepsLong ? 0 : 1_000_000)
    systemCallCount += 1
    let count = unsafe io_getevents(handle, 1, capacity, events.base, &longest)
    eventIndex = 0
    eventCount = max(Int(count), 0)
    if !sleepsLong { return true }
    for index in 0..<eventCount
    where unsafe Int(UInt(bitPattern: events[index].data)) == capacity {
      return true
    }
    return false
  }

  /// Has the kernel watch `descriptor` once; returns whether it does.
  private mutating func watch(_ descriptor: Int32) -> Bool {
    var block: UnsafeMutablePointer<iocb>? = unsafe blocks.base + capacity
    unsafe caio_prepare_poll(blocks.base + capacity, descriptor, UInt64(capacity))
    systemCallCount += 1
    submitCallCount += 1
    isWatching = unsafe io_submit(handle, 1, &block) == 1
    return isWatching
  }
}
