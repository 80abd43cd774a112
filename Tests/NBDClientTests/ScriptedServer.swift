// SPDX-License-Identifier: Apache-2.0
//
// Servers that do what a test wants, byte by byte, on a UNIX socket. This file performs socket I/O
// and starts threads.

import Foundation
import TestSupport

/// A request as a server reads it.
struct WireRequest {
  var flags: UInt16
  var command: UInt16
  var cookie: UInt64
  var offset: UInt64
  var length: UInt64
  var payload: [UInt8]
}

/// The server's end of one connection. Every call waits two minutes at most, then
/// throws: tasks of other tests may hold Swift's threads for a while, and a client with them.
final class ServerSide {
  let descriptor: Int32
  /// 0 for the first connection to a server.
  let number: Int
  var isExtended = false
  /// Where everything goes through, once TLS is up.
  var tls: TLSSide?

  init(_ descriptor: Int32, number: Int) {
    self.descriptor = descriptor
    self.number = number
    var limit = timeval(tv_sec: 120, tv_usec: 0)
    let size = socklen_t(MemoryLayout<timeval>.size)
    setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, size)
    setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &limit, size)
  }

  deinit { close(descriptor) }

  func send(_ bytes: [UInt8]...) throws {
    let all = bytes.flatMap { $0 }
    if let tls { return try tls.send(all) }
    var done = 0
    while done < all.count {
      let count = all[done...].withUnsafeBytes {
        Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
      }
      guard count > 0 else { throw WireError.ended("while sending") }
      done += count
    }
  }

  func receive(_ count: Int) throws -> [UInt8] {
    if let tls { return try tls.receive(count) }
    var bytes = [UInt8](repeating: 0, count: count)
    var done = 0
    while done < count {
      let got = bytes.withUnsafeMutableBytes {
        recv(descriptor, $0.baseAddress! + done, count - done, 0)
      }
      guard got > 0 else { throw WireError.ended("after \(done) of \(count) bytes") }
      done += got
    }
    return bytes
  }

  func receiveOption() throws -> (number: UInt32, payload: [UInt8]) {
    var reader = WireReader(try receive(16))
    _ = try reader.take(8)
    let number = try reader.integer(UInt32.self)
    let count = try reader.integer(UInt32.self)
    return (number, try receive(Int(count)))
  }

  func answer(_ option: UInt32, _ type: UInt32, _ payload: [UInt8] = []) throws {
    try send(
      wire(UInt64(0x0003_e889_0455_65a9), option, type, UInt32(payload.count)) + payload)
  }

  /// The greeting, STARTTLS and the handshake of TLS.
  func startTLS(_ proof: ServerProof) throws {
    try send(Array("NBDMAGICIHAVEOPT".utf8), wire(UInt16(3)))
    _ = try receive(4)
    let (option, payload) = try receiveOption()
    guard option == 5, payload.isEmpty else {
      throw WireError.violation("option \(option) came before STARTTLS")
    }
    try answer(5, 1)
    tls = try TLSSide(descriptor, proof)
  }

  /// A handshake that ends with GO; inside TLS the greeting was before.
  func negotiate(
    byteCount: UInt64, flags: UInt16 = 0x0ded, mode: Mode = .structured,
    contexts: [(id: UInt32, name: String)] = [], blocks: [UInt32] = []
  ) throws {
    if tls == nil {
      try send(Array("NBDMAGICIHAVEOPT".utf8), wire(UInt16(3)))
      _ = try receive(4)
    }
    while true {
      let (option, _) = try receiveOption()
      switch option {
      case 11:
        isExtended = mode == .extended
        try answer(option, mode == .extended ? 1 : 0x8000_0001)
      case 8: try answer(option, mode == .structured ? 1 : 0x8000_0001)
      case 9, 10:
        for context in contexts {
          try answer(option, 4, wire(option == 9 ? 0 : context.id) + Array(context.name.utf8))
        }
        try answer(option, 1)
      case 7:
        try answer(7, 3, wire(UInt16(0), byteCount, flags))
        if blocks.count == 3 {
          try answer(7, 3, wire(UInt16(3), blocks[0], blocks[1], blocks[2]))
        }
        return try answer(7, 1)
      default: try answer(option, 0x8000_0001)
      }
    }
  }

  enum Mode { case simple, structured, extended }

  func receiveRequest() throws -> WireRequest {
    var reader = WireReader(try receive(isExtended ? 32 : 28))
    let magic = try reader.integer(UInt32.self)
    guard magic == (isExtended ? 0x21e4_1c71 : 0x2560_9513) else {
      throw WireError.violation("a request began with \(magic)")
    }
    var request = WireRequest(
      flags: try reader.integer(), command: try reader.integer(), cookie: try reader.integer(),
      offset: try reader.integer(), length: 0, payload: [])
    request.length =
      isExtended ? try reader.integer(UInt64.self) : UInt64(try reader.integer(UInt32.self))
    if request.command == 1 { request.payload = try receive(Int(request.length)) }
    return request
  }

  /// A simple reply.
  func reply(_ request: WireRequest, error: UInt32 = 0, data: [UInt8] = []) throws {
    try send(wire(UInt32(0x6744_6698), error, request.cookie) + data)
  }

  /// A structured or extended chunk.
  func chunk(
    _ request: WireRequest, _ type: UInt16, _ payload: [UInt8] = [], isDone: Bool = true
  ) throws {
    let flags: UInt16 = isDone ? 1 : 0
    if isExtended {
      try send(
        wire(UInt32(0x6e8a_278c), flags, type, request.cookie, request.offset),
        wire(UInt64(payload.count)), payload)
    } else {
      try send(
        wire(UInt32(0x668e_33ef), flags, type, request.cookie, UInt32(payload.count)), payload)
    }
  }

  /// Waits until the client is gone; what it still sends is dropped.
  func waitForEnd() {
    if let tls {
      do { try tls.drain() } catch {}
      return
    }
    var bytes = [UInt8](repeating: 0, count: 4096)
    while recv(descriptor, &bytes, bytes.count, 0) > 0 {}
  }
}

/// A listening socket whose connections run a script, one after the other.
final class ScriptedServer: @unchecked Sendable {  // all state is fixed in init
  private let folder: TemporaryFolder
  let path: String
  private let listener: Int32
  /// Where a server on TCP listens, on 127.0.0.1.
  private(set) var port: UInt16 = 0

  /// A server on TCP, at a port that the kernel chooses.
  init(tcp script: @escaping @Sendable (ServerSide) throws -> Void, isTCP: Bool) throws {
    precondition(isTCP, "a server on TCP is asked for as such")
    folder = try TemporaryFolder()
    path = ""
    listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    var size = socklen_t(MemoryLayout<sockaddr_in>.size)
    let result = withUnsafeMutablePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { generic in
        bind(listener, generic, size) == 0 && listen(listener, 16) == 0
          && getsockname(listener, generic, &size) == 0
      }
    }
    guard result else { throw WireError.system("listen", errno: errno) }
    port = UInt16(bigEndian: address.sin_port)
    let descriptor = listener
    Thread.detachNewThread { Self.accept(from: descriptor, script) }
  }

  private static func accept(
    from listener: Int32, _ script: (ServerSide) throws -> Void
  ) {
    var number = 0
    while true {
      let accepted = Glibc.accept(listener, nil, nil)
      guard accepted >= 0 else {
        // Only this thread closes the number: another socket may get it next.
        close(listener)
        return
      }
      do { try script(ServerSide(accepted, number: number)) } catch {}
      number += 1
    }
  }

  /// A script's error ends its connection; the client's view is what tests look at.
  init(
    isAbstract: Bool = false, delaySeconds: Double = 0,
    _ script: @escaping @Sendable (ServerSide) throws -> Void
  ) throws {
    folder = try TemporaryFolder()
    path = isAbstract ? "\0\(folder.root)" : folder.path("scripted.sock")
    listener = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    // An abstract address has as many bytes as it says; a path ends with NUL (unix(7)).
    let size = socklen_t(isAbstract ? 2 + path.utf8.count : MemoryLayout<sockaddr_un>.size)
    let result = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(listener, $0, size) }
    }
    guard result == 0, delaySeconds > 0 || listen(listener, 16) == 0 else {
      throw WireError.system("listen", errno: errno)
    }
    let descriptor = listener
    Thread.detachNewThread {
      if delaySeconds > 0 {
        usleep(useconds_t(delaySeconds * 1e6))
        listen(descriptor, 16)
      }
      Self.accept(from: descriptor, script)
    }
  }

  /// Takes no more connections. Called once, at the end of a test, which also keeps the server
  /// until then.
  func stop() { shutdown(listener, Int32(SHUT_RDWR)) }
}
