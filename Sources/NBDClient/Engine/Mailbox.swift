// SPDX-License-Identifier: Apache-2.0
//
// Where tasks leave requests for the thread of a connection. Lock order: one lock, never held
// while a reply is given or the bell is rung.

import LinuxIO
import Synchronization

/// The requests, cancellations and the wish to close that the thread has not taken yet.
final class Mailbox: Sendable {
  /// What the thread takes at once.
  struct Mail {
    var submissions: [Submission] = []
    var cancelledTickets: [UInt64] = []
    var isClosing = false
    /// The process stops: what cannot be had soon shall fail.
    var isHurried = false
  }

  private struct State {
    var mail = Mail()
    var nextTicket: UInt64 = 1
    /// Submissions that were not answered yet, wherever they are.
    var requestCount = 0
    /// Why nothing is taken any more; set when the thread ends.
    var end: NBDClientFault?
    var closers: [@Sendable (NBDClientFault?) -> Void] = []
    /// Told to those who close; nil when all went well.
    var closingFault: NBDClientFault?
  }

  private let state = Mutex(State())
  private let bell: EventCounter
  private let requestsMax: Int

  init(requestsMax: Int) throws(SystemError) {
    self.requestsMax = requestsMax
    bell = try EventCounter(.polled)
  }

  var bellDescriptor: Int32 { bell.descriptor }

  /// Silences the bell for a thread that takes its mail later.
  func hush() { bell.take() }

  /// Whether the client wants to go.
  var isClosing: Bool { state.withLock { $0.mail.isClosing } }

  func nextTicket() -> UInt64 {
    state.withLock { state in
      defer { state.nextTicket += 1 }
      return state.nextTicket
    }
  }

  /// Leaves a request, or answers it at once when there is nobody to take it.
  func submit(_ submission: Submission) {
    let fault = state.withLock { state -> NBDClientFault? in
      if let end = state.end { return end }
      if state.mail.isClosing { return .closed }
      guard state.requestCount < requestsMax else { return .tooManyRequests(max: requestsMax) }
      state.requestCount += 1
      state.mail.submissions.append(submission)
      return nil
    }
    if let fault { return submission.reply(.failure(fault)) }
    bell.signal()
  }

  /// Asks for a request to be given up. It may be answered already.
  func cancel(_ ticket: UInt64) {
    state.withLock { state in
      // A ticket that is not known goes away when the mail is taken.
      if state.end == nil { state.mail.cancelledTickets.append(ticket) }
    }
    bell.signal()
  }

  /// Asks the thread to end when the requests so far are answered.
  func close() {
    state.withLock { $0.mail.isClosing = true }
    bell.signal()
  }

  /// Asks for a server that is gone not to be waited for much longer.
  func hurry() {
    state.withLock { $0.mail.isHurried = true }
    bell.signal()
  }

  /// Asks the thread to end, and waits for the end.
  func closeAndWait() async -> NBDClientFault? {
    await withCheckedContinuation { continuation in
      close { continuation.resume(returning: $0) }
    }
  }

  /// The same, and calls `ended` at the end, with what nobody has been told of.
  func close(ended: @escaping @Sendable (NBDClientFault?) -> Void) {
    let answer = state.withLock { state -> NBDClientFault?? in
      state.mail.isClosing = true
      if state.end != nil { return .some(state.closingFault) }
      state.closers.append(ended)
      return nil
    }
    if let answer { return ended(answer) }
    bell.signal()
  }

  /// For the thread: what came since the last time. The wish to close stays.
  func take() -> Mail {
    bell.take()
    return state.withLock { state in
      let mail = state.mail
      state.mail = Mail(isClosing: mail.isClosing, isHurried: mail.isHurried)
      return mail
    }
  }

  /// For the thread: answers a request.
  func answer(_ submission: Submission, _ outcome: Outcome) {
    state.withLock { $0.requestCount -= 1 }
    submission.reply(outcome)
  }

  /// For the thread, last: answers what is left in the mailbox, and whoever comes later.
  func end(_ fault: NBDClientFault, closingFault: NBDClientFault?) {
    let (submissions, closers) = state.withLock { state in
      state.end = fault
      state.closingFault = closingFault
      defer {
        state.mail = Mail(isClosing: true)
        state.closers = []
      }
      return (state.mail.submissions, state.closers)
    }
    for submission in submissions { answer(submission, .failure(fault)) }
    for closer in closers { closer(closingFault) }
  }
}
