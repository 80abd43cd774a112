// SPDX-License-Identifier: Apache-2.0
//
// A new connection in place of a lost one: the export is checked, acknowledged writes are
// repeated, and requests in flight are sent again, whole. This file performs socket I/O.

import LinuxIO
import NBDProtocol

extension Engine {
  /// Connects again.
  ///
  /// - Returns: why that is not possible; nil when the new connection can be served.
  func reopen(
    _ policy: ClientOptions.Reconnect, after loss: NBDClientFault
  ) -> NBDClientFault? {
    guard let old = session else { return loss }
    transport = nil
    isCutOff = false
    requeueFlights()
    // A flush that wants to tell of a loss must come after that loss.
    if journal.isIncomplete {
      untoldLoss = .writesLost(
        "the connection was lost, and more writes since the last flush than are kept")
      journal.forgetDropped()
    }
    let goal = ClientGoal(
      .enter(exportName: uri.exportName), contexts: .named(old.export.contexts),
      modeMax: options.modeMax)
    var deadline = MonotonicClock.nanoseconds + UInt64(policy.secondsMax) * 1_000_000_000
    defer { overdue = nil }
    var delay = 0
    var last = loss
    while true {
      do throws(NBDClientFault) {
        try pause(milliseconds: delay, until: deadline)
        let now = MonotonicClock.nanoseconds
        let attemptEnd = min(
          deadline, patienceEnd ?? .max, now + UInt64(options.openSecondsMax) * 1_000_000_000)
        guard
          case .session(let transport, let session, let rest) = try opener.open(
            goal, deadline: attemptEnd)
        else { preconditionFailure("a list came where an export was to be entered") }
        if let obstacle = SessionChange.obstacle(from: old, to: session) {
          return .exportChanged("after reconnecting, \(obstacle)")
        }
        let ids = SessionChange.contextIDs(of: session, inOrderOf: old)
        try adopt(transport, session, contextIDs: ids, rest)
        replay = journal.entries[...]
        return nil
      } catch {
        guard error.mayPass else { return error }
        last = error
      }
      guard MonotonicClock.nanoseconds < min(deadline, patienceEnd ?? .max) else {
        let fault = NBDClientFault.lost(
          "no new connection within \(policy.secondsMax) seconds (\(last))")
        guard policy.isEndless else { return fault }
        overdue = fault
        failQueue(fault)
        deadline = .max
        if patienceEnd != nil { return fault }
        continue
      }
      delay =
        delay == 0
        ? policy.firstDelayMilliseconds : min(delay * 2, policy.delayMillisecondsMax)
    }
  }

  /// Puts what was in flight back in front of the queue, in the order in which it was sent.
  private func requeueFlights() {
    let sent = flights.sorted { $0.key < $1.key }.compactMap { entry -> Submission? in
      entry.value.isOrphan ? nil : entry.value.submission
    }
    flights = [:]
    queue.replaceSubrange(0..<queueStart, with: sent)
    queueStart = 0
  }
}
