// SPDX-License-Identifier: Apache-2.0
//
// Bytes between servers and somebody who speaks to them in clear, such as the kernel, which knows
// no TLS. This file performs socket I/O.

import LinuxIO

/// Connections and, for each, a socket whose other end somebody has. It belongs to one thread.
public final class Relay {
  /// Rounds of carrying between two looks at the bell, when there is always something to carry.
  private static let roundsMax: UInt64 = 64

  private var links: [Link] = []
  private var roundCount: UInt64 = 0

  public init() {}

  /// Adds a connection and the near end of its socket pair.
  public func add(_ connection: NegotiatedConnection, _ end: consuming ByteSocket) {
    links.append(Link(connection.transport, end))
  }

  /// Carries bytes until one side of every link has ended and what it sent before was passed on, or
  /// until there is input at `bell`.
  public func run(until bell: Int32 = -1) {
    let bell = ByteSocket.Interest(bell, input: bell >= 0, output: false)
    while !links.isEmpty {
      var hasMoved = false
      for link in links where link.carry() { hasMoved = true }
      links.removeAll { $0.isOver }
      // Input at the bell is looked for when there is nothing else to do, or now and then.
      roundCount += 1
      if hasMoved, roundCount % Self.roundsMax != 0 { continue }
      guard !links.isEmpty else { return }
      let interests = links.flatMap(\.interests) + [bell]
      let isLeaving = links.contains(where: \.isLeaving)
      if ByteSocket.wait(interests, milliseconds: hasMoved ? 0 : isLeaving ? 100 : -1) { return }
    }
  }
}

/// One connection and the two directions of it.
private final class Link {
  /// Bytes on their way in one direction.
  private struct Load {
    static let byteCountMax = 256 << 10

    var bytes = [UInt8](repeating: 0, count: byteCountMax)
    var start = 0
    var end = 0
    /// The side that sends will send no more.
    var isLast = false

    var isEmpty: Bool { start == end }

    mutating func note(_ received: StreamSocket.Transfer) -> Bool {
      switch received {
      case .bytes(let count): (start, end) = (0, count)
      case .wouldBlock: return false
      case .closed: isLast = true
      }
      return true
    }

    /// - Returns: whether something moved, were it only that nobody takes it any more.
    mutating func note(sent: StreamSocket.Transfer) -> Bool {
      switch sent {
      case .bytes(let count): start += count
      case .wouldBlock: return false
      case .closed:
        start = end
        isLast = true
      }
      return true
    }
  }

  private let server: any Transport
  private let client: ByteSocket
  private var answers = Load()
  private var requests = Load()
  /// When the server was told the end, the last moment to wait for its answer to that.
  private var leavingDeadline: UInt64?
  private static let leavingNanosecondsMax: UInt64 = 1_000_000_000

  init(_ server: any Transport, _ client: consuming ByteSocket) {
    self.server = server
    self.client = client
  }

  /// Whether one side has ended and everything that it sent before was passed on. What the other
  /// side still sends has nobody to receive it: a server that left answers nothing, and a client
  /// that left wants nothing.
  var isOver: Bool {
    if answers.isLast && answers.isEmpty { return true }
    guard let leavingDeadline else { return false }
    return MonotonicClock.nanoseconds >= leavingDeadline
  }

  /// Whether the time is looked at.
  var isLeaving: Bool { leavingDeadline != nil }

  /// Moves what can be moved now. Each load is emptied before it is filled again, so a side that
  /// does not receive stops the one that sends.
  func carry() -> Bool {
    if isLeaving { return leave() }
    var hasMoved = false
    if answers.isEmpty, !answers.isLast {
      hasMoved = answers.note(server.receive(into: &answers.bytes))
    }
    if !answers.isEmpty {
      let sent = client.send(answers.bytes[answers.start..<answers.end])
      hasMoved = answers.note(sent: sent) || hasMoved
    }
    if requests.isEmpty, !requests.isLast {
      hasMoved = requests.note(client.receive(into: &requests.bytes)) || hasMoved
    }
    if !requests.isEmpty {
      let sent = server.send(requests.bytes[requests.start..<requests.end])
      hasMoved = requests.note(sent: sent) || hasMoved
    } else if server.hasUnsent {
      _ = server.send([])
    }
    if requests.isLast, requests.isEmpty {
      // Nobody waits for a server that cannot be told the end.
      leavingDeadline =
        MonotonicClock.nanoseconds + (server.sayGoodbye() ? Self.leavingNanosecondsMax : 0)
      return true
    }
    return hasMoved
  }

  /// Sends what is left and drops what comes, until the server has ended, too.
  private func leave() -> Bool {
    if server.hasUnsent { _ = server.send([]) }
    answers.start = answers.end
    guard !answers.isLast else { return false }
    let hasMoved = answers.note(server.receive(into: &answers.bytes))
    answers.start = answers.end
    return hasMoved
  }

  /// What the next move waits for.
  var interests: [ByteSocket.Interest] {
    [
      ByteSocket.Interest(
        server.descriptor, input: answers.isEmpty,
        output: !requests.isEmpty || server.hasUnsent),
      ByteSocket.Interest(
        client.descriptor, input: requests.isEmpty && !isLeaving, output: !answers.isEmpty),
    ]
  }
}
