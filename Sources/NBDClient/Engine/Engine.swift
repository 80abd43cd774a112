// SPDX-License-Identifier: Apache-2.0
//
// The life of a connection: open, serve, reconnect, end. One thread runs it from start to end and
// owns everything here; tasks meet it in the mailbox only. This file performs socket I/O.

import LinuxIO
import NBDProtocol

/// One client connection, and those that replace it when it is lost.
final class Engine {
  /// How a connection ended.
  enum End {
    /// As the client wanted.
    case closed
    /// Nobody wanted it; another connection may go on.
    case lost(NBDClientFault)
    /// Another connection would not help.
    case failed(NBDClientFault)
  }

  /// A request that was sent.
  struct Flight {
    /// nil for a write that is sent again from the journal.
    let submission: Submission?
    /// FLUSH: the answers below this number were there when it was sent.
    let sequence: UInt64
    /// Cancelled and answered; what the server says is dropped.
    var isOrphan = false
  }

  let uri: NBDURI
  let options: ClientOptions
  let mailbox: Mailbox
  var opener: Opener

  /// The first session: what the client relies on.
  var session: ClientSession?
  var isExtended = false
  var decoder = ReplyDecoder(mode: .simple, contextIDs: [])
  var transport: Transport?
  var input: [UInt8] = []

  /// Bytes for the socket, from `sentByteCount` on.
  var output: [UInt8] = []
  var sentByteCount = 0
  /// Requests that were not sent, from `queueStart` on.
  var queue: [Submission] = []
  var queueStart = 0
  var flights: [UInt64: Flight] = [:]
  var nextCookie: UInt64 = 1
  var isClosing = false
  /// The server takes nothing any more; it may have said something before.
  var isCutOff = false
  /// Both sides have said goodbye, or will: until when the server's end is waited for.
  var goodbyeDeadline: UInt64?
  /// Without reconnecting: the server said that it stops, so nothing is sent any more.
  var serverIsStopping = false

  var journal: WriteJournal
  /// Entries of the journal that the present connection has not written again yet.
  var replay: ArraySlice<WriteJournal.Entry> = []
  /// What the next flush has to tell.
  var untoldLoss: NBDClientFault?
  /// When the server last answered, or had nothing to answer.
  var lastProgress: UInt64 = 0
  /// No new connection came in time: why whatever is asked for fails until one comes.
  var overdue: NBDClientFault?
  private(set) var hasEnded = false
  /// Set when the process stops: what is not answered by then fails.
  var patienceEnd: UInt64?

  /// Bytes that may wait for the socket before further requests are encoded.
  static let outputByteCountMax = 4 << 20
  static let inputByteCount = 256 << 10
  /// How long an answer, or a new connection, is waited for in a process that stops.
  static let hurriedNanosecondsMax: UInt64 = 1_000_000_000
  /// How long the server's own goodbye is waited for.
  static let goodbyeNanosecondsMax: UInt64 = 1_000_000_000
  /// Receives before sending has its turn again.
  static let receivesMax = 16

  init(_ uri: NBDURI, _ options: ClientOptions, _ mailbox: Mailbox) {
    self.uri = uri
    self.options = options
    self.mailbox = mailbox
    opener = Opener(uri: uri, tls: options.tls, mailbox: mailbox)
    journal = WriteJournal(byteCountMax: options.reconnect?.replayByteCountMax ?? 0)
  }

  /// Runs to the end; `opened` learns how the first handshake went.
  func run(
    opened: CheckedContinuation<Result<ClientSession, NBDClientFault>, Never>
  ) {
    do throws(NBDClientFault) {
      let session = try openFirst()
      opened.resume(returning: .success(session))
    } catch {
      mailbox.end(error, closingFault: nil)
      return opened.resume(returning: .failure(error))
    }
    run { false }
  }

  /// Opens the first connection on the thread of the caller, who has to call `run` from then on.
  func open() throws(NBDClientFault) { _ = try openFirst() }

  /// Runs until `isEnough`, which is looked at whenever something may have changed, or to the end.
  func run(until isEnough: () -> Bool) {
    while !hasEnded {
      switch serve(until: isEnough) {
      case nil: return
      case .closed: return end(.closed)
      case .failed(let fault): return end(fault)
      case .lost(let fault):
        guard let reconnect = options.reconnect else { return end(fault) }
        if let fault = reopen(reconnect, after: fault) { return end(fault) }
      }
    }
  }

  private func openFirst() throws(NBDClientFault) -> ClientSession {
    let deadline = MonotonicClock.nanoseconds + UInt64(options.openSecondsMax) * 1_000_000_000
    let goal = ClientGoal(
      .enter(exportName: uri.exportName), contexts: options.contexts, modeMax: options.modeMax)
    var delay = 50
    while true {
      do throws(NBDClientFault) {
        guard
          case .session(let transport, let session, let rest) = try opener.open(
            goal, deadline: deadline)
        else { preconditionFailure("a list came where an export was to be entered") }
        self.session = session
        try adopt(transport, session, contextIDs: session.contextIDs, rest)
        return session
      } catch {
        guard options.keepsTryingToOpen, error.mayPass,
          MonotonicClock.nanoseconds < deadline
        else { throw error }
        try pause(milliseconds: delay, until: deadline)
        delay = min(delay * 2, 1_000)
      }
    }
  }

  /// Starts using a connection.
  func adopt(
    _ transport: Transport, _ session: ClientSession, contextIDs: [UInt32],
    _ rest: ArraySlice<UInt8>
  ) throws(NBDClientFault) {
    self.transport = transport
    isExtended = session.mode == .extended
    decoder = ReplyDecoder(mode: session.mode, contextIDs: contextIDs)
    output = []
    sentByteCount = 0
    input = [UInt8](repeating: 0, count: Self.inputByteCount)
    lastProgress = MonotonicClock.nanoseconds
    // Nothing was asked yet, so any byte is an answer to nobody.
    guard rest.isEmpty else { throw .violated(.unknownCookie(0)) }
  }

  /// Waits, and looks at the mailbox meanwhile.
  func pause(milliseconds: Int, until deadline: UInt64) throws(NBDClientFault) {
    let end = min(deadline, MonotonicClock.nanoseconds + UInt64(milliseconds) * 1_000_000)
    while true {
      takeMail()
      if let overdue { failQueue(overdue) }
      guard !isClosing else { throw .closed }
      let now = MonotonicClock.nanoseconds
      guard now < min(end, patienceEnd ?? .max) else { return }
      ByteSocket.wait(
        socket: -1, forOutput: false, bell: mailbox.bellDescriptor,
        milliseconds: Int32((end - now) / 1_000_000 + 1))
    }
  }

  /// Answers everything that is left. The socket closes with its transport.
  private func end(_ fault: NBDClientFault) {
    hasEnded = true
    let isConnected = transport != nil
    transport = nil
    takeMail()
    if !isConnected || fault != .closed, !journal.entries.isEmpty, untoldLoss == nil {
      untoldLoss = .writesLost("the connection was lost with acknowledged writes not flushed")
    }
    for flight in flights.values where !flight.isOrphan {
      if let submission = flight.submission { mailbox.answer(submission, .failure(fault)) }
    }
    flights = [:]
    failQueue(fault)
    mailbox.end(fault, closingFault: untoldLoss)
  }

  /// Answers what was not sent.
  func failQueue(_ fault: NBDClientFault) {
    for submission in queue[queueStart...] { mailbox.answer(submission, .failure(fault)) }
    queue = []
    queueStart = 0
  }
}

extension NBDClientFault {
  /// Whether trying again may help.
  var mayPass: Bool {
    switch self {
    case .unreachable, .lost, .refused, .timedOut: true
    case .unsupported, .insecure, .violated, .request, .failed, .writesLost, .exportChanged,
      .cancelled,
      .closed, .tooManyRequests:
      false
    }
  }
}
