// SPDX-License-Identifier: Apache-2.0
//
// Rules of slow and silent clients beside good ones. Spec: proto.md, "Transmission phase",
// "Newstyle negotiation". The probe performs the I/O.

enum SlowChecks {
  static let all = [
    LintCheck(
      "load.stalled-reader", .quality, "A client that reads no replies stalls nobody else.",
      Source.text("Transmission phase"), run: stalledReader),
    LintCheck(
      "load.slow-payload", .quality, "A client that dribbles a payload stalls nobody else.",
      Source.text("Transmission phase"), writes: true, run: slowPayload),
    LintCheck(
      "load.slow-handshake", .quality,
      "A client that negotiates byte by byte is served and stalls nobody.",
      Source.text("Newstyle negotiation"), run: slowHandshake),
    LintCheck(
      "load.silent-clients", .quality, "Clients that say nothing keep nobody out.",
      Source.text("Newstyle negotiation"), run: silentClients),
    LintCheck(
      "load.handshake-timeout", .quality, "A client that says nothing is dropped in the end.",
      Source.text("Newstyle negotiation"), run: handshakeTimeout),
  ]

  private static func stalledReader(_ server: LintServer) throws(LintStop) {
    let clients = try CrowdChecks.clients(server, 2)
    let (stalled, good) = (clients[0], clients[1])
    try need(stalled.size >= 1 << 20, "the export is too small")
    for _ in 0..<256 {
      let request = stalled.prepare(Command.read, length: 1 << 20)
      guard try stalled.socket.sendSome(request.bytes[...]) == request.bytes.count else { break }
    }
    for _ in 0..<20 {
      _ = try good.bytes(0, good.blockByteCount)
    }
    stalled.socket.abandon()
    try server.demandServiceAfterDeath()
  }

  private static func slowPayload(_ server: LintServer) throws(LintStop) {
    try server.withArea(of: 64 << 10) { (area) throws(LintStop) in
      let clients = try CrowdChecks.clients(server, 2)
      let (slow, good) = (clients[0], clients[1])
      let data = filler(area.byteCount, 13)
      let request = slow.prepare(
        Command.write, offset: area.offset, length: UInt64(data.count), payload: data)
      var rest = request.bytes[...]
      while !rest.isEmpty {
        let piece = rest.prefix(8000)
        rest = rest.dropFirst(piece.count)
        try slow.socket.send(Array(piece))
        _ = try good.bytes(0, good.blockByteCount)
      }
      try slow.expectSuccess(try slow.wait(request.cookie), "a WRITE in pieces")
      try demandEqual(
        try good.bytes(area.offset, area.byteCount), data, "the bytes that were written")
    }
  }

  private static func slowHandshake(_ server: LintServer) throws(LintStop) {
    try server.needSecondClient()
    let slow = try server.connect()
    _ = try slow.socket.receive(18, "a greeting of 18 bytes")
    func dribble(_ bytes: [UInt8]) throws(LintStop) {
      for (index, byte) in bytes.enumerated() {
        try slow.socket.send([byte])
        if index % 8 == 0 { try server.demandService() }
      }
    }
    try dribble(wire(UInt32(1)))
    try slow.startTLS(server.tls)
    try dribble(Probe.option(Option.go, Probe.infoData(server.export, [Info.blockSize])))
    let answer = try slow.receiveAnswer(to: Option.go)
    try need(answer.type != Reply.unsup, "the server does not know GO")
    try answer.demandAck("GO byte by byte")
  }

  private static func silentClients(_ server: LintServer) throws(LintStop) {
    try server.needSecondClient()
    var silent: [Probe] = []
    for _ in 0..<10 { silent.append(try server.connect()) }
    try server.demandService()
    withExtendedLifetime(silent) {}
  }

  private static func handshakeTimeout(_ server: LintServer) throws(LintStop) {
    guard let seconds = server.handshakeSecondsMax else {
      throw .skipped("say --handshake-timeout SECONDS when the server promises one")
    }
    let patient = server.with(deadlineSeconds: seconds + 2)
    let probe = try patient.connect()
    let bytes = try probe.socket.receiveUntilEnd("the end of a silent client's connection")
    try demand(bytes.count == 18, "the greeting and then the end", got: "\(bytes.count) bytes")
  }
}
