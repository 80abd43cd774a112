// SPDX-License-Identifier: Apache-2.0
//
// Peers that use what TLS 1.3 allows and ordinary clients do not. Source: RFC 8446, section 4.6.3;
// RFC 8449.

import CGnuTLS
import Testing

@testable import TLS

extension TLSLink {
  /// Lets the client change its keys, and asks the server to change its own.
  fileprivate mutating func changeKeys() throws {
    var output = [UInt8](repeating: 0, count: 1_024)
    var code: Int32 = -1
    let step: TLSSession.Step
    do {
      var span = output.mutableSpan
      var bytes = span.mutableBytes
      step = client.exchange(RawSpan(), &bytes) { session, _ in
        code = gnutls_session_key_update(session, UInt32(GNUTLS_KU_PEER))
        return .bytes(0)
      }
    }
    try #require(code == 0)
    toServer += output.prefix(step.putByteCount)
  }
}

@Suite struct `A peculiar peer` {
  @Test func `may change keys in the middle, both ways`() throws {
    var link = try TLSLink.shared()
    try #require(link.connect().server == .bytes(0))
    for round in UInt8(1)...3 {
      link.send(.client, [round])
      try link.changeKeys()
      link.send(.client, [round, round])
      #expect(link.receive(.server, 10).bytes == [round, round, round])
      link.send(.server, [UInt8](repeating: round, count: 16_384))
      #expect(
        link.receive(.client, 20_000).bytes == [UInt8](repeating: round, count: 16_384))
    }
  }

  @Test func `that changes keys again and again is cut off`() throws {
    var link = try TLSLink.shared()
    try #require(link.connect().server == .bytes(0))
    for _ in 0..<200 { try link.changeKeys() }
    guard case .failed = link.receive(.server, 10).progress else {
      Issue.record("200 changes were taken")
      return
    }
  }

  @Test(arguments: [512, 1_000])
  func `may ask for small records, and gets all in the room that is always enough`(
    recordByteCount: Int
  ) throws {
    var link = try TLSLink.shared()
    try #require(gnutls_record_set_max_recv_size(link.client.handle, recordByteCount) == 0)
    try #require(link.connect().server == .bytes(0))
    let sent = (0..<16_384).map { UInt8(truncatingIfNeeded: $0 &* 7) }
    #expect(link.send(.server, sent) == .bytes(sent.count))
    #expect(link.toClient.count >= sent.count + 22 * (16_384 / recordByteCount))
    #expect(link.receive(.client, 20_000).bytes == sent)
  }
}
