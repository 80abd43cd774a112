// SPDX-License-Identifier: Apache-2.0
//
// A few threads for calls that block: fallocate, punching holes, inflating, lseek. Their results
// come back to the owner's loop as completions on an eventfd.

import BlockTypes
import Glibc
import Synchronization

/// Runs closures on threads of its own. `submit` and `takeCompletions` belong to one owner thread.
public final class BlockingPool: Sendable {
  /// The result of one closure, with the tag it was submitted under.
  public struct Completion: Sendable {
    public let tag: UInt64
    public let value: Int64
  }

  private struct Work: Sendable {
    let tag: UInt64
    let body: @Sendable () -> Int64
  }

  private struct State {
    var queue: [Work] = []
    var completions: [Completion] = []
  }

  private let state = Mutex(State())
  private let workCount: EventCounter
  private let completionCount: EventCounter

  /// Becomes readable when completions wait.
  public var eventDescriptor: Int32 { completionCount.descriptor }

  /// A pool without threads: what is queued is done when `doWork` says so, on the thread of its
  /// caller.
  public init() throws(SystemError) {
    workCount = try EventCounter(.semaphore)
    completionCount = try EventCounter(.polled)
  }

  /// Starts `threadCount` threads, which live as long as the process.
  public convenience init(threadCount: Int) throws(SystemError) {
    precondition((1...64).contains(threadCount), "a pool has 1 to 64 threads")
    try self.init()
    for _ in 0..<threadCount { try startThread() }
  }

  private func startThread() throws(SystemError) {
    var thread = pthread_t()
    // SAFETY: the thread owns one reference to the pool, which it never gives back, so the pool
    // outlives it.
    let result = unsafe pthread_create(
      &thread, nil,
      { context in
        let pool = unsafe Unmanaged<BlockingPool>.fromOpaque(context!).takeRetainedValue()
        pool.work()
        return nil
      }, Unmanaged.passRetained(self).toOpaque())
    guard result == 0 else { throw SystemError(errno: result, call: "pthread_create") }
    pthread_detach(thread)
  }

  private func work() {
    while true {
      workCount.take()
      let next = state.withLock { state -> Work? in
        state.queue.isEmpty ? nil : state.queue.removeFirst()
      }
      guard let next else { continue }
      report(tag: next.tag, value: next.body())
    }
  }

  /// Queues `body`; its result comes back from `takeCompletions` under `tag`.
  public func submit(tag: UInt64, _ body: @escaping @Sendable () -> Int64) {
    state.withLock { $0.queue.append(Work(tag: tag, body: body)) }
    workCount.signal()
  }

  /// The tags of what waits for a thread, oldest first.
  public var waitingTags: [UInt64] { state.withLock { $0.queue.map(\.tag) } }

  /// Does the waiting work number `index`, on a pool without threads.
  public func doWork(_ index: Int) {
    let work = state.withLock { $0.queue.remove(at: index) }
    report(tag: work.tag, value: work.body())
  }

  /// Leaves a result that came without a thread of the pool, by way of another one.
  public func report(tag: UInt64, value: Int64) {
    state.withLock { $0.completions.append(Completion(tag: tag, value: value)) }
    completionCount.signal()
  }

  /// Returns the results that have arrived, oldest first.
  public func takeCompletions() -> [Completion] {
    completionCount.take()
    return state.withLock { state in
      let taken = state.completions
      state.completions.removeAll(keepingCapacity: true)
      return taken
    }
  }
}

extension BlockingPool {
  /// Runs a call on a file and reports 0 or the errno that it failed with.
  public static func errno(of body: () throws(SystemError) -> Void) -> Int64 {
    do throws(SystemError) {
      try body()
      return 0
    } catch {
      return Int64(error.errno)
    }
  }
}
