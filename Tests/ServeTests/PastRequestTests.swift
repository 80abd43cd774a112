// SPDX-License-Identifier: Apache-2.0
//
// Faults that other NBD servers have had, replayed against the daemon: requests. Each test is
// named after its fault. Source: the CVE records, and the commits that are named.

import Foundation
import TestSupport
import Testing

@Suite struct `Past faults of servers, by requests`: ServedSuite {
  let fixture: ServeFixture
  let server: ServedProcess

  init() throws {
    fixture = try ServeFixture()
    server = try fixture.serve("--export-name", "disk")
  }

  @Test(arguments: [32 << 20 + 1, 64 << 20, 1 << 31, 0xffff_ffff] as [UInt32])
  func `CVE-2005-3534: READ longer than the buffer`(length: UInt32) throws {
    let client = try WireClient.entered(path: fixture.socket)
    #expect(try client.call(.read, length: length).error == WireErrno.invalid)
    #expect(try client.read(0, 512).error == 0)
    try expectHealth()
  }

  @Test func `CVE-2005-3534: WRITE longer than the buffer, up to what is drained`() throws {
    let client = try WireClient.entered(path: fixture.socket)
    let payload = [UInt8](repeating: 0xff, count: 32 << 20 + 1)
    #expect(try client.write(0, payload) == WireErrno.invalid)
    #expect(try client.read(0, 512).error == 0, "the payload was taken out of the stream")
    try expectHealth()
  }

  @Test(arguments: [64 << 20 + 1, 1 << 31, 0xffff_ffff] as [UInt32])
  func `CVE-2005-3534: WRITE longer than what is drained ends the connection`(
    length: UInt32
  ) throws {
    let client = try WireClient.entered(path: fixture.socket)
    let request = client.prepare(1, length: length)
    try client.socket.send(request.bytes)
    var sent = 0
    do {
      while sent < 16 << 20 {
        try client.socket.send([UInt8](repeating: 0xff, count: 65_536))
        sent += 65_536
      }
    } catch WireError.ended {}
    #expect(sent < 16 << 20, "the payload keeps flowing in")
    try expectHealth()
  }

  @Test(
    arguments: [0xffff_ffff, 0xffff_fe00, 0xffff_0001, 0x8000_0000, 1] as [UInt32], [false, true])
  func `CVE-2025-47711, CVE-2025-47712: BLOCK_STATUS near 4 GiB`(
    length: UInt32, isFragmented: Bool
  ) throws {
    // An image that is larger, of no round size; one giant extent, or more than fit in a reply.
    let big = try ServeFixture()
    try FileManager.default.removeItem(atPath: big.image)
    _ = FileManager.default.createFile(atPath: big.image, contents: nil)
    let size = 9 << 30 + 12_345
    #expect(truncate(big.image, off_t(size)) == 0)
    if isFragmented {
      let file = try FileHandle(forWritingTo: URL(fileURLWithPath: big.image))
      for index in 0..<3_000 {
        try file.seek(toOffset: UInt64(index) << 17)
        try file.write(contentsOf: Data([1]))
      }
      try file.close()
    }
    let server = try big.serve()
    for extended in [false, true] {
      let client = try WireClient.entered(
        path: big.socket, extended: extended, contexts: ["base:allocation"], blockSizes: false)
      let length64 = UInt64(length)
      for offset in [0, 1, 511, 65_535, UInt64(size) - length64] {
        for flags in [0, WireFlag.requestOne] {
          let outcome = try client.callWide(
            .blockStatus, flags: flags, offset: offset, length: length64)
          #expect(outcome.error == 0, "\(length) bytes at \(offset)")
        }
      }
      let outcome = try client.callWide(
        .blockStatus, offset: UInt64(size) - length64 + 1, length: length64)
      #expect(outcome.error == WireErrno.invalid)
    }
    #expect(server.stop() == 0)
  }

  @Test func `e2b@97aa71a: FUA is taken on every command`() throws {
    let client = try WireClient.entered(path: fixture.socket, contexts: ["base:allocation"])
    for command in WireCommand.allCases where command != .disconnect {
      let length: UInt32 = command == .flush ? 0 : 4_096
      let payload = command == .write ? [UInt8](repeating: 0, count: 4_096) : []
      let outcome = try client.call(
        command, flags: WireFlag.fua, length: length, payload: payload)
      #expect(outcome.error == 0, "\(command)")
    }
    try expectHealth()
  }
}
