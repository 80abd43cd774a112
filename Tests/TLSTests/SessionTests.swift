// SPDX-License-Identifier: Apache-2.0
//
// Sessions over arrays: every size of input, every size of room.

import TLS
import Testing

private let over = TLSSession.Progress.bytes(0)

@Suite struct `A TLS handshake over memory` {
  @Test func `ends at both ends with TLS 1_3, and the server knows who came`() throws {
    var link = try TLSLink.shared()
    let ends = link.connect()
    #expect(ends.client == over)
    #expect(ends.server == over)
    #expect(link.server.version == "TLS1.3")
    #expect(link.server.peer() == .preSharedKey(identity: "alice"))
  }

  @Test func `works with TLS 1_2`() throws {
    var link = try TLSLink.shared(clientPriority: "NORMAL:-VERS-ALL:+VERS-TLS1.2")
    #expect(link.connect().server == over)
    #expect(link.server.version == "TLS1.2")
  }

  // proto.md "TLS versions": nothing before 1.2 unless somebody insists.
  @Test(arguments: ["1.0", "1.1"])
  func `is refused to older versions`(version: String) throws {
    var link = try TLSLink.shared(
      clientPriority: "NORMAL:-VERS-ALL:+VERS-TLS\(version):%COMPAT")
    let ends = link.connect()
    guard case .failed(let fault) = ends.server, case .failed(let told) = ends.client else {
      Issue.record("an end went on: \(ends)")
      return
    }
    #expect(fault.subject == "handshake")
    #expect(told.reason.hasPrefix("the peer ended it: "), "an alert tells the client")
  }

  @Test(arguments: [1, 2, 5, 100])
  func `works in portions of any size`(byteCount: Int) throws {
    var link = try TLSLink.shared()
    let ends = link.connect(byteCountMax: byteCount)
    #expect(ends.client == over)
    #expect(ends.server == over)
  }

  @Test(arguments: [1, 7, 64])
  func `works with hardly any room for answers`(room: Int) throws {
    var link = try TLSLink.shared()
    let ends = link.connect(room: room)
    #expect(ends.client == over)
    #expect(ends.server == over)
  }

  @Test func `fails with a wrong key`() throws {
    var link = try TLSLink.shared(clientKey: [UInt8](repeating: 1, count: 32))
    guard case .failed = link.connect().server else {
      Issue.record("the server went on")
      return
    }
  }

  @Test func `fails for an identity that nobody knows just as with a wrong key`() throws {
    var wrong = try TLSLink.shared(clientKey: [UInt8](repeating: 1, count: 32))
    var unknown = try TLSLink.shared(identity: Array("mallory".utf8))
    #expect(wrong.connect().server == unknown.connect().server)
  }

  @Test func `fails for bytes that are no TLS`() throws {
    for bytes in ["IHAVEOPT\0\0\0\u{3}\0\0\0\0", "GET / HTTP/1.0\r\n\r\n"] {
      var link = try TLSLink.shared()
      link.toServer = Array(bytes.utf8)
      guard case .failed = link.handshake(.server) else {
        Issue.record("the server went on after \(bytes)")
        continue
      }
    }
  }

  @Test func `survives every single changed byte of the client's hello`() throws {
    var first = try TLSLink.shared()
    _ = first.handshake(.client)
    for index in first.toServer.indices {
      var link = try TLSLink.shared()
      link.toServer = first.toServer
      link.toServer[index] ^= 0x41
      _ = link.handshake(.server)
      _ = link.handshake(.server)
    }
  }

  @Test func `waits at every truncation of the client's hello`() throws {
    var first = try TLSLink.shared()
    _ = first.handshake(.client)
    for count in 0..<first.toServer.count {
      var link = try TLSLink.shared()
      link.toServer = Array(first.toServer[..<count])
      #expect(link.handshake(.server) == .wantsRead)
      #expect(link.toServer.isEmpty)
    }
  }
}

@Suite struct `Bytes in a TLS session` {
  private func connected() throws -> TLSLink {
    var link = try TLSLink.shared()
    let ends = link.connect()
    try #require(ends.client == over && ends.server == over)
    return link
  }

  @Test(arguments: [1, 28, 16_383, 16_384])
  func `arrive as they were`(count: Int) throws {
    var link = try connected()
    let sent = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31) }
    #expect(link.send(.client, sent) == .bytes(count))
    #expect(link.receive(.server, count + 1).bytes == sent)
    #expect(link.receive(.server, 1).progress == .wantsRead)
  }

  @Test func `that do not fit stay pending in the session, not on the wire`() throws {
    var link = try connected()
    link.send(.client, [UInt8](1...100))
    #expect(link.receive(.server, 60).bytes == [UInt8](1...60))
    #expect(link.toServer.isEmpty)
    #expect(link.server.pendingByteCount == 40)
    #expect(link.receive(.server, 60).bytes == [UInt8](61...100))
    #expect(link.server.pendingByteCount == 0)
  }

  @Test func `of several records come in one call`() throws {
    var link = try connected()
    for value in 1...5 { link.send(.client, [UInt8](repeating: UInt8(value), count: 1_000)) }
    let received = link.receive(.server, 5_000)
    #expect(received.progress == .bytes(5_000))
    #expect(received.bytes[4_999] == 5)
  }

  @Test func `are waited for at every truncation of their record`() throws {
    var link = try connected()
    link.send(.client, [UInt8](1...50))
    let count = link.toServer.count
    for _ in 1..<count {
      #expect(link.receive(.server, 50, byteCountMax: 1).progress == .wantsRead)
    }
    #expect(link.receive(.server, 50, byteCountMax: 1).bytes == [UInt8](1...50))
  }

  @Test func `that were changed on the way end the session`() throws {
    var link = try connected()
    link.send(.client, [UInt8](1...50))
    link.toServer[20] ^= 1
    guard case .failed = link.receive(.server, 50).progress else {
      Issue.record("a changed record was taken")
      return
    }
    guard case .failed = link.receive(.server, 50).progress else {
      Issue.record("a dead session went on")
      return
    }
    var output = [UInt8](repeating: 0, count: 1_024)
    var span = output.mutableSpan
    var room = span.mutableBytes
    let step = link.server.tellFailure(&room)
    #expect(step.putByteCount > 0, "an alert tells the client")
  }

  @Test func `are the last when the peer wants to negotiate again, which TLS 1_2 has`() throws {
    var link = try TLSLink.shared(clientPriority: "NORMAL:-VERS-ALL:+VERS-TLS1.2")
    try #require(link.connect().server == over)
    link.send(.client, [1, 2, 3])
    #expect(link.handshake(.client) == .wantsRead)
    #expect(link.receive(.server, 10).bytes == [1, 2, 3])
    guard case .failed = link.receive(.server, 10).progress else {
      Issue.record("the server negotiates again")
      return
    }
  }

  @Test func `end with the goodbye of the other end, and not before`() throws {
    var link = try connected()
    link.send(.client, [1, 2, 3])
    #expect(link.sayGoodbye(.client) == over)
    #expect(link.receive(.server, 10).bytes == [1, 2, 3])
    #expect(link.toServer.isEmpty)
    var isUntold = link.server.hasUntoldEnd
    #expect(isUntold, "no further byte will lead to it")
    #expect(link.receive(.server, 10).progress == .closed)
    isUntold = link.server.hasUntoldEnd
    #expect(!isUntold)
    #expect(link.receive(.server, 10).progress == .closed)
    // Half-closed: the server may still answer.
    link.send(.server, [4, 5])
    #expect(link.sayGoodbye(.server) == over)
    #expect(link.receive(.client, 10).bytes == [4, 5])
    #expect(link.receive(.client, 10).progress == .closed)
  }
}
