// SPDX-License-Identifier: Apache-2.0
//
// The client against the servers that people use: qemu-nbd, nbdkit, nbd-server and stratad.
// This file starts servers.

import Foundation
import NBDClient
import NBDProtocol
import TestSupport
import Testing

/// A server with one export of 16 MiB that can be written.
enum Peer: String, CaseIterable, Sendable {
  case qemuNBD = "qemu-nbd"
  case nbdkit
  case nbdServer = "nbd-server"
  case stratad

  static let byteCount: UInt64 = 16 << 20

  func start(in folder: TemporaryFolder) throws -> PeerServer {
    let image = folder.path("disk.raw")
    let socket = folder.path("nbd.sock")
    try run("qemu-img", "create", "-q", "-f", "raw", image, "\(Peer.byteCount)")
    switch self {
    case .qemuNBD:
      return PeerServer(
        try Daemon(
          requireTool("qemu-nbd"),
          ["-t", "-e", "4", "-f", "raw", "--discard=unmap", "-k", socket, image],
          socketPath: socket, readiness: .socketAnswers))
    case .nbdkit:
      return PeerServer(
        try Daemon(
          requireTool("nbdkit"), ["-f", "-U", socket, "file", image], socketPath: socket,
          readiness: .socketAnswers))
    case .nbdServer: return try Peer.startNBDServer(image, socket, folder)
    case .stratad:
      return PeerServer(
        try Daemon(
          daemonPath(), [image, "--format", "raw", "--socket", socket], socketPath: socket))
    }
  }

  /// nbd-server goes to the background by itself.
  static func startNBDServer(
    _ image: String, _ socket: String, _ folder: TemporaryFolder, _ general: String = ""
  ) throws -> PeerServer {
    let config = folder.path("config")
    let pidPath = folder.path("pid")
    try """
    [generic]
    unixsock = \(socket)
    allowlist = true
    \(general)
    [disk]
    exportname = \(image)
    flush = true
    fua = true
    trim = true

    """.write(toFile: config, atomically: true, encoding: .utf8)
    try run("nbd-server", "-C", config, "-p", pidPath)
    let deadline = Deadline(seconds: 10)
    while deadline.secondsLeft > 0 {
      if let data = FileManager.default.contents(atPath: pidPath),
        let pid = pid_t(
          String(decoding: data, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)),
        (try? WireSocket(connectingTo: socket)) != nil
      {
        return PeerServer(pid: pid, socketPath: socket)
      }
      usleep(5_000)
    }
    throw WireError.ended("nbd-server did not come up")
  }

  /// nbd-server has no default export.
  var exportName: String { self == .nbdServer ? "disk" : "" }

  /// What LIST says. stratad's export has the name of its image.
  var listedName: String {
    switch self {
    case .qemuNBD, .nbdkit: ""
    case .nbdServer: "disk"
    case .stratad: "disk.raw"
    }
  }

  func connect(
    _ daemon: PeerServer, _ options: ClientOptions = ClientOptions()
  ) async throws -> NBDConnection {
    try await NBDConnection.connect(
      NBDURI(endpoint: .unix(path: daemon.socketPath), exportName: exportName), options)
  }
}

/// A running peer; ends with its last reference.
final class PeerServer {
  let socketPath: String
  private let daemon: Daemon?
  private let pid: pid_t?

  init(_ daemon: Daemon) {
    self.daemon = daemon
    socketPath = daemon.socketPath
    pid = nil
  }

  init(pid: pid_t, socketPath: String) {
    self.pid = pid
    self.socketPath = socketPath
    daemon = nil
  }

  deinit { stop() }

  func stop() {
    daemon?.stop()
    if let pid { kill(pid, SIGTERM) }
  }
}

@Suite struct `Against` {
  @Test(arguments: Peer.allCases)
  func `each server, what was written is read`(_ peer: Peer) async throws {
    let folder = try TemporaryFolder()
    let daemon = try peer.start(in: folder)
    let client = try await peer.connect(daemon)
    #expect(client.byteCount == Peer.byteCount)
    var model = [UInt8](repeating: 0, count: Int(Peer.byteCount))
    var generator = SystemRandomNumberGenerator()
    // 64 writes at once, of disjoint parts, at odd places.
    var writes: [(offset: Int, bytes: [UInt8])] = []
    for index in 0..<64 {
      let count = Int.random(in: 1...100_000, using: &generator)
      let start = index * (256 << 10) + Int.random(in: 0...100_000, using: &generator)
      let bytes = [UInt8](repeating: UInt8(index + 1), count: count)
      model.replaceSubrange(start..<start + count, with: bytes)
      writes.append((start, bytes))
    }
    try await withThrowingTaskGroup(of: Void.self) { group in
      for (offset, bytes) in writes {
        group.addTask { try await client.write(bytes, at: UInt64(offset)) }
      }
      try await group.waitForAll()
    }
    if client.export.flags.contains(.sendWriteZeroes) {
      try await client.writeZeroes(at: 1 << 20, byteCount: 123_456)
      model.replaceSubrange((1 << 20)..<(1 << 20) + 123_456, with: repeatElement(0, count: 123_456))
    }
    if client.export.flags.contains(.sendFUA) {
      try await client.write([255], at: Peer.byteCount - 1, .durable)
      model[model.count - 1] = 255
    }
    try await client.flush()
    if client.export.flags.contains(.sendTrim) {
      // Contents are undefined afterwards; only that it works is asked.
      try await client.trim(at: 8 << 20, byteCount: 1 << 20)
    }
    if client.export.flags.contains(.sendCache) {
      try await client.cache(at: 0, byteCount: 1 << 20)
    }
    let head = try await client.read(at: 0, byteCount: 8 << 20)
    #expect(head == Array(model[..<(8 << 20)]))
    let tail = try await client.read(at: 9 << 20, byteCount: 7 << 20)
    #expect(tail == Array(model[(9 << 20)...]))
    try await client.disconnect()
  }

  @Test(arguments: Peer.allCases, [ProtocolMode.exportName, .simple, .structured])
  func `each server, each level of the protocol works`(
    _ peer: Peer, _ mode: ProtocolMode
  ) async throws {
    let folder = try TemporaryFolder()
    let daemon = try peer.start(in: folder)
    let client = try await peer.connect(daemon, ClientOptions(modeMax: mode))
    #expect(client.session.mode <= mode)
    try await client.write([1, 2, 3], at: 4096)
    #expect(try await client.read(at: 4095, byteCount: 5) == [0, 1, 2, 3, 0])
    try await client.disconnect()
  }

  @Test(arguments: Peer.allCases)
  func `each server, the list has its export`(_ peer: Peer) async throws {
    let folder = try TemporaryFolder()
    let daemon = try peer.start(in: folder)
    let exports = try await NBDConnection.list(
      NBDURI(endpoint: .unix(path: daemon.socketPath))
    ).exports
    #expect(exports.count == 1)
    // nbd-server answers INFO before it has opened the file, with size 0.
    #expect(exports[0].byteCount == (peer == .nbdServer ? 0 : Peer.byteCount))
    #expect(exports[0].name == peer.listedName)
  }

  @Test(arguments: [Peer.qemuNBD, .nbdkit, .stratad])
  func `a server with contexts, data and holes are told apart`(_ peer: Peer) async throws {
    let folder = try TemporaryFolder()
    let daemon = try peer.start(in: folder)
    let client = try await peer.connect(
      daemon, ClientOptions(contexts: .named(["base:allocation"])))
    #expect(client.export.contexts == ["base:allocation"])
    try await client.write([UInt8](repeating: 7, count: 1 << 20), at: 4 << 20)
    try await client.flush()
    let one = try await client.blockStatus(at: 4 << 20, byteCount: 1 << 20, requestsOne: true)
    #expect(one[0].count == 1)
    #expect(one[0][0].status & 2 == 0)
    try await client.disconnect()
  }

  @Test func `qemu-nbd, a status that fails with two contexts leaves the connection`()
    async throws
  {
    let folder = try TemporaryFolder()
    let image = folder.path("disk.raw")
    let socket = folder.path("nbd.sock")
    try run("qemu-img", "create", "-q", "-f", "raw", image, "1M")
    let rule = "file.inject-error.0"
    let daemon = try Daemon(
      requireTool("qemu-nbd"),
      [
        "-t", "-k", socket, "-A", "--image-opts",
        "driver=raw,file.driver=blkdebug,\(rule).event=none,\(rule).iotype=block-status,"
          + "\(rule).errno=5,file.image.driver=file,file.image.filename=\(image)",
      ], socketPath: socket, readiness: .socketAnswers)
    let client = try await NBDConnection.connect(NBDURI(endpoint: .unix(path: socket)))
    #expect(client.export.contexts.count == 2)
    for _ in 0..<100 {
      do throws(NBDClientFault) {
        _ = try await client.blockStatus(at: 0, byteCount: 65_536)
        Issue.record("the status did not fail")
      } catch {
        guard case .failed(.blockStatus, let failure) = error else {
          Issue.record("\(error)")
          return
        }
        #expect(failure.errno == .EIO)
      }
      // A READ would look for holes, and fail as well.
      try await client.write([1], at: 0)
    }
    try await client.disconnect()
    daemon.stop()
  }

  @Test func `an unknown export, the server's words are told`() async throws {
    let folder = try TemporaryFolder()
    let daemon = try Peer.qemuNBD.start(in: folder)
    do throws(NBDClientFault) {
      _ = try await NBDConnection.connect(
        NBDURI(endpoint: .unix(path: daemon.socketPath), exportName: "nope"))
      Issue.record("an unknown export was entered")
    } catch {
      guard case .refused(let words) = error else {
        Issue.record("\(error)")
        return
      }
      #expect(words.contains("does not know the export"))
    }
  }
}

@Suite struct `Against nbdkit's filters` {
  private func start(
    _ folder: TemporaryFolder, _ arguments: String...
  ) throws -> Daemon {
    let socket = folder.path("nbd.sock")
    return try Daemon(
      requireTool("nbdkit"), ["-f", "-U", socket] + arguments, socketPath: socket,
      readiness: .socketAnswers)
  }

  @Test(arguments: ["EIO", "ENOSPC", "EINVAL", "EPERM", "ENOMEM"])
  func `error: each failed request says so, and the connection lives on`(
    _ name: String
  ) async throws {
    let folder = try TemporaryFolder()
    let daemon = try start(
      folder, "--filter=error", "memory", "1M", "error=\(name)", "error-rate=50%")
    let client = try await NBDConnection.connect(
      NBDURI(endpoint: .unix(path: daemon.socketPath)))
    var failed = 0
    for index in 0..<200 {
      do throws(NBDClientFault) {
        if index % 2 == 0 {
          _ = try await client.read(at: 0, byteCount: 4096)
        } else {
          try await client.write([1], at: 0)
        }
      } catch {
        guard case .failed(_, let failure) = error else {
          Issue.record("\(error)")
          return
        }
        #expect("\(failure.errno)" == name)
        failed += 1
      }
    }
    #expect((20...180).contains(failed))
    try await client.disconnect()
  }

  @Test func `retry: errors that it mends are not seen`() async throws {
    let folder = try TemporaryFolder()
    let daemon = try start(
      folder, "--filter=retry", "--filter=error", "memory", "1M", "error-rate=20%",
      "retries=20", "retry-delay=1", "retry-exponential=no")
    let client = try await NBDConnection.connect(
      NBDURI(endpoint: .unix(path: daemon.socketPath)))
    // The filter waits a whole second for each try, and the requests wait beside each other.
    try await withThrowingTaskGroup(of: Void.self) { group in
      for index in 0..<12 {
        group.addTask {
          try await client.write([UInt8(index + 1)], at: UInt64(index))
        }
      }
      try await group.waitForAll()
    }
    #expect(try await client.read(at: 0, byteCount: 12) == Array(1...12))
    try await client.disconnect()
  }

  @Test func `delay: requests wait beside each other`() async throws {
    let folder = try TemporaryFolder()
    let daemon = try start(folder, "--filter=delay", "memory", "1M", "rdelay=1")
    let client = try await NBDConnection.connect(
      NBDURI(endpoint: .unix(path: daemon.socketPath)))
    let start = ContinuousClock.now
    try await withThrowingTaskGroup(of: Void.self) { group in
      for index in 0..<64 {
        group.addTask { _ = try await client.read(at: UInt64(index), byteCount: 1) }
      }
      try await group.waitForAll()
    }
    // One after the other they would take 64 seconds; other tests hold the pool now and then.
    #expect(ContinuousClock.now - start < .seconds(60))
    try await client.disconnect()
  }

  @Test func `block sizes are kept`() async throws {
    let folder = try TemporaryFolder()
    let daemon = try start(
      folder, "--filter=blocksize-policy", "memory", "1M", "blocksize-minimum=4096",
      "blocksize-preferred=8192", "blocksize-maximum=65536", "blocksize-error-policy=error")
    let client = try await NBDConnection.connect(
      NBDURI(endpoint: .unix(path: daemon.socketPath)))
    #expect(client.export.minimumBlockByteCount == 4096)
    #expect(client.payloadByteCountMax == 65_536)
    #expect(try await client.read(at: 4096, byteCount: 1 << 19).count == 1 << 19)
    try await client.disconnect()
  }

  @Test(arguments: ["--mask-handshake=0", "--no-sr", "-o"])
  func `old ways of speaking are understood`(_ option: String) async throws {
    let folder = try TemporaryFolder()
    let daemon = try start(folder, option, "data", "1 2 3", "size=8")
    let client = try await NBDConnection.connect(
      NBDURI(endpoint: .unix(path: daemon.socketPath)))
    #expect(try await client.read(at: 0, byteCount: 8) == [1, 2, 3, 0, 0, 0, 0, 0])
    let wanted: ProtocolMode =
      option == "-o" ? .oldstyle : option == "--no-sr" ? .simple : .exportName
    #expect(client.session.mode == wanted)
    try await client.disconnect()
  }

  @Test func `a disk of 2^62 bytes is mapped without walking it`() async throws {
    let folder = try TemporaryFolder()
    let daemon = try start(folder, "memory", "4E")
    let client = try await NBDConnection.connect(
      NBDURI(endpoint: .unix(path: daemon.socketPath)))
    #expect(client.byteCount == 1 << 62)
    #expect(try await client.read(at: (1 << 62) - 1, byteCount: 1) == [0])
    try await client.disconnect()
  }
}
