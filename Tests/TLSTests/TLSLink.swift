// SPDX-License-Identifier: Apache-2.0
//
// A client and a server of TLS with nothing between them but arrays.

import TLS

/// Which end of the link.
enum End { case client, server }

/// Two sessions and the bytes on their way.
struct TLSLink: ~Copyable {
  var client: TLSSession
  var server: TLSSession
  var toServer: [UInt8] = []
  var toClient: [UInt8] = []
  /// Bytes that were taken or put since the beginning.
  private(set) var movedByteCount = 0

  init(
    server: TLSCredentials, client: TLSCredentials, host: String? = nil
  ) throws {
    let serverSession = try TLSSession(server)
    let clientSession = try TLSSession(client, host: host)
    self.server = serverSession
    self.client = clientSession
  }

  static let identity = Array("alice".utf8)
  static let key = [UInt8](repeating: 0x5a, count: 32)

  /// Two ends that share a key.
  static func shared(
    clientKey: [UInt8] = key, identity: [UInt8] = identity, serverPriority: String? = nil,
    clientPriority: String? = nil
  ) throws -> TLSLink {
    let table = PSKTable(identity: TLSLink.identity, key: key)
    return try TLSLink(
      server: TLSCredentials(keys: table, role: .server, priority: serverPriority),
      client: TLSCredentials(
        keys: PSKTable(identity: identity, key: clientKey), role: .client,
        priority: clientPriority))
  }

  /// One step of an end's handshake with at most `byteCountMax` bytes of input and `room` for its
  /// answers.
  mutating func handshake(
    _ end: End, byteCountMax: Int = .max, room: Int = 65_536
  ) -> TLSSession.Progress {
    let input = Array((end == .client ? toClient : toServer).prefix(byteCountMax))
    var output = [UInt8](repeating: 0, count: room)
    let step: TLSSession.Step
    do {
      var span = output.mutableSpan
      var bytes = span.mutableBytes
      switch end {
      case .client: step = client.handshake(input.span.bytes, &bytes)
      case .server: step = server.handshake(input.span.bytes, &bytes)
      }
    }
    account(end, step, output)
    return step.progress
  }

  /// Lets both ends talk until both are done; returns what ended it.
  mutating func connect(
    byteCountMax: Int = .max, room: Int = 65_536
  ) -> (client: TLSSession.Progress, server: TLSSession.Progress) {
    var ends: (client: TLSSession.Progress, server: TLSSession.Progress) = (.wantsRead, .wantsRead)
    for _ in 0..<200_000 {
      let before = movedByteCount
      if TLSLink.goesOn(ends.client) {
        ends.client = handshake(.client, byteCountMax: byteCountMax, room: room)
      }
      if TLSLink.goesOn(ends.server) {
        ends.server = handshake(.server, byteCountMax: byteCountMax, room: room)
      }
      let isOver = !TLSLink.goesOn(ends.client) && !TLSLink.goesOn(ends.server)
      if isOver || movedByteCount == before { break }
    }
    return ends
  }

  private static func goesOn(_ progress: TLSSession.Progress) -> Bool {
    progress == .wantsRead || progress == .wantsWrite
  }

  /// Encrypts at one end.
  @discardableResult
  mutating func send(_ end: End, _ plaintext: [UInt8]) -> TLSSession.Progress {
    var output = [UInt8](repeating: 0, count: TLSSession.sendRoomByteCount)
    let step: TLSSession.Step
    do {
      var span = output.mutableSpan
      var bytes = span.mutableBytes
      switch end {
      case .client: step = client.send(plaintext.span.bytes, &bytes)
      case .server: step = server.send(plaintext.span.bytes, &bytes)
      }
    }
    account(end, step, output)
    return step.progress
  }

  /// Decrypts at one end, up to `count` bytes of what came, of which `byteCountMax` are shown.
  mutating func receive(
    _ end: End, _ count: Int, byteCountMax: Int = .max
  ) -> (progress: TLSSession.Progress, bytes: [UInt8]) {
    let input = Array((end == .client ? toClient : toServer).prefix(byteCountMax))
    var plaintext = [UInt8](repeating: 0, count: count)
    let step: TLSSession.Step
    do {
      var span = plaintext.mutableSpan
      var bytes = span.mutableBytes
      switch end {
      case .client: step = client.receive(input.span.bytes, into: &bytes)
      case .server: step = server.receive(input.span.bytes, into: &bytes)
      }
    }
    account(end, step, [])
    guard case .bytes(let received) = step.progress else { return (step.progress, []) }
    return (step.progress, Array(plaintext[..<received]))
  }

  mutating func sayGoodbye(_ end: End) -> TLSSession.Progress {
    var output = [UInt8](repeating: 0, count: 1_024)
    let step: TLSSession.Step
    do {
      var span = output.mutableSpan
      var bytes = span.mutableBytes
      switch end {
      case .client: step = client.sayGoodbye(&bytes)
      case .server: step = server.sayGoodbye(&bytes)
      }
    }
    account(end, step, output)
    return step.progress
  }

  private mutating func account(_ end: End, _ step: TLSSession.Step, _ output: [UInt8]) {
    movedByteCount += step.takenByteCount + step.putByteCount
    switch end {
    case .client:
      toClient.removeFirst(step.takenByteCount)
      toServer += output.prefix(step.putByteCount)
    case .server:
      toServer.removeFirst(step.takenByteCount)
      toClient += output.prefix(step.putByteCount)
    }
  }
}
