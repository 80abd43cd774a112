// SPDX-License-Identifier: Apache-2.0
//
// How many clients use exports, in all, each one and of each peer. Those that negotiate do not
// count: their number says nothing. This file performs no I/O but the signal that somebody left.

import LinuxIO
import Synchronization

/// Counts clients against their limits. Any thread takes seats and gives them up.
public final class Attendance: Sendable {
  /// Those who count as one peer: the processes of a user, the ports of an address.
  enum Peer: Hashable {
    case user(UInt32)
    case address([UInt8])
    case machine(UInt32)
    case unknown
  }

  private struct Counts {
    var total = 0
    var byExport: [Int]
    var byPeer: [Peer: Int] = [:]
    /// The reception waits for a seat.
    var isAwaited = false
  }

  private let counts: Mutex<Counts>
  private let departure: EventCounter

  public init(exportCount: Int) throws(SystemError) {
    departure = try EventCounter(.polled)
    counts = Mutex(Counts(byExport: Array(repeating: 0, count: exportCount)))
  }

  /// Becomes readable when somebody left after `hasRoom` was answered with no, or as was asked for.
  var eventDescriptor: Int32 { departure.descriptor }

  func takeEvent() { departure.take() }

  /// Whether fewer than `max` clients use exports; if not, the next departure is told.
  func hasRoom(max: Int) -> Bool {
    counts.withLock { counts in
      counts.isAwaited = counts.total >= max
      return !counts.isAwaited
    }
  }

  /// Asks to be told of the next departure.
  func awaitDeparture() { counts.withLock { $0.isAwaited = true } }

  var total: Int { counts.withLock { $0.total } }

  func count(of peer: PeerIdentity) -> Int {
    counts.withLock { $0.byPeer[Peer(peer)] ?? 0 }
  }

  func count(inExport index: Int) -> Int { counts.withLock { $0.byExport[index] } }

  fileprivate func enter(_ peer: Peer, export index: Int) {
    counts.withLock { counts in
      counts.total += 1
      counts.byExport[index] += 1
      counts.byPeer[peer, default: 0] += 1
    }
  }

  fileprivate func leave(_ peer: Peer, export index: Int) {
    let isAwaited = counts.withLock { counts in
      counts.total -= 1
      counts.byExport[index] -= 1
      if let count = counts.byPeer[peer] { counts.byPeer[peer] = count > 1 ? count - 1 : nil }
      defer { counts.isAwaited = false }
      return counts.isAwaited
    }
    if isAwaited { departure.signal() }
  }
}

extension Attendance.Peer {
  init(_ identity: PeerIdentity) {
    switch identity {
    case .unix(let userID, _, _): self = .user(userID)
    case .tcp(let address): self = .address(address.hostBytes)
    case .vsock(let contextID, _): self = .machine(contextID)
    case .unknown: self = .unknown
    }
  }
}

/// A client's place in an export, given up with its last owner.
struct Seat: ~Copyable, Sendable {
  private let attendance: Attendance
  private let peer: Attendance.Peer
  private let exportIndex: Int

  init(_ attendance: Attendance, _ peer: PeerIdentity, export exportIndex: Int) {
    self.attendance = attendance
    self.peer = Attendance.Peer(peer)
    self.exportIndex = exportIndex
    attendance.enter(self.peer, export: exportIndex)
  }

  deinit { attendance.leave(peer, export: exportIndex) }
}
