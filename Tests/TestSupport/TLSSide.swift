// SPDX-License-Identifier: Apache-2.0
//
// The server's end of TLS for scripted servers: a session over a socket, waited for.
// This file performs socket I/O.

import Foundation
import TLS

/// What a server proves itself with, made anew for each connection and thread.
public enum ServerProof: Sendable {
  case certificates(folder: String, priority: String? = nil)
  case key(identity: String, bytes: [UInt8])

  func credentials() throws -> TLSCredentials {
    switch self {
    case .certificates(let folder, let priority):
      let read = { (name: String) -> [UInt8] in
        Array(try Data(contentsOf: URL(fileURLWithPath: "\(folder)/\(name)")))
      }
      return try TLSCredentials(
        TLSCredentials.CertificateFiles(
          authorities: try read("ca-cert.pem"), certificate: try read("server-cert.pem"),
          key: try read("server-key.pem")),
        role: .server, verifiesPeer: false, priority: priority)
    case .key(let identity, let bytes):
      return try TLSCredentials(
        keys: PSKTable(identity: Array(identity.utf8), key: bytes), role: .server, priority: nil)
    }
  }
}

/// A session that a scripted server speaks through.
public final class TLSSide {
  private var stream: TLSStream
  private let descriptor: Int32
  private var plaintext: [UInt8] = []
  /// The client has said goodbye.
  public private(set) var wasBidden = false

  /// Waits for the client's handshake.
  public init(_ descriptor: Int32, _ proof: ServerProof) throws {
    self.descriptor = descriptor
    stream = TLSStream(try TLSSession(try proof.credentials()))
    while true {
      let progress = stream.handshake()
      try flush()
      switch progress {
      case .bytes: return
      case .failed(let fault): throw WireError.violation("\(fault)")
      case .wantsRead, .wantsWrite, .closed: try take()
      }
    }
  }

  public func send(_ bytes: [UInt8]) throws {
    var rest = bytes[...]
    while !rest.isEmpty {
      rest = rest.dropFirst(try stream.send(rest))
      try flush()
    }
  }

  public func receive(_ count: Int) throws -> [UInt8] {
    while plaintext.count < count {
      if try !fill() { throw WireError.ended("after \(plaintext.count) of \(count) bytes") }
    }
    defer { plaintext.removeFirst(count) }
    return Array(plaintext[..<count])
  }

  /// Reads to the end of what the client sends.
  public func drain() throws { while try fill() { plaintext = [] } }

  public func sayGoodbye() throws {
    stream.sayGoodbye()
    try flush()
  }

  /// false when the client has said goodbye.
  private func fill() throws -> Bool {
    var room = [UInt8](repeating: 0, count: 64 << 10)
    while true {
      switch stream.receive(into: &room) {
      case .bytes(let count):
        plaintext += room[..<count]
        return true
      case .closed:
        wasBidden = true
        return false
      case .failed(let fault): throw WireError.violation("\(fault)")
      case .wantsRead, .wantsWrite: try take()
      }
    }
  }

  private func take() throws {
    var bytes = [UInt8](repeating: 0, count: 64 << 10)
    let count = recv(descriptor, &bytes, bytes.count, 0)
    guard count > 0 else { throw WireError.ended("inside TLS") }
    stream.take(bytes[..<count])
  }

  private func flush() throws {
    while stream.hasWaiting {
      let waiting = stream.waiting
      let count = waiting.withUnsafeBytes {
        Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
      }
      guard count > 0 else { throw WireError.ended("while sending inside TLS") }
      stream.forget(count)
    }
  }
}
