// SPDX-License-Identifier: Apache-2.0
//
// Requests with extended headers that were drawn by lot, sound or not, many in flight: each is
// answered once, and the server lives. The seed is printed with each failure.

import TestSupport
import Testing

@Suite struct `requests drawn by lot` {
  /// Lengths of effects and payloads: borders, and what fits nowhere.
  private static let lengths: [UInt64] = [
    0, 1, 12, 16, 511, 512, 4096, 65_536, 70_000, 1 << 20, 1 << 25, 1 << 25 + 1, 1 << 32 - 1,
    1 << 32, 1 << 40, 1 << 63, .max,
  ]

  @Test(arguments: DiskKind.allCases)
  func `are each answered once, and the connection stays in step`(_ kind: DiskKind) throws {
    let seed = UInt64.random(in: 0..<1_000_000)
    var generator = SeededGenerator(state: seed)
    let disk = try ServedDisk(kind)
    let client = try disk.client(
      structured: false, extended: true, contexts: ["base:allocation", "qemu:allocation-depth"],
      blockSizes: false)
    var cookies: Set<UInt64> = []
    for _ in 0..<1500 {
      let request = draw(client, &generator)
      cookies.insert(request.cookie)
      try client.socket.send(request.bytes)
      if cookies.count >= 24 {
        let answer = try client.waitForAny()
        #expect(cookies.remove(answer.cookie) != nil, "seed \(seed)")
      }
    }
    while !cookies.isEmpty {
      let answer = try client.waitForAny()
      #expect(cookies.remove(answer.cookie) != nil, "seed \(seed)")
    }
    #expect(try client.read(0, 512).error == 0, "seed \(seed)")
    try client.disconnect()
    #expect(disk.daemon.stop() == 0, "seed \(seed)")
    if kind == .qcow2 { try run("qemu-img", "check", "-q", disk.imagePath) }
  }

  private func draw(
    _ client: WireClient, _ generator: inout SeededGenerator
  ) -> (cookie: UInt64, bytes: [UInt8]) {
    var command = UInt16.random(in: 0...9, using: &generator)
    if command == 2 { command = 77 }  // DISC has an end of its own
    var flags: UInt16 = 0
    for _ in 0..<Int.random(in: 0...2, using: &generator) {
      flags |= 1 << UInt16.random(in: 0...7, using: &generator)
    }
    let offset = UInt64.random(in: 0...client.size + 4096, using: &generator)
    var length = Self.lengths.randomElement(using: &generator) ?? 0
    if command == 7, Bool.random(using: &generator) {
      let ids = (0..<Int.random(in: 0...3, using: &generator)).map { _ in
        UInt32.random(in: 0...2, using: &generator)
      }
      return client.prepareWide(7, flags: flags, offset: offset, length: length, filter: ids)
    }
    var payload: [UInt8] = []
    if command == 1 || flags & WireFlag.payloadLength != 0 {
      length = min(length, 100_000)  // a larger payload may end the connection
      payload = filler(Int(length))
    }
    return client.prepareWide(
      command, flags: flags, offset: offset, length: length, payload: payload)
  }
}
