// SPDX-License-Identifier: Apache-2.0
//
// One connection at work: mail in, requests out, answers in. This file performs socket I/O.

import LinuxIO
import NBDProtocol

extension Engine {
  /// Serves until the connection ends, one way or the other, or until `isEnough`: nil then.
  func serve(until isEnough: () -> Bool) -> End? {
    while true {
      takeMail()
      fillOutput()
      if let end = transmit() { return end }
      if let end = receive() { return end }
      if isEnough() { return nil }
      if let end = endOfIdleness() { return end }
      wait()
    }
  }

  /// Takes requests, cancellations and the wish to close from the mailbox.
  func takeMail() {
    let mail = mailbox.take()
    queue.append(contentsOf: mail.submissions)
    isClosing = mail.isClosing
    if mail.isHurried, patienceEnd == nil {
      patienceEnd = MonotonicClock.nanoseconds + Self.hurriedNanosecondsMax
    }
    for ticket in mail.cancelledTickets { cancel(ticket) }
  }

  /// Answers a request that is not wanted any more. What was sent stays sent: its answer is
  /// awaited and dropped.
  private func cancel(_ ticket: UInt64) {
    if let index = queue[queueStart...].firstIndex(where: { $0.ticket == ticket }) {
      mailbox.answer(queue.remove(at: index), .failure(.cancelled))
      return
    }
    for (cookie, flight) in flights {
      guard let submission = flight.submission, submission.ticket == ticket, !flight.isOrphan
      else { continue }
      flights[cookie]?.isOrphan = true
      mailbox.answer(submission, .failure(.cancelled))
      return
    }
  }

  /// Encodes what may be sent: first the journal, one by one, because writes may overlap; then
  /// the queue.
  private func fillOutput() {
    guard !serverIsStopping else { return }
    if let entry = replay.first {
      guard flights.isEmpty else { return }
      encode(
        entry.command, entry.flags, entry.offset, entry.length, entry.payload, submission: nil)
      return
    }
    while queueStart < queue.count, flights.count < options.requestsInFlightMax,
      output.count - sentByteCount < Self.outputByteCountMax
    {
      let submission = queue[queueStart]
      queueStart += 1
      guard submission.command != .flush || session?.export.flags.contains(.sendFlush) == true
      else {
        answerFlushHere(submission)
        continue
      }
      encode(
        submission.command, submission.flags, submission.offset, submission.length,
        submission.payload, submission: submission)
    }
    if queueStart > 0, queueStart == queue.count || queueStart > 1_024 {
      queue.removeFirst(queueStart)
      queueStart = 0
    }
  }

  /// Spec: proto.md, "NBD_FLAG_SEND_FLUSH": without it the command must not be sent. What the
  /// client itself knows of a loss is told all the same.
  private func answerFlushHere(_ submission: Submission) {
    if let untoldLoss {
      self.untoldLoss = nil
      return mailbox.answer(submission, .failure(untoldLoss))
    }
    mailbox.answer(submission, .success(.done))
  }

  private func encode(
    _ command: Command, _ flags: CommandFlags, _ offset: UInt64, _ length: UInt64,
    _ payload: [UInt8], submission: Submission?
  ) {
    var header = RequestHeader(
      flags: flags, command: command.rawValue, cookie: nextCookie, offset: offset, length: length)
    // The draft of extended headers: a WRITE says that its length is that of a payload.
    if isExtended, command == .write { header.flags.insert(.payloadLength) }
    nextCookie += 1
    if flights.isEmpty { lastProgress = MonotonicClock.nanoseconds }
    flights[header.cookie] = Flight(submission: submission, sequence: journal.nextSequence)
    decoder.expect(header)
    header.append(to: &output, isExtended: isExtended)
    output.append(contentsOf: payload)
  }

  /// Sends what the socket takes; nil while the connection lives.
  private func transmit() -> End? {
    while sentByteCount < output.count {
      switch transport?.send(output[sentByteCount...]) {
      case .bytes(let count): sentByteCount += count
      case .wouldBlock: return nil
      // What the server answered before it went is still to be read; then comes the end.
      case .closed:
        sentByteCount = output.count
        isCutOff = true
      case nil: return .lost(.lost("the connection was lost"))
      }
    }
    output.removeAll(keepingCapacity: output.capacity <= Self.outputByteCountMax)
    sentByteCount = 0
    if let transport, transport.hasUnsent, case .closed = transport.send([]) { isCutOff = true }
    return nil
  }

  /// Receives what is there and answers what is complete.
  private func receive() -> End? {
    for _ in 0..<Self.receivesMax {
      switch transport?.receive(into: &input) {
      case .bytes(let count):
        // After the goodbye nothing is an answer to anything.
        if goodbyeDeadline != nil { continue }
        lastProgress = MonotonicClock.nanoseconds
        do throws(ClientViolation) {
          try decoder.receive(input[..<count])
        } catch {
          // What was complete before the violation is as good as ever.
          _ = deliver()
          return .failed(.violated(error))
        }
        if let end = deliver() { return end }
        if count < input.count { return nil }
      case .wouldBlock:
        guard isCutOff else { return nil }
        return goodbyeDeadline != nil ? .closed : lost("the server closed the connection")
      case .closed, nil:
        if goodbyeDeadline != nil { return .closed }
        return lost(transport?.endReason ?? "the server closed the connection")
      }
    }
    return nil
  }

  private func lost(_ reason: String) -> End {
    .lost(.lost("\(reason) with \(flights.count) requests in flight"))
  }

  /// Hands out the answers that are complete.
  private func deliver() -> End? {
    for answer in decoder.takeAnswers() {
      guard let flight = flights[answer.cookie] else { continue }
      if isShutdown(answer.outcome) {
        // Spec: proto.md, "Error values": after ESHUTDOWN a client disconnects.
        if options.reconnect != nil {
          return .lost(.lost("the server is shutting down"))
        }
        serverIsStopping = true
      }
      flights.removeValue(forKey: answer.cookie)
      if let submission = flight.submission {
        deliver(answer.outcome, to: submission, flight)
      } else {
        finishReplay(answer.outcome)
      }
    }
    return nil
  }

  private func isShutdown(_ outcome: ServerAnswer.Outcome) -> Bool {
    if case .failed(let failure) = outcome { failure.errno == .ESHUTDOWN } else { false }
  }

  private func deliver(
    _ outcome: ServerAnswer.Outcome, to submission: Submission, _ flight: Flight
  ) {
    var result = Outcome.success(outcome)
    switch outcome {
    case .failed(let failure): result = .failure(.failed(submission.command, failure))
    case .done:
      switch submission.command {
      case .write, .trim, .writeZeroes:
        if options.reconnect != nil {
          journal.add(
            submission.command, submission.flags, offset: submission.offset,
            length: submission.length, payload: submission.payload)
        }
      case .flush:
        journal.flushed(below: flight.sequence)
        if let untoldLoss, !flight.isOrphan {
          result = .failure(untoldLoss)
          self.untoldLoss = nil
        }
      case .read, .cache, .blockStatus, .disconnect, .resize: break
      }
    case .data, .status: break
    }
    if !flight.isOrphan { mailbox.answer(submission, result) }
  }

  /// The first entry that was left of the journal is on the server again, or cannot be.
  private func finishReplay(_ outcome: ServerAnswer.Outcome) {
    if case .failed(let failure) = outcome {
      untoldLoss = .writesLost(
        "a write that was acknowledged before the connection was lost cannot be repeated:"
          + " \(failure)")
    }
    replay = replay.dropFirst()
  }

  /// Ends the connection when that was asked for and everything is answered.
  private func endOfIdleness() -> End? {
    if !flights.isEmpty {
      let now = MonotonicClock.nanoseconds
      if let secondsMax = options.replySecondsMax,
        now - lastProgress > UInt64(secondsMax) * 1_000_000_000
      {
        return .lost(.timedOut("the server did not answer within \(secondsMax) seconds"))
      }
      if let patienceEnd, now > patienceEnd, now - lastProgress > Self.hurriedNanosecondsMax {
        return .lost(.timedOut("the server does not answer, and nobody waits any more"))
      }
    }
    if let goodbyeDeadline {
      return MonotonicClock.nanoseconds < goodbyeDeadline ? nil : .closed
    }
    guard flights.isEmpty, output.isEmpty, transport?.hasUnsent != true else { return nil }
    let isIdle = queueStart == queue.count && replay.isEmpty
    guard serverIsStopping || (isClosing && isIdle) else { return nil }
    var bytes: [UInt8] = []
    RequestHeader(command: Command.disconnect.rawValue, cookie: nextCookie, offset: 0, length: 0)
      .append(to: &bytes, isExtended: isExtended)
    // 28 bytes into an empty socket; a server that is gone does not need them.
    _ = transport?.send(bytes[...])
    // Spec: proto.md, "Terminating the transmission phase": TLS is closed down before TCP.
    let isAnswered = transport?.sayGoodbye() == true
    if serverIsStopping { return .failed(.lost("the server is shutting down")) }
    guard isAnswered else { return .closed }
    goodbyeDeadline = MonotonicClock.nanoseconds + Self.goodbyeNanosecondsMax
    return nil
  }

  private func wait() {
    guard let transport else { return }
    // Nothing to wait for: the mail or an answer has made room for more.
    let canSend =
      !serverIsStopping && queueStart < queue.count && replay.isEmpty
      && flights.count < options.requestsInFlightMax && output.isEmpty
    let canReplay = !replay.isEmpty && flights.isEmpty
    guard !canSend, !canReplay, !transport.hasReceived else { return }
    let isTimed = goodbyeDeadline != nil || options.replySecondsMax != nil && !flights.isEmpty
    ByteSocket.wait(
      socket: transport.descriptor, forOutput: !output.isEmpty || transport.hasUnsent,
      bell: mailbox.bellDescriptor,
      milliseconds: patienceEnd != nil && !flights.isEmpty ? 100 : isTimed ? 1_000 : -1)
  }
}
