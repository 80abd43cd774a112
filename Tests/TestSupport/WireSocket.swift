// SPDX-License-Identifier: Apache-2.0
//
// A stream socket on which every call has a deadline. This file performs socket I/O.

import Glibc

/// One connection to a UNIX socket. A call that takes longer than the deadline throws.
public final class WireSocket {
  public let descriptor: Int32
  public var deadlineSeconds: Double
  /// Bytes that came and were not asked for yet, from `receivedStart` on.
  private var received: [UInt8] = []
  private var receivedStart = 0
  private var hasEnded = false
  private let scratch = UnsafeMutableBufferPointer<UInt8>.allocate(capacity: 256 << 10)

  public init(connectingTo path: String, deadlineSeconds: Double = 20) throws {
    self.deadlineSeconds = deadlineSeconds
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let capacity = MemoryLayout.size(ofValue: address.sun_path)
    guard path.utf8.count < capacity else { throw WireError.system("connect", errno: ENAMETOOLONG) }
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    guard descriptor >= 0 else { throw WireError.system("socket", errno: errno) }
    let result = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    // The deinitialiser of a class whose initialiser throws late runs, and closes.
    guard result == 0 else { throw WireError.system("connect", errno: errno) }
  }

  /// Takes over a connected socket.
  public init(adopting descriptor: Int32, deadlineSeconds: Double = 20) {
    self.descriptor = descriptor
    self.deadlineSeconds = deadlineSeconds
  }

  deinit {
    Glibc.close(descriptor)
    scratch.deallocate()
  }

  /// Sends all of `bytes`, and takes in replies meanwhile: a server may stop reading until its
  /// replies are read.
  public func send(_ bytes: [UInt8]) throws {
    let deadline = Deadline(seconds: deadlineSeconds)
    var position = try sendSome(bytes[...])
    while position < bytes.count {
      let events = Int16(POLLOUT) | (hasEnded ? 0 : Int16(POLLIN))
      try wait(for: events, until: deadline, doing: "sending \(bytes.count) bytes")
      if !hasEnded, hasInput(within: 0) { try fill() }
      position += try sendSome(bytes[position...])
    }
  }

  /// Sends what the socket takes at once and returns its byte count, 0 when it takes nothing.
  public func sendSome(_ bytes: ArraySlice<UInt8>) throws -> Int {
    let flags = Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT)
    let count = bytes.withUnsafeBytes { Glibc.send(descriptor, $0.baseAddress, $0.count, flags) }
    if count >= 0 { return count }
    if errno == EAGAIN || errno == EINTR { return 0 }
    if errno == EPIPE || errno == ECONNRESET { throw WireError.ended("while sending") }
    throw WireError.system("send", errno: errno)
  }

  /// Receives exactly `count` bytes.
  public func receive(_ count: Int) throws -> [UInt8] {
    let deadline = Deadline(seconds: deadlineSeconds)
    while received.count - receivedStart < count {
      guard !hasEnded else {
        throw WireError.ended("after \(received.count - receivedStart) of \(count) bytes")
      }
      try wait(for: Int16(POLLIN), until: deadline, doing: "receiving \(count) bytes")
      try fill()
    }
    defer { forget(count) }
    return Array(received[receivedStart..<receivedStart + count])
  }

  /// Receives until the server closes, by end of file or by reset, and returns what came.
  public func receiveUntilEnd(byteCountMax: Int = 256 << 20) throws -> [UInt8] {
    let deadline = Deadline(seconds: deadlineSeconds)
    while !hasEnded {
      try wait(for: Int16(POLLIN), until: deadline, doing: "waiting for the end")
      try fill()
      guard received.count <= byteCountMax else {
        throw WireError.violation("more than \(byteCountMax) bytes came")
      }
    }
    defer { forget(received.count - receivedStart) }
    return Array(received[receivedStart...])
  }

  /// Whether a byte or the end arrives within `seconds`.
  public func hasInput(within seconds: Double) -> Bool {
    if received.count > receivedStart { return true }
    var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    return poll(&entry, 1, Int32(seconds * 1000)) > 0
  }

  /// Moves what the kernel holds to the buffer; notes the end when it comes.
  private func fill() throws {
    let got = recv(descriptor, scratch.baseAddress, scratch.count, Int32(MSG_DONTWAIT))
    let number = errno
    if got > 0 { received.append(contentsOf: UnsafeBufferPointer(rebasing: scratch[..<got])) }
    if got == 0 || (got < 0 && number == ECONNRESET) {
      hasEnded = true
    } else if got < 0 && number != EAGAIN && number != EINTR {
      throw WireError.system("recv", errno: number)
    }
  }

  private func forget(_ count: Int) {
    receivedStart += count
    guard receivedStart == received.count || receivedStart > 1 << 20 else { return }
    received.removeFirst(receivedStart)
    receivedStart = 0
  }

  public func shutDownSending() { _ = shutdown(descriptor, Int32(SHUT_WR)) }

  /// Ends the connection in both directions at once, as a client that dies does.
  public func abandon() { _ = shutdown(descriptor, Int32(SHUT_RDWR)) }

  private func wait(for events: Int16, until deadline: Deadline, doing what: String) throws {
    var entry = pollfd(fd: descriptor, events: events, revents: 0)
    while true {
      let left = deadline.secondsLeft
      guard left > 0 else { throw WireError.timedOut(what) }
      let result = poll(&entry, 1, Int32(left * 1000) + 1)
      if result > 0 { return }
      if result < 0 && errno != EINTR { throw WireError.system("poll", errno: errno) }
    }
  }
}

/// A moment after which nothing is waited for.
public struct Deadline {
  private let end: ContinuousClock.Instant

  public init(seconds: Double) { end = .now + .seconds(seconds) }

  public var secondsLeft: Double { (end - .now) / .seconds(1) }
}
