// SPDX-License-Identifier: Apache-2.0
//
// Faults that other NBD servers have had, replayed against the daemon: what clients use up, and
// signals. Each test is named after its fault. Source: the CVE records, and the commits that are
// named.

import Foundation
import TestSupport
import Testing

extension ServedProcess {
  /// Descriptors that are open.
  fileprivate var descriptorCount: Int {
    get throws {
      try FileManager.default.contentsOfDirectory(atPath: "/proc/\(processID)/fd").count
    }
  }

  /// Memory in use, in KiB.
  fileprivate var residentKiB: Int {
    get throws {
      try Int(status(of: "VmRSS").prefix { $0.isNumber }) ?? 0
    }
  }

  /// Clock ticks of the CPU that were used, of which there are 100 in a second.
  fileprivate var ticks: Int {
    get throws {
      let text = try String(contentsOfFile: "/proc/\(processID)/stat", encoding: .utf8)
      let words = text[text.lastIndex(of: ")")!...].split(separator: " ")
      return (Int(words[12]) ?? 0) + (Int(words[13]) ?? 0)  // utime and stime, proc(5)
    }
  }
}

/// Whether a good client gets in and reads.
private func serves(_ fixture: ServeFixture, deadlineSeconds: Double = 10) throws -> Bool {
  let client = try WireClient.entered(path: fixture.socket, deadlineSeconds: deadlineSeconds)
  let isRight = try client.read(0, 512).data == [UInt8](repeating: 0, count: 512)
  try client.disconnect()
  return isRight
}

@Suite(.serialized) struct `Past faults of servers under load` {
  @Test func `CVE-2011-1925, CVE-2013-7441: 10,000 clients that leave after any byte`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve()
    let words =
      wire(UInt32(3)) + WireClient.option(8)
      + WireClient.option(6, WireClient.infoData("disk.raw", [3]))
      + WireClient.option(10, WireClient.metaData("disk.raw", ["base:allocation"]))
      + WireClient.option(7, WireClient.infoData("disk.raw", [3]))
    #expect(try serves(fixture))
    let descriptorCount = try server.descriptorCount
    var memory = 0
    for round in 0..<10_000 {
      let socket = try WireSocket(connectingTo: fixture.socket)
      let count = round % (words.count + 1)
      // Who was cut off already need not be told.
      do { try socket.send(Array(words[..<count])) } catch WireError.ended {}
      if round % 7 == 0 { socket.abandon() }
      if round == 1_000 {
        #expect(try serves(fixture))
        memory = try server.residentKiB
      }
    }
    #expect(try serves(fixture))
    #expect(try server.residentKiB < memory + 8_192, "memory grows with clients that left")
    let left = Date(timeIntervalSinceNow: 5)
    while try server.descriptorCount > descriptorCount, Date() < left { usleep(10_000) }
    #expect(try server.descriptorCount <= descriptorCount, "descriptors of clients that left")
    #expect(server.stop() == 0)
  }

  @Test func `CVE-2015-0847: a storm of signals while clients come and go`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve()
    let signals = [SIGHUP, SIGCHLD, SIGUSR1, SIGUSR2, SIGPIPE, SIGURG, SIGCONT, SIGWINCH]
    for round in 0..<3_000 {
      kill(server.processID, signals[round % signals.count])
      if round % 3 == 0 {
        let socket = try WireSocket(connectingTo: fixture.socket)
        kill(server.processID, signals[(round / 3) % signals.count])
        try socket.send(wire(UInt32(3)))
      }
      if round % 500 == 0 { #expect(try serves(fixture), "round \(round)") }
    }
    #expect(try serves(fixture))
    #expect(server.isAlive)
    #expect(server.stop() == 0)
  }

  @Test func `CVE-2019-14850: 1,000 half-open connections open no file`() throws {
    let fixture = try ServeFixture()
    let overlay = fixture.folder.path("overlay")
    try run("qemu-img", "create", "-q", "-f", "qcow2", "-b", fixture.image, "-F", "raw", overlay)
    let trace = fixture.folder.path("trace")
    let server = try ServedProcess(
      stratad: [overlay, "--format", "qcow2", "--socket", fixture.socket],
      prefix: ["strace", "-D", "-f", "-o", trace, "-e", "trace=%file,write"])
    try server.waitUntilReady()
    let words = wire(UInt32(3)) + WireClient.option(8) + WireClient.option(3)
    for round in 0..<10 {
      let sockets = try (0..<100).map { _ in try WireSocket(connectingTo: fixture.socket) }
      for (index, socket) in sockets.enumerated() {
        try socket.send(Array(words[..<((index * 7 + round) % (words.count + 1))]))
      }
      // All of them have been looked at: the last one has its greeting.
      _ = try sockets[99].receive(18)
    }
    #expect(try serves(fixture))
    #expect(server.stop() == 0)
    let lines = try traceLines(of: server, in: trace)
    let ready = try #require(lines.firstIndex { $0.contains(#"write(1, "ready\n""#) })
    let opens = lines[ready...].filter { $0.contains("open") && !$0.contains("= -1") }
    #expect(opens == [], "an open for a client that never entered an export")
  }

  /// More clients than there are descriptors: fewer than the limit of connections would allow, or
  /// more.
  @Test(arguments: ["100", "1000"])
  func `CVE-2024-7409: twice as many silent clients as descriptors keep nobody out`(
    connections: String
  ) throws {
    let fixture = try ServeFixture()
    let server = try ServedProcess(
      stratad: fixture.arguments + ["--handshake-timeout", "1", "--max-connections", connections],
      prefix: ["prlimit", "--nofile=128:128"])
    try server.waitUntilReady()
    let silent = try (0..<256).map { _ in try WireSocket(connectingTo: fixture.socket) }
    // Whoever has been silent for longest makes room.
    #expect(try serves(fixture, deadlineSeconds: 15))
    #expect(server.isAlive)
    #expect(server.errorText == "")
    _ = silent
    #expect(server.stop() == 0)
  }

  @Test(arguments: ["100", "1000"])
  func `CVE-2024-7409: a stop with twice as many silent clients as descriptors`(
    connections: String
  ) throws {
    let fixture = try ServeFixture()
    let server = try ServedProcess(
      stratad: fixture.arguments + ["--max-connections", connections],
      prefix: ["prlimit", "--nofile=128:128"])
    try server.waitUntilReady()
    let silent = try (0..<256).map { _ in try WireSocket(connectingTo: fixture.socket) }
    _ = try silent[0].receive(18)
    let start = Date()
    #expect(server.stop() == 0)
    #expect(Date().timeIntervalSince(start) < 2)
    _ = silent
  }

  @Test func `CVE-2024-7409: silent clients cost no CPU, and little memory`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve()
    #expect(try serves(fixture))
    let memory = try server.residentKiB
    let silent = try (0..<99).map { _ in try WireSocket(connectingTo: fixture.socket) }
    for socket in silent { _ = try socket.receive(18) }
    let ticks = try server.ticks
    usleep(1_000_000)
    #expect(try server.ticks - ticks <= 5, "a server that waits is busy")
    #expect(try server.residentKiB - memory < 99 * 128, "more than 128 KiB for a silent client")
    #expect(server.stop() == 0)
  }

  @Test func `NBD@61b9f75: clients that leave in the middle of an option or a request`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve()
    let good = try WireClient.entered(path: fixture.socket)
    for count in 0..<60 {
      let option = WireClient.option(7, WireClient.infoData("disk.raw", [3, 1, 2]))
      let client = try WireClient(path: fixture.socket)
      try client.greet()
      try client.socket.send(Array(option.prefix(count)))
      let other = try WireClient.entered(path: fixture.socket)
      let write = other.prepare(
        1, flags: WireFlag.fua, length: 64, payload: [UInt8](repeating: 7, count: 64))
      try other.socket.send(Array(write.bytes.prefix(count)))
      #expect(try good.read(4_096, 512).error == 0)
    }
    #expect(try good.read(0, 64).data == [UInt8](repeating: 0, count: 64), "a write in part")
    #expect(server.stop() == 0)
  }
}
