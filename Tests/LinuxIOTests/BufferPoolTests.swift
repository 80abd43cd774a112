// SPDX-License-Identifier: Apache-2.0
//
// Buffers: their sizes, their reuse, and the bounds of each access.

import LinuxIO
import Testing

@Suite struct `A buffer pool` {
  @Test(arguments: [
    (0, 4_096), (1, 4_096), (4_096, 4_096), (4_097, 8_192), (8_192, 8_192), (8_193, 16_384),
    (1 << 20, 1 << 20), (1 << 20 + 1, 1 << 21), (33 << 20, 64 << 20),
  ])
  func `rounds up to a power of two from a page on`(wanted: Int, rounded: Int) {
    #expect(BufferPool.roundedByteCount(wanted) == rounded)
  }

  @Test(arguments: [1, 4_097, 100_000, 3 << 20])
  func `hands out whole pages of the size that it names`(byteCount: Int) throws {
    var pool = BufferPool()
    let acquired = pool.acquire(byteCount: byteCount)
    let buffer = try #require(acquired)
    #expect(buffer.byteCount == BufferPool.roundedByteCount(byteCount))
    #expect(buffer.withAddress(0, 1) { UInt(bitPattern: $0) % 4_096 } == 0)
    let held = pool.heldByteCount
    #expect(held == buffer.byteCount)
    pool.release(buffer)
    let heldAfter = pool.heldByteCount
    #expect(heldAfter == 0)
  }

  @Test(arguments: [4_096, 65_536, 1 << 20, 64 << 20])
  func `hands out the buffer that came back last`(byteCount: Int) throws {
    var pool = BufferPool()
    let first = pool.acquire(byteCount: byteCount)
    let before = try #require(first).withAddress(0, 1) { UInt(bitPattern: $0) }
    pool.release(try #require(first))
    let second = pool.acquire(byteCount: byteCount)
    #expect(try #require(second).withAddress(0, 1) { UInt(bitPattern: $0) } == before)
  }

  @Test func `keeps 64 MiB of large buffers warm and gives the rest back`() throws {
    var pool = BufferPool()
    let first = pool.acquire(byteCount: 64 << 20)
    let second = pool.acquire(byteCount: 64 << 20)
    let warm = try #require(first)
    let cold = try #require(second)
    warm.put([1], at: 0)
    cold.put([2], at: 0)
    pool.release(warm)
    pool.release(cold)  // unmapped: what comes in its place is zero
    let third = pool.acquire(byteCount: 64 << 20)
    let fourth = pool.acquire(byteCount: 64 << 20)
    #expect(try #require(third).bytes(0, 1) == [1])
    #expect(try #require(fourth).bytes(0, 1) == [0])
  }

  @Test func `never hands out the same bytes twice`() throws {
    var pool = BufferPool()
    var starts: Set<UInt> = []
    for _ in 0..<600 {
      let acquired = pool.acquire(byteCount: 4_096)
      starts.insert(try #require(acquired).withAddress(0, 1) { UInt(bitPattern: $0) })
    }
    #expect(starts.count == 600)
    #expect(starts.allSatisfy { $0 % 4_096 == 0 })
  }

  @Test func `ignores the return of the empty buffer`() {
    var pool = BufferPool()
    pool.release(.empty)
    let held = pool.heldByteCount
    #expect(held == 0)
  }

  @Test func `traps when more comes back than went out`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      var pool = BufferPool()
      guard let buffer = pool.acquire(byteCount: 4_096) else { return }
      pool.release(buffer)
      pool.release(buffer)
    }
    #expect(said("a buffer was released twice", result))
  }
}

@Suite struct `An access to a buffer` {
  @Test func `reaches its last byte`() {
    let buffer = makeBuffer([], byteCount: 4_096)
    buffer.put([9], at: 4_095)
    #expect(buffer.bytes(4_095, 1) == [9])
    #expect(buffer.withSpan(4_096, 0) { $0.byteCount } == 0)
  }

  @Test func `of big-endian words matches their bytes`() {
    let buffer = makeBuffer([], byteCount: 4_096)
    buffer.storeBigEndian64(0x0102_0304_0506_0708, at: 3)
    buffer.storeBigEndian32(0x0a0b_0c0d, at: 11)
    #expect(buffer.bytes(3, 12) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13])
    #expect(buffer.loadBigEndian64(at: 3) == 0x0102_0304_0506_0708)
  }

  @Test func `zeroes exactly its range`() {
    let buffer = makeBuffer(pattern(100), byteCount: 4_096)
    buffer.zero(10, 20)
    #expect(buffer.bytes(10, 20) == [UInt8](repeating: 0, count: 20))
    #expect(buffer.bytes(9, 1) == [pattern(100)[9]])
    #expect(buffer.bytes(30, 1) == [pattern(100)[30]])
  }

  @Test func `copies between buffers and moves over itself`() {
    let source = makeBuffer(pattern(100), byteCount: 4_096)
    let target = makeBuffer([], byteCount: 4_096)
    target.copy(50, from: source, 10, 90)
    #expect(target.bytes(50, 90) == Array(pattern(100)[10...]))
    target.move(40, from: 50, 90)
    #expect(target.bytes(40, 90) == Array(pattern(100)[10...]))
  }

  @Test func `of no bytes is allowed on the empty buffer`() {
    IOBuffer.empty.zero(0, 0)
    IOBuffer.empty.copy(0, from: .empty, 0, 0)
    #expect(IOBuffer.empty.withSpan(0, 0) { $0.byteCount } == 0)
  }

  @Test func `one byte past its end traps`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      makeBuffer([], byteCount: 4_096).zero(4_095, 2)
    }
    #expect(said("a range passes the end of its buffer", result))
  }

  @Test func `before its start traps`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      makeBuffer([], byteCount: 4_096).zero(-1, 2)
    }
    #expect(said("a range passes the end of its buffer", result))
  }

  @Test func `whose end overflows traps`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      makeBuffer([], byteCount: 4_096).zero(16, .max)
    }
    #expect(said("a range passes the end of its buffer", result))
  }

  @Test func `to a word that is cut by the end traps`() async {
    let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
      _ = makeBuffer([], byteCount: 4_096).loadBigEndian64(at: 4_089)
    }
    #expect(said("a range passes the end of its buffer", result))
  }
}
