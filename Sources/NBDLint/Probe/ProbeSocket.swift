// SPDX-License-Identifier: Apache-2.0
//
// A connection on which every wait has a deadline and every receive a bound.
// This file performs socket I/O.

import LinuxIO

/// One connection to the server under judgement.
final class ProbeSocket {
  /// The most bytes that are kept for one check.
  static let heldByteCountMax = 160 << 20

  private let socket: ByteSocket
  let deadlineSeconds: Int
  /// Bytes that came and were not asked for yet, from `heldStart` on.
  private var held: [UInt8] = []
  private var heldStart = 0
  private(set) var hasEnded = false

  init(to server: LintServer) throws(LintStop) {
    deadlineSeconds = server.deadlineSeconds
    switch server.place.address {
    case .unix(let path): socket = try ProbeSocket.unix(path, server.deadlineSeconds)
    case .tcp(let host, let port): socket = try ProbeSocket.tcp(host, port, server.deadlineSeconds)
    }
  }

  private static func unix(_ text: String, _ seconds: Int) throws(LintStop) -> ByteSocket {
    let path: UnixSocketPath
    do throws(SocketError) { path = try UnixSocketPath(text) } catch {
      throw .unreachable("\(text): \(error)")
    }
    let deadline = ProbeDeadline(seconds: seconds)
    while true {
      do throws(SystemError) { return try ByteSocket(connectingTo: path) } catch {
        // Others are waiting to be accepted; there is nothing to wait on but time.
        guard error.isTryAgain, deadline.millisecondsLeft > 0 else {
          throw .unreachable("\(text): \(error)")
        }
        MonotonicClock.sleep(milliseconds: 5)
      }
    }
  }

  private static func tcp(
    _ host: String, _ port: UInt16, _ seconds: Int
  ) throws(LintStop) -> ByteSocket {
    let addresses: [SocketAddress]
    do throws(SocketError) {
      addresses = try SocketAddress.resolve(host: host, port: port)
    } catch { throw .unreachable("\(host): \(error)") }
    var reason = ""
    for address in addresses {
      do throws(SystemError) {
        return try ByteSocket.connect(to: address, milliseconds: Int32(seconds * 1000))
      } catch { reason = "\(address): \(error)" }
    }
    throw .unreachable(reason)
  }

  /// Sends all of `bytes`, and takes in replies meanwhile: a server may stop reading until its
  /// replies are read.
  func send(_ bytes: [UInt8]) throws(LintStop) {
    let what = "the server to take \(bytes.count) bytes"
    let deadline = ProbeDeadline(seconds: deadlineSeconds)
    var rest = bytes[...]
    while !rest.isEmpty {
      let count = try sendSome(rest)
      rest = rest.dropFirst(count)
      guard count == 0 else { continue }
      try fill()
      guard deadline.millisecondsLeft > 0 else { throw .timedOut(what) }
      _ = socket.wait(for: .output, milliseconds: 20)
    }
  }

  /// Sends what the socket takes at once, and returns how much that was.
  func sendSome(_ bytes: ArraySlice<UInt8>) throws(LintStop) -> Int {
    switch socket.send(bytes) {
    case .bytes(let count): return count
    case .wouldBlock: return 0
    case .closed:
      // What the server said before it closed can still be read.
      throw .ended("the server to take \(bytes.count) bytes")
    }
  }

  /// Receives exactly `count` bytes of `what`.
  func receive(_ count: Int, _ what: @autoclosure () -> String) throws(LintStop) -> [UInt8] {
    let deadline = ProbeDeadline(seconds: deadlineSeconds)
    while held.count - heldStart < count {
      guard !hasEnded else { throw .ended(what()) }
      guard deadline.millisecondsLeft > 0 else { throw .timedOut(what()) }
      if try !fill() { _ = socket.wait(for: .input, milliseconds: deadline.millisecondsLeft) }
    }
    defer { forget(count) }
    return Array(held[heldStart..<heldStart + count])
  }

  /// Receives until the server closes and returns what came before that.
  func receiveUntilEnd(_ what: String = "the end of the connection") throws(LintStop) -> [UInt8] {
    let deadline = ProbeDeadline(seconds: deadlineSeconds)
    while !hasEnded {
      guard deadline.millisecondsLeft > 0 else { throw .timedOut(what) }
      if try !fill() { _ = socket.wait(for: .input, milliseconds: deadline.millisecondsLeft) }
    }
    defer { forget(held.count - heldStart) }
    return Array(held[heldStart...])
  }

  /// Whether a byte or the end comes within `milliseconds`.
  func hasInput(withinMilliseconds milliseconds: Int32) -> Bool {
    held.count > heldStart || hasEnded || socket.wait(for: .input, milliseconds: milliseconds)
  }

  func shutDownSending() { socket.shutDownSending() }

  /// Ends both directions at once, as the death of a client does.
  func abandon() { socket.shutDown() }

  /// Moves what the kernel holds to the buffer; false when there is nothing now.
  @discardableResult private func fill() throws(LintStop) -> Bool {
    guard !hasEnded else { return false }
    switch socket.receive(byteCountMax: 64 << 10) {
    case .bytes(let bytes):
      held.append(contentsOf: bytes)
      try demand(
        held.count - heldStart <= ProbeSocket.heldByteCountMax, "an answer of a bounded size",
        got: "more than \(ProbeSocket.heldByteCountMax) bytes")
      return true
    case .wouldBlock: return false
    case .closed:
      hasEnded = true
      return true
    }
  }

  private func forget(_ count: Int) {
    heldStart += count
    guard heldStart == held.count || heldStart > 1 << 20 else { return }
    held.removeFirst(heldStart)
    heldStart = 0
  }
}

/// A moment after which nothing is waited for.
struct ProbeDeadline {
  private let end: UInt64

  init(seconds: Int) { end = MonotonicClock.nanoseconds + UInt64(seconds) * 1_000_000_000 }

  /// Rounded up, so that it is 0 only when the moment has passed.
  var millisecondsLeft: Int32 {
    let now = MonotonicClock.nanoseconds
    return now >= end ? 0 : Int32(clamping: (end - now + 999_999) / 1_000_000)
  }
}
