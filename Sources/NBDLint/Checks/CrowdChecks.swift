// SPDX-License-Identifier: Apache-2.0
//
// Rules of clients beside each other: good ones, and ones that die. Spec: proto.md, "Transmission
// flags" (CAN_MULTI_CONN), "Terminating the transmission phase". The probe performs the I/O.

enum CrowdChecks {
  static let all = [
    LintCheck(
      "load.multi-conn-flush", .must,
      "With CAN_MULTI_CONN, a write that was flushed is seen by every connection.",
      Source.text("Transmission flags"), writes: true, run: multiConnection),
    LintCheck(
      "load.connections", .quality, "Eight clients at once are all served.",
      Source.text("Transmission phase"), run: connections),
    LintCheck(
      "load.connect-storm", .quality, "Clients that leave at each stage hurt nobody.",
      Source.text("Terminating the transmission phase"), run: connectStorm),
    LintCheck(
      "load.kill-mid-write", .quality, "A client that dies inside a payload hurts nobody.",
      Source.text("Terminating the transmission phase"), writes: true, run: killMidWrite),
    LintCheck(
      "load.kill-with-replies-pending", .quality,
      "A client that dies with replies unread hurts nobody.",
      Source.text("Terminating the transmission phase"), run: killWithReplies),
    LintCheck(
      "load.simultaneous-writers", .quality, "Disjoint writes of several clients are all there.",
      Source.text("Ordering of messages and writes"), writes: true, run: writers),
    LintCheck(
      "load.unaligned-neighbours", .quality, "Writes at once inside one block lose nothing.",
      Source.text("Ordering of messages and writes"), writes: true, run: neighbours),
  ]

  /// `count` clients in the transmission phase.
  static func clients(
    _ server: LintServer, _ count: Int, blockSizes: Bool = true
  ) throws(LintStop) -> [Probe] {
    try server.needSecondClient()
    var clients: [Probe] = []
    for _ in 0..<count { clients.append(try server.enteredSomehow(blockSizes: blockSizes)) }
    return clients
  }

  private static func multiConnection(_ server: LintServer) throws(LintStop) {
    try server.withArea(of: 256 << 10) { (area) throws(LintStop) in
      let clients = try clients(server, 3)
      try need(
        clients[0].has(ExportFlag.canMultiConn), "the server does not offer CAN_MULTI_CONN")
      for (index, client) in clients.enumerated() {
        let data = filler(area.byteCount, 20 + index)
        try client.expectSuccess(try client.write(area.offset, data), "a WRITE")
        let flusher = clients[(index + 1) % 3]
        try flusher.expectSuccess(try flusher.call(Command.flush), "FLUSH on another connection")
        for other in clients {
          try demandEqual(
            try other.bytes(area.offset, area.byteCount), data, "the write on every connection")
        }
      }
    }
  }

  private static func connections(_ server: LintServer) throws(LintStop) {
    let clients = try clients(server, 8)
    for client in clients {
      try client.send(Command.read, length: UInt64(client.blockByteCount))
    }
    for client in clients {
      try client.expectSuccess(try client.waitForAny().outcome, "a READ of each client")
    }
  }

  private static func connectStorm(_ server: LintServer) throws(LintStop) {
    for round in 0..<40 {
      let probe = try server.connect()
      switch round % 4 {
      case 0: break
      case 1: try probe.greet()
      case 2:
        try probe.greet()
        try probe.startTLS(server.tls)
        try probe.sendOption(Option.go, Probe.infoData(server.export))
      default:
        try probe.greet()
        try probe.startTLS(server.tls)
        try probe.enter(server.export)
        try probe.send(Command.read, length: UInt64(probe.blockByteCount))
      }
      probe.socket.abandon()
    }
    try server.demandService()
  }

  private static func killMidWrite(_ server: LintServer) throws(LintStop) {
    try server.withArea(of: 64 << 10) { (area) throws(LintStop) in
      for count in [0, 1, 4095, 40_000] {
        let probe = try server.writable()
        let request = probe.prepare(
          Command.write, offset: area.offset, length: UInt64(area.byteCount))
        try probe.socket.send(request.bytes + filler(count))
        probe.socket.abandon()
      }
      try server.demandService()
    }
  }

  private static func killWithReplies(_ server: LintServer) throws(LintStop) {
    for _ in 0..<5 {
      let probe = try server.enteredSomehow()
      let length = min(probe.size, 1 << 20)
      try need(length == 1 << 20, "the export is too small")
      for _ in 0..<16 { try probe.send(Command.read, length: length) }
      // Replies must be on their way when it dies.
      _ = try probe.socket.hasInput(withinMilliseconds: 1000)
      probe.socket.abandon()
    }
    try server.demandServiceAfterDeath()
  }

  private static func writers(_ server: LintServer) throws(LintStop) {
    let pieceByteCount = 32 << 10
    let count = 4
    let rounds = 16
    try server.withArea(of: pieceByteCount * count * rounds) { (area) throws(LintStop) in
      let clients = try clients(server, count)
      try need(
        clients[0].has(ExportFlag.canMultiConn), "the server does not offer CAN_MULTI_CONN")
      for round in 0..<rounds {
        for (index, client) in clients.enumerated() {
          let place = round * count + index
          try client.send(
            Command.write, offset: area.offset + UInt64(place * pieceByteCount),
            length: UInt64(pieceByteCount), payload: filler(pieceByteCount, place))
        }
      }
      for client in clients {
        for _ in 0..<rounds {
          try client.expectSuccess(try client.waitForAny().outcome, "a WRITE among many")
        }
      }
      for place in 0..<count * rounds {
        try demandEqual(
          try clients[0].bytes(area.offset + UInt64(place * pieceByteCount), pieceByteCount),
          filler(pieceByteCount, place), "write \(place)")
      }
    }
  }

  private static func neighbours(_ server: LintServer) throws(LintStop) {
    try server.withArea(of: 64 << 10) { (area) throws(LintStop) in
      let clients = try clients(server, 4, blockSizes: false)
      try need(
        clients[0].has(ExportFlag.canMultiConn), "the server does not offer CAN_MULTI_CONN")
      var expected: [UInt8] = []
      for place in 0..<64 { expected += [UInt8](repeating: UInt8(place + 1), count: 64) }
      for round in 0..<8 {
        let start = area.offset + UInt64(round * 4096)
        for place in 0..<64 {
          try clients[place % 4].send(
            Command.write, offset: start + UInt64(place * 64), length: 64,
            payload: [UInt8](repeating: UInt8(place + 1), count: 64))
        }
        for client in clients {
          for _ in 0..<16 {
            try client.expectSuccess(try client.waitForAny().outcome, "a WRITE of 64 bytes")
          }
        }
        try demandEqual(
          try clients[0].bytes(start, 4096), expected, "64 writes inside one block")
      }
    }
  }
}
