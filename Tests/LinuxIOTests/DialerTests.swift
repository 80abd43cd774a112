// SPDX-License-Identifier: Apache-2.0
//
// Connecting within a deadline, whatever takes its time. This file opens sockets and starts
// threads.

import Foundation
import TestSupport
import Testing

@testable import LinuxIO

private func deadline(milliseconds: UInt64) -> UInt64 {
  MonotonicClock.nanoseconds + milliseconds * 1_000_000
}

private func fault<Value: ~Copyable>(_ body: () throws(Dialer.Fault) -> Value) -> Dialer.Fault? {
  do throws(Dialer.Fault) {
    _ = try body()
    return nil
  } catch {
    return error
  }
}

@Suite struct `A dialer` {
  // getaddrinfo(3) may take as long as the network's servers of names do.
  @Test func `does not wait for a name beyond its deadline`() throws {
    let release = DispatchSemaphore(value: 0)
    defer { release.signal() }
    let lookUp = try LookUp<Int> { () throws(SocketError) in
      release.wait()
      return 1
    }
    let dialer = Dialer(deadline: deadline(milliseconds: 200))
    #expect(fault { () throws(Dialer.Fault) in try dialer.wait(for: lookUp, "h") } == .timedOut)
  }

  @Test func `stops waiting for a name when all is given up`() throws {
    let release = DispatchSemaphore(value: 0)
    defer { release.signal() }
    let lookUp = try LookUp<Int> { () throws(SocketError) in
      release.wait()
      return 1
    }
    let bell = try EventCounter(.polled)
    bell.signal()
    let dialer = Dialer(deadline: deadline(milliseconds: 600_000), bell: bell.descriptor) { true }
    #expect(fault { () throws(Dialer.Fault) in try dialer.wait(for: lookUp, "h") } == .givenUp)
  }

  @Test func `tells what a name's look-up found, and what it failed with`() throws {
    let dialer = Dialer(deadline: deadline(milliseconds: 60_000))
    let good = try LookUp<Int> { () throws(SocketError) in 7 }
    #expect(try dialer.wait(for: good, "h") == 7)
    let bad = try LookUp<Int> { () throws(SocketError) in throw .unknownHost(reason: "no") }
    #expect(
      fault { () throws(Dialer.Fault) in try dialer.wait(for: bad, "h") }
        == .unreachable("h: no"))
  }

  @Test func `looks no number up`() throws {
    #expect(try SocketAddress.number("127.0.0.1", port: 1)?.map(\.description) == ["127.0.0.1:1"])
    #expect(try SocketAddress.number("::1", port: 2)?.map(\.description) == ["[::1]:2"])
    #expect(try SocketAddress.number("localhost", port: 3) == nil)
  }

  @Test func `says which address of a host does not answer`() {
    let dialer = Dialer(deadline: deadline(milliseconds: 60_000))
    let seen = fault { () throws(Dialer.Fault) in
      try dialer.connect(to: .tcp(host: "127.0.0.1", port: 1))
    }
    #expect(seen == .unreachable("127.0.0.1:1: connect: Connection refused"))
  }

  @Test func `waits in the queue of a UNIX socket, and not beyond its deadline`() throws {
    let folder = try TemporaryFolder()
    let path = folder.path("full.sock")
    let listener = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    defer { close(listener) }
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    let result = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        bind(listener, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    try #require(result == 0 && listen(listener, 0) == 0)
    let first = try Dialer(deadline: deadline(milliseconds: 60_000)).connect(to: .unix(path: path))
    let dialer = Dialer(deadline: deadline(milliseconds: 100))
    #expect(
      fault { () throws(Dialer.Fault) in try dialer.connect(to: .unix(path: path)) } == .timedOut)
    // Somebody is let in, and so is the next one.
    close(accept(listener, nil, nil))
    _ = try Dialer(deadline: deadline(milliseconds: 60_000)).connect(to: .unix(path: path))
    _ = consume first
  }

  // vsock(7): the loopback address is 1. Not every kernel has the transport for it.
  @Test(.enabled(if: VsockListener.isReachable, "this kernel has no loopback of vsock"))
  func `reaches a vsock port of this machine`() throws {
    let listener = try #require(VsockListener())
    let dialer = Dialer(deadline: deadline(milliseconds: 60_000))
    let near = try dialer.connect(to: .vsock(contextID: 1, port: listener.port))
    let far = accept(listener.descriptor, nil, nil)
    try #require(far >= 0)
    defer { close(far) }
    guard case .bytes(3) = near.send([1, 2, 3][...]) else {
      Issue.record("three bytes were not taken")
      return
    }
    var bytes: [UInt8] = [0, 0, 0]
    #expect(recv(far, &bytes, 3, Int32(MSG_WAITALL)) == 3)
    #expect(bytes == [1, 2, 3])
  }

  @Test func `says that a vsock port is not reached`() {
    let dialer = Dialer(deadline: deadline(milliseconds: 300))
    // Nobody has this number, and no kernel may use it.
    let seen = fault { () throws(Dialer.Fault) in
      try dialer.connect(to: .vsock(contextID: .max - 1, port: 1))
    }
    #expect(seen != nil)
  }
}

/// A vsock port of this machine.
private final class VsockListener {
  let descriptor: Int32
  let port: UInt32

  init?() {
    descriptor = socket(AF_VSOCK, Int32(SOCK_STREAM.rawValue), 0)
    guard descriptor >= 0 else { return nil }
    // sockaddr_vm: the family, two bytes, port, context id (any), four bytes.
    var address: [UInt32] = [UInt32(AF_VSOCK), .max, .max, 0]
    var size = socklen_t(16)
    let descriptor = descriptor
    let result = address.withUnsafeMutableBytes { bytes in
      let generic = bytes.baseAddress?.assumingMemoryBound(to: sockaddr.self)
      return bind(descriptor, generic, size) == 0 && listen(descriptor, 1) == 0
        && getsockname(descriptor, generic, &size) == 0
    }
    port = address[1]
    guard result else { return nil }
  }

  deinit { close(descriptor) }

  static let isReachable: Bool = {
    guard let listener = VsockListener() else { return false }
    return fault { () throws(Dialer.Fault) in
      try Dialer(deadline: deadline(milliseconds: 500)).connect(
        to: .vsock(contextID: 1, port: listener.port))
    } == nil
  }()
}
