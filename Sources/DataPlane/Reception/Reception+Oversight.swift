// SPDX-License-Identifier: Apache-2.0
//
// Obeying control: the clients that negotiate, kick, reload.

import LinuxIO
import NBDProtocol

extension Reception {
  mutating func obeyMail() {
    for command in mailbox.takeAll() {
      switch command {
      case .clients(let complete): complete(clients(), status())
      case .kick(let number, let complete): complete(kick(number))
      case .reload(let complete): complete(renewRules())
      }
    }
  }

  private func status() -> ReceptionStatus {
    ReceptionStatus(
      connectionCount: attendance.total + visitors.count, connectionsMax: plan.connectionsMax,
      connectionTotal: connectionTotal)
  }

  private mutating func kick(_ number: UInt64) -> Bool {
    for place in 0..<visitors.capacity
    where visitors.isOccupied(place) && visitors[place].number == number {
      end(place)
      return true
    }
    return false
  }

  private func clients() -> [ClientStatus] {
    var clients: [ClientStatus] = []
    for place in 0..<visitors.capacity where visitors.isOccupied(place) {
      clients.append(visitors[place].status)
    }
    return clients.sorted { $0.number < $1.number }
  }
}

extension Visitor {
  var status: ClientStatus {
    ClientStatus(
      number: number, peer: peer,
      connectedNanoseconds: MonotonicClock.nanoseconds - startNanoseconds, phase: .handshake,
      export: nil, negotiated: nil, contextNames: [], tls: tlsStatus, isStalled: false,
      inFlightCount: 0,
      bufferedByteCount: 0, requestCount: 0, errorCount: 0,
      receivedByteCount: counters.receivedByteCount, sentByteCount: counters.sentByteCount)
  }
}
