// SPDX-License-Identifier: Apache-2.0
//
// Two streams with nothing between them but arrays: portions of any size, full buffers, the end.

import TLS
import Testing

private let key = [UInt8](repeating: 0x5a, count: 32)
private let identity = Array("alice".utf8)

/// Both ends of a connection.
private struct Pair: ~Copyable {
  var client: TLSStream
  var server: TLSStream

  init(_ clientKey: [UInt8] = key) throws {
    // Both are made before either is stored: a half-made pair cannot be given up.
    let near = try TLSClientPlan(.keys(PSKTable(identity: identity, key: clientKey)), host: nil)
      .makeSession()
    let far = try TLSSession(
      TLSCredentials(keys: PSKTable(identity: identity, key: key), role: .server, priority: nil))
    client = TLSStream(near)
    server = TLSStream(far)
  }

  /// Moves what waits at either end to the other, so many bytes at once; false when there is none.
  mutating func carry(byteCountMax: Int = .max) -> Bool {
    let forth = Array(client.waiting.prefix(byteCountMax))
    let back = Array(server.waiting.prefix(byteCountMax))
    server.take(forth[...])
    client.forget(forth.count)
    client.take(back[...])
    server.forget(back.count)
    return !forth.isEmpty || !back.isEmpty
  }

  /// Both handshakes to their ends.
  mutating func connect(
    byteCountMax: Int = .max
  ) -> (client: TLSSession.Progress, server: TLSSession.Progress) {
    var ends = (client: client.handshake(), server: server.handshake())
    while carry(byteCountMax: byteCountMax) {
      if ends.client == .wantsRead { ends.client = client.handshake() }
      if ends.server == .wantsRead { ends.server = server.handshake() }
    }
    return ends
  }
}

@Suite struct `A TLS stream` {
  @Test(arguments: [1, 100, 1 << 20])
  func `finishes its handshake in portions of any size, and each end knows the other`(
    byteCountMax: Int
  ) throws {
    var pair = try Pair()
    let ends = pair.connect(byteCountMax: byteCountMax)
    #expect(ends.client == .bytes(0) && ends.server == .bytes(0))
    let peers = [pair.client.peer(), pair.server.peer()]
    #expect(peers == [.preSharedKey(identity: "alice"), .preSharedKey(identity: "alice")])
    let version = pair.client.version
    #expect(version == "TLS1.3")
  }

  @Test func `with another key tells its peer why it ends`() throws {
    var pair = try Pair([UInt8](repeating: 1, count: 32))
    let ends = pair.connect()
    guard case .failed = ends.server, case .failed(let told) = ends.client else {
      Issue.record("\(ends)")
      return
    }
    #expect(told.reason.hasPrefix("the peer ended it: "))
  }

  @Test func `takes no more than its bound while nobody takes its ciphertext`() throws {
    var pair = try Pair()
    _ = pair.connect()
    let plain = (0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 &* 31) }
    let first = try pair.client.send(plain[...])
    #expect(first >= TLSStream.outputByteCountMax - (1 << 15) && first < plain.count)
    #expect(try pair.client.send(plain[first...]) == 0)
    let waitingCount = pair.client.waiting.count
    #expect(waitingCount < TLSStream.outputByteCountMax + (1 << 15))
    // Whoever receives into a small room gets all of it, in order, without further ciphertext.
    var sent = first
    var received: [UInt8] = []
    var room = [UInt8](repeating: 0, count: 10_000)
    while received.count < plain.count {
      _ = pair.carry()
      sent += try pair.client.send(plain[sent...])
      while case .bytes(let count) = pair.server.receive(into: &room) {
        received += room[..<count]
        if count < room.count { break }
      }
    }
    #expect(received == plain)
  }

  @Test func `tells the end behind what came before it`() throws {
    var pair = try Pair()
    _ = pair.connect()
    #expect(try pair.client.send([1, 2, 3][...]) == 3)
    pair.client.sayGoodbye()
    _ = pair.carry()
    var room = [UInt8](repeating: 0, count: 100)
    #expect(pair.server.receive(into: &room) == .bytes(3))
    let hasReceived = pair.server.hasReceived
    #expect(hasReceived)
    #expect(pair.server.receive(into: &room) == .closed)
  }

  @Test func `tells its peer of a record that was changed`() throws {
    var pair = try Pair()
    _ = pair.connect()
    #expect(try pair.client.send([1, 2, 3][...]) == 3)
    var record = Array(pair.client.waiting)
    pair.client.forget(record.count)
    record[record.count - 1] ^= 1
    pair.server.take(record[...])
    var room = [UInt8](repeating: 0, count: 100)
    guard case .failed = pair.server.receive(into: &room) else {
      Issue.record("a changed record was taken")
      return
    }
    _ = pair.carry()
    guard case .failed(let told) = pair.client.receive(into: &room) else {
      Issue.record("the peer was not told")
      return
    }
    #expect(told.reason.hasPrefix("the peer ended it: "))
  }
}
