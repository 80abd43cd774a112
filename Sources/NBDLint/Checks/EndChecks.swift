// SPDX-License-Identifier: Apache-2.0
//
// Rules of the end of a session. Spec: proto.md, "Terminating the transmission phase", "Request
// types". The probe performs the I/O.

enum EndChecks {
  static let all = [
    LintCheck(
      "disc.soft", .must, "DISC gets no reply; the server closes.",
      Source.text("Request types"), run: soft),
    LintCheck(
      "disc.outstanding-writes", .must, "Writes that are outstanding at DISC are done.",
      Source.text("Request types"), writes: true, run: outstandingWrites),
    LintCheck(
      "disc.replies-first", .quality,
      "Reads that are outstanding at DISC get whole replies or none, and then the end.",
      Source.text("Terminating the transmission phase"), run: repliesFirst),
    LintCheck(
      "disc.half-close", .quality,
      "A client that sends no more gets whole replies or none, and then the end.",
      Source.text("Terminating the transmission phase"), run: halfClose),
    LintCheck(
      "disc.half-close-handshake", .quality, "A client that leaves the handshake gets the end.",
      Source.text("Terminating the transmission phase"), run: halfCloseHandshake),
  ]

  private static func soft(_ server: LintServer) throws(LintStop) {
    let probe = try server.enteredSomehow()
    try probe.demandInStep(after: "the entry")
    probe.disconnect()
    try probe.demandEnd(after: "DISC")
  }

  private static func outstandingWrites(_ server: LintServer) throws(LintStop) {
    let pieceByteCount = 64 << 10
    let count = 32
    try server.withArea(of: pieceByteCount * count) { (area) throws(LintStop) in
      let probe = try server.writable()
      for index in 0..<count {
        try probe.send(
          Command.write, offset: area.offset + UInt64(index * pieceByteCount),
          length: UInt64(pieceByteCount), payload: filler(pieceByteCount, index))
      }
      probe.disconnect()
      _ = try probe.socket.receiveUntilEnd("the end of the connection after DISC")
      let other = try server.enteredSomehow()
      for index in 0..<count {
        try demandEqual(
          try other.bytes(area.offset + UInt64(index * pieceByteCount), pieceByteCount),
          filler(pieceByteCount, index), "write \(index) of \(count) before DISC")
      }
    }
  }

  /// A connection with 16 reads outstanding, and the bytes of one reply.
  private static func reading(_ server: LintServer) throws(LintStop) -> (Probe, Int) {
    let probe = try server.entered(.simple)
    let length = 65_536
    try need(probe.size >= UInt64(length), "the export is too small")
    for _ in 0..<16 { try probe.send(Command.read, length: UInt64(length)) }
    return (probe, 16 + length)
  }

  private static func demandWhole(
    _ probe: Probe, _ replyByteCount: Int, after what: String
  ) throws(LintStop) {
    let rest = try probe.socket.receiveUntilEnd("the end of the connection after \(what)")
    try demand(
      rest.count % replyByteCount == 0, "whole replies before the end",
      got: "\(rest.count) bytes, where a reply has \(replyByteCount)")
  }

  private static func repliesFirst(_ server: LintServer) throws(LintStop) {
    let (probe, byteCount) = try reading(server)
    probe.disconnect()
    try demandWhole(probe, byteCount, after: "DISC with reads outstanding")
  }

  private static func halfClose(_ server: LintServer) throws(LintStop) {
    let (probe, byteCount) = try reading(server)
    try probe.socket.shutDownSending()
    try demandWhole(probe, byteCount, after: "a half-close with reads outstanding")
    try server.demandService()
  }

  private static func halfCloseHandshake(_ server: LintServer) throws(LintStop) {
    let probe = try server.greeted()
    try probe.socket.shutDownSending()
    try probe.demandEnd(after: "a half-close in the handshake")
    try server.demandService()
  }
}
