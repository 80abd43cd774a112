// SPDX-License-Identifier: Apache-2.0
//
// stratad in front of an export that it changes: raw, and with a qcow2 image in it. Rule: what a
// client asks of us is asked of the server behind (proto.md, "Request types", "NBD_CMD_FLAG_FUA").

import Foundation
import TestSupport
import Testing

private let byteCount = 2 << 20

@Suite struct `An export of an export` {
  private func bench(
    _ peer: RemoteBench.Peer, filters: [String] = [], parameters: [String] = []
  ) throws -> (bench: RemoteBench, bytes: [UInt8]) {
    let bench = try RemoteBench()
    let bytes = RemoteBench.contents(byteCount)
    try bench.makeRaw("base", bytes)
    try bench.serveBase(peer, isReadOnly: false, filters: filters, parameters: parameters)
    return (bench, bytes)
  }

  @Test(arguments: RemoteBench.Peer.allCases, ["native", "sync"])
  func `reads and writes the disk behind it`(peer: RemoteBench.Peer, engine: String) throws {
    let (bench, bytes) = try bench(peer)
    try bench.serve(["--aio", engine], image: bench.uri, format: "raw")
    let client = try bench.client()
    var traffic = RandomTraffic(seed: 5, model: bytes)
    for _ in 0..<400 {
      if let fault = try traffic.step(client) { throw ServeError(fault) }
    }
    #expect(try client.read(0, byteCount).data == traffic.model)
    #expect(try client.flush() == 0)
    try client.disconnect()
    #expect(bench.stop() == 0)
    bench.base?.stop()
    let file = FileManager.default.contents(atPath: bench.folder.path("base"))
    #expect(file == Data(traffic.model))
  }

  @Test(arguments: [4096, 65_536])
  func `changes parts of the blocks of the disk behind it`(block: Int) throws {
    let (bench, bytes) = try bench(
      .nbdkit, filters: ["blocksize-policy"],
      parameters: [
        "blocksize-minimum=\(block)", "blocksize-preferred=\(block)",
        "blocksize-error-policy=error",
      ])
    try bench.serve(image: bench.uri, format: "raw")
    let client = try bench.client()
    var traffic = RandomTraffic(seed: UInt64(block), model: bytes)
    for _ in 0..<300 {
      if let fault = try traffic.step(client) { throw ServeError(fault) }
    }
    #expect(try client.call(.trim, offset: 1, length: UInt32(byteCount) - 2).error == 0)
    try client.disconnect()
    #expect(bench.stop() == 0)
  }

  // nbdkit-log-filter(1) tells each request that arrives, with its flags.
  @Test func `passes flushes, FUA, trims and zeroes on as they are`() throws {
    let logPath = try TemporaryFolder()
    let log = logPath.path("log")
    let (bench, _) = try bench(.nbdkit, filters: ["log"], parameters: ["logfile=\(log)"])
    try bench.serve(image: bench.uri, format: "raw")
    let client = try bench.client()
    func requests(of body: () throws -> UInt32) throws -> [String] {
      let before = try String(contentsOfFile: log, encoding: .utf8).count
      #expect(try body() == 0)
      let text = try String(contentsOfFile: log, encoding: .utf8).dropFirst(before)
      return text.matches(of: /connection=\d+ (Write|Flush|Trim|Zero) (.*?)\.\.\./).map {
        "\($0.output.1) \($0.output.2)".replacing(/id=\d+ ?/, with: "").trimmingCharacters(
          in: .whitespaces)
      }
    }
    #expect(
      try requests { try client.write(4096, [UInt8](repeating: 1, count: 512)) }
        == ["Write offset=0x1000 count=0x200 fua=0"])
    #expect(
      try requests { try client.write(4096, [1], flags: WireFlag.fua) }
        == ["Write offset=0x1000 count=0x1 fua=1"])
    #expect(try requests { try client.flush() } == ["Flush"])
    #expect(
      try requests { try client.call(.trim, offset: 65_536, length: 65_536).error }
        == ["Trim offset=0x10000 count=0x10000 fua=0"])
    #expect(
      try requests { try client.call(.writeZeroes, offset: 512, length: 65_536).error }
        == ["Zero offset=0x200 count=0x10000 trim=1 fua=0 fast=0"])
    #expect(
      try requests {
        try client.call(.writeZeroes, flags: WireFlag.noHole, offset: 512, length: 65_536).error
      } == ["Zero offset=0x200 count=0x10000 trim=0 fua=0 fast=0"])
    let durable = try requests {
      try client.call(.writeZeroes, flags: WireFlag.fua, offset: 512, length: 65_536).error
    }
    #expect(durable == ["Zero offset=0x200 count=0x10000 trim=1 fua=0 fast=0", "Flush"])
    try client.disconnect()
  }

  @Test(arguments: RemoteBench.Peer.allCases)
  func `has the map of the disk behind it`(peer: RemoteBench.Peer) throws {
    let (bench, _) = try bench(peer)
    try bench.serve(image: bench.uri, format: "raw")
    #expect(try run("nbdinfo", "--map", bench.ownURI) == run("nbdinfo", "--map", bench.uri))
  }

  @Test func `makes durable what it answered, when the server behind dies before a flush`() throws {
    // Nothing reaches nbdkit's file before a flush: the first server takes its writes with it.
    let (bench, bytes) = try bench(
      .nbdkit, filters: ["cache"], parameters: ["cache=writeback"])
    try bench.serve(image: bench.uri, format: "raw")
    let client = try bench.client()
    var model = bytes
    for index in 0..<16 {
      let written = [UInt8](repeating: UInt8(index + 1), count: 5_000)
      #expect(try client.write(UInt64(index * 70_000), written) == 0)
      model.replaceSubrange(index * 70_000..<index * 70_000 + 5_000, with: written)
    }
    bench.killBase()
    try bench.serveBase(
      .nbdkit, isReadOnly: false, filters: ["cache"], parameters: ["cache=writeback"])
    #expect(try client.flush() == 0)
    try client.disconnect()
    let file = FileManager.default.contents(atPath: bench.folder.path("base"))
    #expect(file == Data(model))
    #expect(bench.stop() == 0)
  }

  @Test func `flushes again after its server was away for too long`() throws {
    let (bench, _) = try bench(.qemuNBD)
    try bench.serve(["--remote-timeout", "1"], image: bench.uri, format: "raw")
    let client = try bench.client()
    #expect(try client.write(0, [1, 2, 3]) == 0)
    bench.killBase()
    #expect(try client.flush() == WireErrno.io)
    try bench.serveBase(isReadOnly: false)
    let deadline = Deadline(seconds: 20)
    while try client.flush() != 0, deadline.secondsLeft > 0 {}
    #expect(try client.flush() == 0)
    #expect(try client.read(0, 3).data == [1, 2, 3])
    try client.disconnect()
    #expect(bench.stop() == 0)
  }

  @Test func `that is read-only needs --read-only`() throws {
    let bench = try RemoteBench()
    try bench.makeRaw("base", RemoteBench.contents(byteCount))
    try bench.serveBase()
    let words = [bench.uri, "--format", "raw", "--socket", bench.folder.path("s")]
    let refusal = try ServeFixture.refusal(words)
    #expect(refusal.contains("the export is read-only; open it read-only"))
    try bench.serve(["--read-only"], image: bench.uri, format: "raw")
    let client = try bench.client()
    #expect(try client.read(0, byteCount).data == RemoteBench.contents(byteCount))
    #expect(try client.write(0, [1]) == WireErrno.notPermitted)
    try client.disconnect()
    #expect(bench.stop() == 0)
  }

  @Test(arguments: [1, 4096])
  func `may be one of a qcow2 image in the disk behind it`(block: Int) throws {
    let bench = try RemoteBench()
    let size = 1 << 20
    try bench.makeRaw("base", [UInt8](repeating: 0xee, count: 4 << 20))
    try bench.serveBase(
      .nbdkit, isReadOnly: false, filters: ["blocksize-policy"],
      parameters: ["blocksize-minimum=\(block)", "blocksize-error-policy=error"])
    let strata = try ServedProcess.path(of: "strata")
    let created = try runTool(strata, "create", "-q", "-f", "qcow2", bench.uri, "\(size)")
    #expect(created.code == 0, "\(created.error)")
    try bench.serve(image: bench.uri)
    let client = try bench.client()
    #expect(client.size == UInt64(size))
    var traffic = RandomTraffic(seed: 9, model: [UInt8](repeating: 0, count: size))
    for _ in 0..<300 {
      if let fault = try traffic.step(client) { throw ServeError(fault) }
    }
    #expect(try client.call(.trim, offset: 131_072, length: 131_072).error == 0)
    #expect(try client.flush() == 0)
    try client.disconnect()
    #expect(bench.stop() == 0)
    #expect(try runTool(strata, "check", bench.uri).code == 0)
    bench.base?.stop()
    try run("qemu-img", "check", "-q", "-f", "qcow2", bench.folder.path("base"))
  }
}
