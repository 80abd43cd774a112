// SPDX-License-Identifier: Apache-2.0
//
// Overlays on images that other NBD servers keep. The peers are qemu-nbd and nbdkit; QEMU itself
// reads the same overlays. Source: tools/decisions/0017.

import Foundation
import TestSupport
import Testing

private let baseByteCount = 3 << 20

@Suite struct `An overlay on an export` {
  @Test(arguments: RemoteBench.Peer.allCases, ["native", "sync"])
  func `reads and writes as one on a file would, and QEMU finds the same bytes`(
    peer: RemoteBench.Peer, engine: String
  ) throws {
    let bench = try RemoteBench()
    let bytes = RemoteBench.contents(baseByteCount)
    try bench.makeRaw("base", bytes)
    try bench.serveBase(peer)
    try bench.makeOverlay()
    try bench.serve(["--aio", engine])
    let client = try bench.client()
    #expect(client.size == UInt64(baseByteCount))
    #expect(try client.read(0, baseByteCount).data == bytes)
    var traffic = RandomTraffic(seed: 17, model: bytes)
    for _ in 0..<400 {
      if let fault = try traffic.step(client) { throw ServeError(fault) }
    }
    #expect(try client.read(0, baseByteCount).data == traffic.model)
    try client.disconnect()
    #expect(bench.stop() == 0)
    let base = bench.folder.path("base")
    #expect(FileManager.default.contents(atPath: base) == Data(bytes), "the base is as it was")
    // QEMU opens the overlay by the name that it records.
    let twin = bench.folder.path("twin")
    try Data(traffic.model).write(to: URL(fileURLWithPath: twin))
    try run("qemu-img", "check", "-q", "-f", "qcow2", bench.folder.path("disk"))
    try run(
      "qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", bench.folder.path("disk"), twin)
  }

  @Test(arguments: ["cluster_size=512", "cluster_size=4096", "cluster_size=2M"])
  func `asks for whole blocks only, whatever its clusters are`(options: String) throws {
    let bench = try RemoteBench()
    let bytes = RemoteBench.contents(baseByteCount)
    try bench.makeRaw("base", bytes)
    try bench.serveBase(
      .nbdkit, filters: ["blocksize-policy"],
      parameters: ["blocksize-minimum=4096", "blocksize-error-policy=error"])
    try bench.makeOverlay(options: options)
    try bench.serve()
    let client = try bench.client()
    #expect(try client.read(1, 3).data == Array(bytes[1..<4]))
    #expect(try client.read(4095, 2).data == Array(bytes[4095..<4097]))
    #expect(try client.read(UInt64(baseByteCount) - 1, 1).data == [bytes[baseByteCount - 1]])
    var traffic = RandomTraffic(seed: 4096, model: bytes)
    for _ in 0..<200 {
      if let fault = try traffic.step(client) { throw ServeError(fault) }
    }
    #expect(try client.read(0, baseByteCount).data == traffic.model)
    try client.disconnect()
    #expect(bench.stop() == 0)
  }

  @Test(arguments: [baseByteCount / 3, baseByteCount - 512, baseByteCount + 512, 2 * baseByteCount])
  func `that is smaller or larger reads zeroes behind the export's end`(size: Int) throws {
    let bench = try RemoteBench()
    let bytes = RemoteBench.contents(baseByteCount)
    try bench.makeRaw("base", bytes)
    try bench.serveBase()
    try bench.makeOverlay(size: size)
    try bench.serve()
    let client = try bench.client()
    #expect(client.size == UInt64(size))
    let common = min(size, baseByteCount)
    let model = Array(bytes[..<common]) + [UInt8](repeating: 0, count: size - common)
    #expect(try client.read(0, size).data == model)
    var traffic = RandomTraffic(seed: UInt64(size), model: model)
    for _ in 0..<100 {
      if let fault = try traffic.step(client) { throw ServeError(fault) }
    }
    #expect(try client.read(0, size).data == traffic.model)
    try client.disconnect()
    #expect(bench.stop() == 0)
  }

  @Test func `may have a qcow2 image behind the export, compressed clusters and all`() throws {
    let bench = try RemoteBench()
    let bytes = RemoteBench.contents(baseByteCount)
    try bench.makeRaw("plain", bytes)
    try run(
      "qemu-img", "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", bench.folder.path("plain"),
      bench.folder.path("base"))
    try bench.serveBase()
    try bench.makeOverlay(format: "qcow2")
    try bench.serve()
    let client = try bench.client()
    #expect(client.size == UInt64(baseByteCount))
    var traffic = RandomTraffic(seed: 3, model: bytes)
    for _ in 0..<200 {
      if let fault = try traffic.step(client) { throw ServeError(fault) }
    }
    #expect(try client.read(0, baseByteCount).data == traffic.model)
    try client.disconnect()
    #expect(bench.stop() == 0)
  }

  @Test(arguments: RemoteBench.Peer.allCases)
  func `shows the holes of the export as holes`(peer: RemoteBench.Peer) throws {
    let bench = try RemoteBench()
    try bench.makeRaw("base", RemoteBench.contents(4 << 20))
    try bench.serveBase(peer)
    try bench.makeOverlay()
    try bench.serve()
    let client = try bench.client(contexts: ["base:allocation", "qemu:allocation-depth"])
    let outcome = try client.call(.blockStatus, length: 4 << 20)
    let mebibyte: UInt64 = 1 << 20
    #expect(
      outcome.extents[try #require(client.contextIDs["base:allocation"])] == [
        WireExtent(length: mebibyte, flags: 0), WireExtent(length: mebibyte, flags: 3),
        WireExtent(length: 2 * mebibyte, flags: 0),
      ])
    #expect(
      outcome.extents[try #require(client.contextIDs["qemu:allocation-depth"])] == [
        WireExtent(length: 4 * mebibyte, flags: 2)
      ])
    try client.disconnect()
  }
}

@Suite struct `The server of a base` {
  /// A base behind nbdkit, whose reads take their time, and an overlay in front.
  private func slowBench(_ timeout: Int) throws -> RemoteBench {
    let bench = try RemoteBench()
    try bench.makeRaw("base", RemoteBench.contents(baseByteCount))
    try bench.serveBase(.nbdkit, filters: ["delay"], parameters: ["delay-read=300ms"])
    try bench.makeOverlay()
    try bench.serve(["--remote-timeout", "\(timeout)"])
    return bench
  }

  @Test func `that is killed and started again in mid-traffic costs no request`() throws {
    let bench = try slowBench(30)
    let bytes = RemoteBench.contents(baseByteCount)
    let client = try bench.client()
    var reads: [UInt64: Int] = [:]
    var writes: [UInt64] = []
    for index in 0..<8 {
      let offset = index * 300_000
      reads[try client.send(.read, offset: UInt64(offset), length: 65_536)] = offset
      // One byte: the rest of its cluster comes from the base.
      writes.append(
        try client.send(.write, offset: UInt64(offset) + 131_072, length: 1, payload: [99]))
    }
    bench.killBase()
    try bench.serveBase(.nbdkit)
    for (cookie, offset) in reads {
      let outcome = try client.wait(cookie)
      #expect(outcome.error == 0)
      #expect(outcome.data == Array(bytes[offset..<offset + 65_536]))
    }
    for cookie in writes { #expect(try client.wait(cookie).error == 0) }
    var model = bytes
    for index in 0..<8 { model[index * 300_000 + 131_072] = 99 }
    #expect(try client.read(0, baseByteCount).data == model)
    try client.disconnect()
    #expect(bench.stop() == 0)
  }

  @Test func `that stays away fails what needs it, nothing else, until it is back`() throws {
    let bench = try RemoteBench()
    let bytes = RemoteBench.contents(baseByteCount)
    try bench.makeRaw("base", bytes)
    try bench.serveBase()
    try bench.makeOverlay()
    try bench.serve(["--remote-timeout", "1"])
    let client = try bench.client()
    let own = [UInt8](repeating: 5, count: 65_536)
    #expect(try client.write(0, own) == 0)
    bench.killBase()
    let held = try client.send(.read, offset: 2 << 20, length: 4096)
    // Neither reads nor whole writes of the overlay's own clusters wait for the base.
    #expect(try client.read(0, 65_536).data == own)
    #expect(try client.write(65_536, own) == 0)
    #expect(try client.flush() == 0)
    #expect(try client.wait(held).error == WireErrno.io)
    #expect(try client.write(5 << 19, [1]) == WireErrno.io, "its cluster cannot be filled")
    #expect(try client.read(0, 131_072).data == own + own)
    try bench.serveBase()
    // Until the next attempt to connect, requests fail at once.
    let deadline = Deadline(seconds: 20)
    var outcome = try client.read(2 << 20, 4096)
    while outcome.error != 0, deadline.secondsLeft > 0 { outcome = try client.read(2 << 20, 4096) }
    #expect(outcome.data == Array(bytes[(2 << 20)..<(2 << 20) + 4096]))
    #expect(try client.write(5 << 19, [1]) == 0)
    #expect(try client.flush() == 0)
    try client.disconnect()
    #expect(bench.stop() == 0)
    try run("qemu-img", "check", "-q", "-f", "qcow2", bench.folder.path("disk"))
  }

  @Test func `that comes back with another size is not believed`() throws {
    let bench = try RemoteBench()
    try bench.makeRaw("base", RemoteBench.contents(baseByteCount))
    try bench.makeRaw("other", RemoteBench.contents(baseByteCount + 512))
    try bench.serveBase()
    try bench.makeOverlay()
    try bench.serve(["--remote-timeout", "20"])
    let client = try bench.client()
    #expect(try client.read(0, 512).error == 0)
    bench.killBase()
    try bench.serveBase(image: "other")
    #expect(try client.read(2 << 20, 512).error == WireErrno.io)
    #expect(bench.daemon?.isAlive == true)
    try client.disconnect()
    #expect(bench.stop() == 0)
  }

  @Test func `whose disk fails fails the requests concerned, and no others`() throws {
    let bench = try RemoteBench()
    let bytes = RemoteBench.contents(baseByteCount)
    try bench.makeRaw("base", bytes)
    let switchPath = bench.folder.path("fail")
    try bench.serveBase(
      .nbdkit, filters: ["error"],
      parameters: ["error-pread=EIO", "error-pread-rate=100%", "error-pread-file=\(switchPath)"])
    try bench.makeOverlay()
    try bench.serve()
    let client = try bench.client()
    let own = [UInt8](repeating: 5, count: 65_536)
    #expect(try client.write(0, own) == 0)
    #expect(FileManager.default.createFile(atPath: switchPath, contents: nil))
    #expect(try client.read(2 << 20, 4096).error == WireErrno.io)
    #expect(try client.write(5 << 19, [1]) == WireErrno.io)
    #expect(try client.read(0, 65_536).data == own)
    #expect(try client.write(65_536, own) == 0)
    try FileManager.default.removeItem(atPath: switchPath)
    #expect(try client.read(2 << 20, 4096).data == Array(bytes[(2 << 20)..<(2 << 20) + 4096]))
    #expect(try client.write(5 << 19, [1]) == 0)
    #expect(try client.flush() == 0)
    try client.disconnect()
    #expect(bench.stop() == 0)
    try run("qemu-img", "check", "-q", "-f", "qcow2", bench.folder.path("disk"))
  }

  // A server that was stopped (SIGSTOP) keeps its connection and says nothing.
  @Test(arguments: [SIGKILL, SIGSTOP])
  func `that does not answer holds up no stop`(signal: Int32) throws {
    let bench = try RemoteBench()
    try bench.makeRaw("base", RemoteBench.contents(baseByteCount))
    try bench.serveBase()
    try bench.makeOverlay()
    try bench.serve(["--remote-timeout", "3600"])
    let client = try bench.client()
    #expect(try client.write(0, [UInt8](repeating: 1, count: 65_536)) == 0)
    let base = try #require(bench.base)
    kill(base.processID, signal)
    defer { kill(base.processID, SIGCONT) }
    try client.send(.read, offset: 2 << 20, length: 4096)
    #expect(bench.stop() == 0)
    let check = try runTool(
      ServedProcess.path(of: "strata"), "check", bench.folder.path("disk"))
    #expect(check.code == 0, "\(check.error)")
  }

  @Test func `that is slow holds up nobody who does not need it`() throws {
    let bench = try slowBench(30)
    let client = try bench.client()
    let own = [UInt8](repeating: 5, count: 65_536)
    #expect(try client.write(0, own) == 0)
    let slow = try client.send(.read, offset: 2 << 20, length: 4096)
    let fast = try client.send(.read, offset: 0, length: 4096)
    #expect(try client.waitForAny().cookie == fast)
    #expect(try client.wait(slow).error == 0)
    try client.disconnect()
  }

  // capabilities(7), openat(2): an export process opens nothing once it serves.
  @Test(.enabled(if: isRoot, "needs root"))
  func `is connected to again without opening a file, with no privileges left`() throws {
    let bench = try RemoteBench()
    let bytes = RemoteBench.contents(baseByteCount)
    try bench.makeRaw("base", bytes)
    let port = try freePort()
    let server = ["-f", "-i", "127.0.0.1", "-p", "\(port)", "-P", bench.folder.path("pid")]
    let uri = "nbd://localhost:\(port)/"
    var base = try ServedProcess(["nbdkit"] + server + ["file", bench.folder.path("base")])
    try waitForFile(bench.folder.path("pid"))
    try run(
      "qemu-img", "create", "-q", "-f", "qcow2", "-b", uri, "-F", "raw",
      bench.folder.path("disk"))
    chmod(bench.folder.root, 0o777)
    let trace = bench.folder.path("trace")
    let daemon = try ServedProcess(
      stratad: [
        bench.folder.path("disk"), "--socket", bench.folder.path("s"), "--allow-remote-base", uri,
        "--export-name", "",
      ],
      prefix: ["strace", "-D", "-f", "-e", "trace=%file,write,connect", "-o", trace]
    ).waitUntilReady()
    let client = try bench.client()
    #expect(try client.read(0, 4096).data == Array(bytes[..<4096]))
    let threads = try FileManager.default.contentsOfDirectory(
      atPath: "/proc/\(daemon.processID)/task")
    for thread in try threads.map({ try #require(pid_t($0)) }) {
      #expect(try ServedProcess.status(of: "NoNewPrivs", thread) == "1")
      #expect(try ServedProcess.status(of: "CapEff", thread) == "0000000000000000")
    }
    base.stop(with: SIGKILL)
    unlink(bench.folder.path("pid"))
    base = try ServedProcess(["nbdkit"] + server + ["file", bench.folder.path("base")])
    #expect(try client.read(2 << 20, 4096).data == Array(bytes[(2 << 20)..<(2 << 20) + 4096]))
    try client.disconnect()
    #expect(daemon.stop() == 0)
    base.stop()
    let lines = try traceLines(of: daemon, in: trace)
    let ready = try #require(lines.firstIndex { $0.contains("\"ready\\n\"") })
    let later = lines[ready...]
    #expect(later.contains { $0.contains("connect(") }, "it has connected again")
    #expect(later.filter { $0.contains("open") }.isEmpty)
  }

  // A worker that was started as root cannot read the keys any more.
  @Test func `is connected to again over TLS with the keys that were read at the start`() throws {
    let bench = try RemoteBench()
    let bytes = RemoteBench.contents(baseByteCount)
    try bench.makeRaw("base", bytes)
    let keys = bench.folder.path("keys")
    try "vm:\(String(repeating: "0123456789abcdef", count: 4))\n".write(
      toFile: keys, atomically: true, encoding: .utf8)
    chmod(keys, 0o600)
    let socket = bench.folder.path("base.sock")
    let words = ["-f", "-U", socket, "--tls=require", "--tls-psk=\(keys)", "file"]
    let start = { () throws -> Daemon in
      unlink(socket)
      let daemon = try Daemon(
        requireTool("nbdkit"), words + [bench.folder.path("base")], socketPath: socket,
        readiness: .socketAnswers)
      chmod(socket, 0o666)
      return daemon
    }
    var base = try start()
    let uri = "nbds+unix://vm@/base?socket=\(socket)&tls-psk-file=\(keys)"
    let created = try runTool(
      ServedProcess.path(of: "strata"), "create", "-q", "-f", "qcow2", "-b", uri, "-F", "raw",
      bench.folder.path("disk"))
    #expect(created.code == 0, "\(created.error)")
    try bench.serve(["--allow-remote-base", uri])
    let client = try bench.client()
    #expect(try client.read(0, 4096).data == Array(bytes[..<4096]))
    kill(base.processID, SIGKILL)
    base.stop()
    base = try start()
    #expect(try client.read(2 << 20, 4096).data == Array(bytes[(2 << 20)..<(2 << 20) + 4096]))
    try client.disconnect()
    #expect(bench.stop() == 0)
    base.stop()
  }

  private func waitForFile(_ path: String) throws {
    let deadline = Deadline(seconds: 10)
    while !ServeFixture.exists(path) {
      guard deadline.secondsLeft > 0 else { throw ServeError("no \(path)") }
      usleep(2_000)
    }
  }

  /// A TCP port of loopback that nobody listens on.
  private func freePort() throws -> UInt16 {
    let socket = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    defer { close(socket) }
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    var count = socklen_t(MemoryLayout<sockaddr_in>.size)
    let result = withUnsafeMutablePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { pointer in
        bind(socket, pointer, count) == 0 && getsockname(socket, pointer, &count) == 0
      }
    }
    guard result else { throw ServeError("no free port") }
    return UInt16(bigEndian: address.sin_port)
  }
}
