// SPDX-License-Identifier: Apache-2.0
//
// A connection on which every wait has a deadline and every receive a bound, in clear or inside
// TLS. This file performs socket I/O.

import LinuxIO
import TLS

/// One connection to the server under judgement.
final class ProbeSocket {
  /// The most bytes that are kept for one check.
  static let heldByteCountMax = 160 << 20

  private let socket: ByteSocket
  /// Between the socket and everything else, once TLS is up.
  private var tls: ProbeTLS?
  let deadlineSeconds: Int
  /// Bytes that came and were not asked for yet, from `heldStart` on.
  private var held: [UInt8] = []
  private var heldStart = 0
  private(set) var hasEnded = false

  init(to server: LintServer) throws(LintStop) {
    deadlineSeconds = server.deadlineSeconds
    let deadline = ProbeDeadline(seconds: server.deadlineSeconds)
    do throws(Dialer.Fault) {
      socket = try Dialer(deadline: deadline.end).connect(to: server.place.address)
    } catch {
      switch error {
      case .unreachable(let reason): throw .unreachable("\(server.place.text): \(reason)")
      case .timedOut, .givenUp:
        throw .unreachable("\(server.place.text): nothing within \(deadlineSeconds) s")
      }
    }
  }

  /// Does the handshake of TLS. Nothing may have come in clear behind the server's ACK.
  func secure(_ plan: TLSClientPlan) throws(LintStop) {
    try demand(
      held.count == heldStart && tls == nil, "nothing in clear behind the ACK of STARTTLS",
      got: "\(held.count - heldStart) bytes")
    let deadline = ProbeDeadline(seconds: deadlineSeconds)
    let what = "a handshake of TLS"
    let tls: ProbeTLS
    do throws(TLSFault) { tls = ProbeTLS(try plan.makeSession()) } catch {
      throw .skipped("TLS: \(error)")
    }
    while true {
      let progress = tls.stream.handshake()
      try flush(tls)
      switch progress {
      case .bytes:
        if case .refusedCertificate(let reason) = tls.stream.peer() {
          throw .broken(expected: "a server whose proof is good", got: reason)
        }
        self.tls = tls
        return
      case .failed(let fault): throw .broken(expected: what, got: "\(fault)")
      case .wantsRead, .wantsWrite, .closed: break
      }
      switch socket.receive(byteCountMax: 64 << 10) {
      case .bytes(let bytes): tls.stream.take(bytes[...])
      case .closed: throw .ended(what)
      case .wouldBlock:
        guard deadline.millisecondsLeft > 0 else { throw .timedOut(what) }
        _ = socket.wait(
          for: tls.stream.hasWaiting ? .output : .input, milliseconds: deadline.millisecondsLeft)
      }
    }
  }

  /// "TLS1.3"; nil in clear.
  var tlsVersion: String? { tls?.stream.version }

  /// Sends all of `bytes`, and takes in replies meanwhile: a server may stop reading until its
  /// replies are read.
  func send(_ bytes: [UInt8]) throws(LintStop) {
    let what = "the server to take \(bytes.count) bytes"
    let deadline = ProbeDeadline(seconds: deadlineSeconds)
    var rest = bytes[...]
    while !rest.isEmpty || tls?.stream.hasWaiting == true {
      let count = try sendSome(rest)
      rest = rest.dropFirst(count)
      guard count == 0 else { continue }
      try fill()
      guard deadline.millisecondsLeft > 0 else { throw .timedOut(what) }
      _ = socket.wait(for: .output, milliseconds: 20)
    }
  }

  /// Sends what the socket takes at once, and returns how much that was. Inside TLS some more may
  /// be taken, and wait for the next call.
  func sendSome(_ bytes: ArraySlice<UInt8>) throws(LintStop) -> Int {
    guard let tls else { return try sendClear(bytes) }
    try flush(tls)
    guard !tls.stream.hasWaiting else { return 0 }
    let count: Int
    do throws(TLSFault) { count = try tls.stream.send(bytes) } catch {
      throw .broken(expected: "TLS to go on", got: "\(error)")
    }
    try flush(tls)
    return count
  }

  private func sendClear(_ bytes: ArraySlice<UInt8>) throws(LintStop) -> Int {
    switch socket.send(bytes) {
    case .bytes(let count): return count
    case .wouldBlock: return 0
    case .closed:
      // What the server said before it closed can still be read.
      throw .ended("the server to take \(bytes.count) bytes")
    }
  }

  /// Sends ciphertext as far as the socket takes it.
  private func flush(_ tls: ProbeTLS) throws(LintStop) {
    while tls.stream.hasWaiting {
      let count = try sendClear(tls.stream.waiting)
      guard count > 0 else { return }
      tls.stream.forget(count)
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

  /// Whether a byte or the end comes within `milliseconds`. What is TLS's own does not count.
  func hasInput(withinMilliseconds milliseconds: Int32) throws(LintStop) -> Bool {
    let deadline = ProbeDeadline(milliseconds: milliseconds)
    while held.count == heldStart && !hasEnded {
      if try fill() { continue }
      guard deadline.millisecondsLeft > 0 else { return false }
      _ = socket.wait(for: .input, milliseconds: deadline.millisecondsLeft)
    }
    return true
  }

  /// Sends no more; inside TLS this is said, too.
  func shutDownSending() throws(LintStop) {
    if let tls {
      tls.stream.sayGoodbye()
      try flush(tls)
    }
    socket.shutDownSending()
  }

  /// Ends both directions at once, as the death of a client does.
  func abandon() { socket.shutDown() }

  /// Moves what the kernel holds to the buffer; false when there is nothing now.
  @discardableResult private func fill() throws(LintStop) -> Bool {
    guard !hasEnded else { return false }
    switch socket.receive(byteCountMax: 64 << 10) {
    case .bytes(let bytes):
      if let tls {
        try decrypt(bytes, tls)
      } else {
        held.append(contentsOf: bytes)
      }
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

  private func decrypt(_ bytes: [UInt8], _ tls: ProbeTLS) throws(LintStop) {
    tls.stream.take(bytes[...])
    while true {
      switch tls.stream.receive(into: &tls.plaintext) {
      case .bytes(let count): held.append(contentsOf: tls.plaintext[..<count])
      case .wantsRead, .wantsWrite: return
      // An alert ends a session as a goodbye does; what it means is for the check to say.
      case .closed, .failed:
        hasEnded = true
        return
      }
    }
  }

  private func forget(_ count: Int) {
    heldStart += count
    guard heldStart == held.count || heldStart > 1 << 20 else { return }
    held.removeFirst(heldStart)
    heldStart = 0
  }
}

/// A session of TLS and where its plain text goes.
private final class ProbeTLS {
  var stream: TLSStream
  var plaintext = [UInt8](repeating: 0, count: 64 << 10)

  init(_ session: consuming TLSSession) { stream = TLSStream(session) }
}

/// A moment after which nothing is waited for.
struct ProbeDeadline {
  /// Of the monotonic clock, in nanoseconds.
  let end: UInt64

  init(seconds: Int) { end = MonotonicClock.nanoseconds + UInt64(seconds) * 1_000_000_000 }

  init(milliseconds: Int32) {
    end = MonotonicClock.nanoseconds + UInt64(milliseconds) * 1_000_000
  }

  /// Rounded up, so that it is 0 only when the moment has passed.
  var millisecondsLeft: Int32 {
    let now = MonotonicClock.nanoseconds
    return now >= end ? 0 : Int32(clamping: (end - now + 999_999) / 1_000_000)
  }
}
