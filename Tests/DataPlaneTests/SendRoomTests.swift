// SPDX-License-Identifier: Apache-2.0
//
// How much a socket may hold on its way to a client.

import Testing

@testable import DataPlane

@Suite struct `The room for replies` {
  @Test func `stays small while the reads are`() {
    var room = SendRoom()
    let changes = (0..<1_000).map { _ in room.learn(readByteCount: 4_096) }
    #expect(changes.allSatisfy { $0 == nil })
  }

  @Test func `grows with the first large read, once`() {
    var room = SendRoom()
    let first = room.learn(readByteCount: 64 << 10)
    let second = room.learn(readByteCount: 1 << 20)
    #expect(first == SendRoom.largeByteCount)
    #expect(second == nil)
  }

  @Test func `shrinks when 257 small reads came in a row`() {
    var room = SendRoom()
    _ = room.learn(readByteCount: 1 << 20)
    let changes = (0..<257).map { _ in room.learn(readByteCount: 4_096) }
    #expect(changes[..<256].allSatisfy { $0 == nil })
    #expect(changes[256] == SendRoom.smallByteCount)
  }

  @Test func `stays large while large reads are among the small ones`() {
    var room = SendRoom()
    _ = room.learn(readByteCount: 1 << 20)
    let changes = (0..<2_000).map { room.learn(readByteCount: $0 % 100 == 0 ? 1 << 20 : 4_096) }
    #expect(changes.allSatisfy { $0 == nil })
  }
}
