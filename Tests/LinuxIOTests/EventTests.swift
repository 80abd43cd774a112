// SPDX-License-Identifier: Apache-2.0
//
// Waiting: the event loop, counters, timers, and the pool for calls that block.
// Source: epoll(7), eventfd(2), timerfd_create(2).

import Foundation
import LinuxIO
import Synchronization
import TestSupport
import Testing

/// Two connected sockets, closed at the end.
private final class SocketPair {
  let near: Int32
  let far: Int32
  private var farIsOpen = true

  init() throws {
    var ends: [Int32] = [0, 0]
    guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0 else {
      throw WireError.system("socketpair", errno: errno)
    }
    near = ends[0]
    far = ends[1]
  }

  func closeFar() {
    if farIsOpen { close(far) }
    farIsOpen = false
  }

  deinit {
    close(near)
    closeFar()
  }
}

@Suite struct `An event loop` {
  @Test func `tells nothing while nothing happens`() throws {
    let pair = try SocketPair()
    var loop = try EventLoop()
    try loop.add(pair.near, .readable, token: 5)
    #expect(loop.wait(timeoutMilliseconds: 0) == 0)
  }

  @Test func `returns the token and what happened`() throws {
    let pair = try SocketPair()
    var loop = try EventLoop()
    try loop.add(pair.near, .readable, token: .max)
    #expect(write(pair.far, "x", 1) == 1)
    #expect(loop.wait(timeoutMilliseconds: 1_000) == 1)
    let (token, what) = loop.event(0)
    #expect(token == .max)
    #expect(what == .readable)
  }

  @Test func `watches for what it was changed to`() throws {
    let pair = try SocketPair()
    var loop = try EventLoop()
    try loop.add(pair.near, .readable, token: 1)
    loop.change(pair.near, .writable, token: 2)
    #expect(write(pair.far, "x", 1) == 1)
    #expect(loop.wait(timeoutMilliseconds: 1_000) == 1)
    let (token, what) = loop.event(0)
    #expect(token == 2)
    #expect(what == .writable)
  }

  @Test func `forgets what was removed`() throws {
    let pair = try SocketPair()
    var loop = try EventLoop()
    try loop.add(pair.near, .readable, token: 1)
    loop.remove(pair.near)
    #expect(write(pair.far, "x", 1) == 1)
    #expect(loop.wait(timeoutMilliseconds: 0) == 0)
  }

  @Test func `tells of a peer that is gone even when it watches for nothing`() throws {
    let pair = try SocketPair()
    var loop = try EventLoop()
    try loop.add(pair.near, [], token: 1)
    pair.closeFar()
    #expect(loop.wait(timeoutMilliseconds: 1_000) == 1)
    #expect(!loop.event(0).what.isDisjoint(with: .failed))
  }

  @Test func `refuses a descriptor that it watches already`() throws {
    let pair = try SocketPair()
    let loop = try EventLoop()
    try loop.add(pair.near, .readable, token: 1)
    let thrown = #expect(throws: SystemError.self) {
      try addAgain(pair.near)
    }
    #expect(thrown?.errno == EEXIST)

    func addAgain(_ descriptor: Int32) throws {
      let second = try EventLoop()
      try second.add(descriptor, .readable, token: 1)
      try second.add(descriptor, .readable, token: 2)
    }
  }

  @Test func `traps when a stranger is removed`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      let loop = try EventLoop()
      loop.remove(0)
    }
    #expect(said("a watched descriptor cannot be removed", result))
  }
}

@Suite struct `An event counter` {
  @Test func `that is polled gives its whole count and does not wait`() throws {
    let counter = try EventCounter(.polled)
    counter.signal()
    counter.signal()
    counter.take()
    #expect(!waitForInput(counter.descriptor, milliseconds: 0))
    counter.take()  // would hang if it waited
  }

  @Test func `that is a semaphore gives one at a time`() throws {
    let counter = try EventCounter(.semaphore)
    counter.signal()
    counter.signal()
    counter.take()
    #expect(waitForInput(counter.descriptor, milliseconds: 0))
    counter.take()
    #expect(!waitForInput(counter.descriptor, milliseconds: 0))
  }
}

@Suite struct `An interval timer` {
  @Test func `fires again after it was taken`() throws {
    let timer = try IntervalTimer(milliseconds: 20)
    #expect(!waitForInput(timer.descriptor, milliseconds: 0))
    #expect(waitForInput(timer.descriptor, milliseconds: 5_000))
    timer.take()
    #expect(waitForInput(timer.descriptor, milliseconds: 5_000))
  }

  @Test func `forgets all expirations at once and does not wait for one`() throws {
    let timer = try IntervalTimer(milliseconds: 60_000)
    timer.take()
    #expect(!waitForInput(timer.descriptor, milliseconds: 0))
  }
}

@Suite struct `A blocking pool` {
  /// Takes completions until there are `count` of them or ten seconds have passed.
  private func take(_ count: Int, from pool: BlockingPool) -> [UInt64: Int64] {
    var values: [UInt64: Int64] = [:]
    let deadline = Deadline(seconds: 10)
    while values.count < count, deadline.secondsLeft > 0 {
      waitForInput(pool.eventDescriptor, milliseconds: 100)
      for completion in pool.takeCompletions() { values[completion.tag] = completion.value }
    }
    return values
  }

  @Test func `returns each result under its tag`() throws {
    let pool = try BlockingPool(threadCount: 2)
    for tag in 0..<UInt64(200) { pool.submit(tag: tag) { Int64(tag * tag) } }
    let values = take(200, from: pool)
    #expect(values.count == 200)
    #expect(values.allSatisfy { $0.value == Int64($0.key * $0.key) })
  }

  @Test func `has nothing to read when all is taken`() throws {
    let pool = try BlockingPool(threadCount: 1)
    #expect(!waitForInput(pool.eventDescriptor, milliseconds: 0))
    pool.submit(tag: 1) { 1 }
    #expect(take(1, from: pool) == [1: 1])
    #expect(!waitForInput(pool.eventDescriptor, milliseconds: 0))
    #expect(pool.takeCompletions().isEmpty)
  }

  @Test func `of two threads goes on while one of them waits`() throws {
    let pool = try BlockingPool(threadCount: 2)
    let isOver = Atomic(false)
    pool.submit(tag: 1) {
      let deadline = Deadline(seconds: 10)
      while !isOver.load(ordering: .acquiring), deadline.secondsLeft > 0 { usleep(1_000) }
      return 0
    }
    pool.submit(tag: 2) { 0 }
    #expect(take(1, from: pool).keys.contains(2))
    isOver.store(true, ordering: .releasing)
    #expect(take(1, from: pool).keys.contains(1))
  }

  @Test func `reports the errno of a call, or zero`() {
    #expect(BlockingPool.errno { () throws(SystemError) in } == 0)
    let failed = BlockingPool.errno { () throws(SystemError) in
      throw SystemError(errno: ENOSPC, call: "fallocate")
    }
    #expect(failed == Int64(ENOSPC))
  }

  @Test func `without threads works when its owner says so`() throws {
    let pool = try BlockingPool()
    pool.submit(tag: 7) { 1 }
    pool.submit(tag: 8) { 2 }
    #expect(pool.waitingTags == [7, 8])
    #expect(pool.takeCompletions().isEmpty)
    pool.doWork(1)
    #expect(pool.waitingTags == [7])
    let done = pool.takeCompletions()
    #expect(done.map(\.tag) == [8] && done.map(\.value) == [2])
  }

  @Test func `without threads traps`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      _ = try BlockingPool(threadCount: 0)
    }
    #expect(said("a pool has 1 to 64 threads", result))
  }
}
