// SPDX-License-Identifier: Apache-2.0
//
// The server of the control socket: a thread that waits for descriptors and for nothing else, so
// that no client holds up another, nor the export.

import Bitmaps
import DataPlane
import ImageTools
import LinuxIO

/// Reads lines, asks the export, writes lines. One thread owns it.
final class ControlServer {
  static let connectionsMax = 16
  /// Questions that the export has not answered; those of connections that are gone count, too.
  /// One place of the inbox is kept for the stop.
  static let questionsMax = inboxMax - 1
  static let inboxMax = 64
  /// Lines and transfers of one connection before the others have their turn.
  static let stepsMax = 64

  private let listener: ListeningSocket
  private let desk: OversightDesk
  private let inbox: Mailbox<ControlMessage>
  private var events: EventLoop
  private var connections = FixedPool<ControlConnection>(capacity: connectionsMax)
  private var lastSerial: UInt64 = 0
  private var questionCount = 0
  private var isListening = true

  private static let listenerToken: UInt64 = 1 << 32
  private static let inboxToken: UInt64 = 2 << 32

  init(
    _ listener: ListeningSocket, _ desk: OversightDesk, inbox: Mailbox<ControlMessage>
  ) throws(SystemError) {
    self.listener = listener
    self.desk = desk
    self.inbox = inbox
    events = try EventLoop()
    try events.add(listener.descriptor, .readable, token: ControlServer.listenerToken)
    try events.add(inbox.eventDescriptor, .readable, token: ControlServer.inboxToken)
  }

  /// Serves until it is told to stop.
  func run() {
    while true {
      let count = events.wait(timeoutMilliseconds: isListening ? -1 : 1_000)
      setListening(true)
      for number in 0..<count {
        let (token, what) = events.event(number)
        switch token {
        case ControlServer.listenerToken: acceptAll()
        case ControlServer.inboxToken: if takeMessages() { return }
        default: connectionEvent(Int(token), what)
        }
      }
    }
  }

  // MARK: Clients that come

  private func acceptAll() {
    // One for each place and some to refuse; what else waits is reported again.
    for _ in 0..<2 * ControlServer.connectionsMax {
      do throws(SystemError) {
        guard let socket = try ByteSocket.accept(from: listener.descriptor) else { return }
        open(socket)
      } catch {
        // Out of descriptors, say: look again in a second.
        setListening(false)
        return
      }
    }
  }

  private func setListening(_ listens: Bool) {
    guard listens != isListening else { return }
    isListening = listens
    events.change(
      listener.descriptor, listens ? .readable : [], token: ControlServer.listenerToken)
  }

  private func open(_ socket: consuming ByteSocket) {
    guard connections.count < connections.capacity else {
      let refusal = ControlAnswer.refusal(
        "\(ControlServer.connectionsMax) control connections are open, and there may be no more")
      _ = socket.send(Array("\(refusal.line)\n".utf8)[...])
      return
    }
    lastSerial += 1
    let descriptor = socket.descriptor
    guard let place = connections.insert(ControlConnection(socket: socket, serial: lastSerial))
    else { preconditionFailure("a control connection was accepted though the table is full") }
    do throws(SystemError) {
      try events.add(descriptor, .readable, token: UInt64(place))
    } catch {
      connections.remove(place)
    }
  }

  // MARK: Lines

  private func connectionEvent(_ place: Int, _ what: EventLoop.Interest) {
    guard connections.isOccupied(place) else { return }
    if !what.isDisjoint(with: .failed) {
      // Reported again and again. What was sent before is still obeyed.
      unwatch(place)
    }
    advance(place)
  }

  /// Moves a connection on until it has to wait for the socket or for the export.
  private func advance(_ place: Int) {
    for _ in 0..<ControlServer.stepsMax {
      switch connections[place].transmit() {
      case .failed: return close(place)
      case .wouldBlock: return waitFor(place, .writable)
      case .done: break
      }
      if connections[place].isEnding { return close(place) }
      if connections[place].isWaiting { return watch(place, []) }
      switch connections[place].takeLine() {
      case .line(let line): obey(place, line)
      case .tooLong:
        refuse(
          place, "the line is longer than \(ControlConnection.lineByteCountMax) bytes", ends: true)
      case .ended(let isCut):
        guard isCut else { return close(place) }
        refuse(place, "the last line has no line feed", ends: true)
      case .needsMore:
        switch connections[place].receive() {
        case .done: break
        case .failed: return close(place)
        case .wouldBlock: return waitFor(place, .readable)
        }
      }
    }
    // The socket takes bytes, so its turn comes again at once.
    waitFor(place, .writable)
  }

  private func obey(_ place: Int, _ line: [UInt8]) {
    do throws(RequestFault) {
      try ask(place, try ControlRequest(parsing: line))
    } catch {
      refuse(place, error.reason, ends: false)
    }
  }

  private func refuse(_ place: Int, _ reason: String, ends: Bool) {
    connections[place].append(line: ControlAnswer.refusal(reason).line)
    if ends { connections[place].isEnding = true }
  }

  private func ask(_ place: Int, _ request: ControlRequest) throws(RequestFault) {
    guard questionCount < ControlServer.questionsMax,
      try post(request, place, connections[place].serial)
    else {
      return refuse(place, "too many questions wait for an answer", ends: false)
    }
    questionCount += 1
    connections[place].isWaiting = true
  }

  /// Asks whom the question concerns; the answer comes by the inbox, from the thread of the last
  /// one who knew a part of it. Returns false when a mailbox is full: then no answer comes.
  private func post(
    _ request: ControlRequest, _ place: Int, _ serial: UInt64
  ) throws(RequestFault) -> Bool {
    let inbox = inbox
    let deliver: @Sendable (ControlAnswer) -> Void = { answer in
      let isPosted = inbox.post(.answer(place: place, serial: serial, answer))
      precondition(isPosted, "the control socket has more answers than questions")
    }
    let exports = desk.exports.map(\.mailbox)
    switch request {
    case .status(let name):
      return try desk.export(named: name).post(.status { deliver(.status($0)) })
    case .exports:
      let names = desk.exports.map(\.name)
      let all = Gathering<ExportStatus>(count: exports.count) { parts in
        let ordered = names.compactMap { name in parts.first { $0.name == name } }
        deliver(.exports(ordered))
      }
      return exports.allSatisfy { $0.post(.status { all.add($0) }) }
    // No mailbox can be full here: it has more places than there are questions.
    // The reception first, and the exports when it has answered: who goes on meanwhile from one to
    // the other is seen in both rather than in none.
    case .clients:
      return desk.reception.post(
        .clients { visitors, reception in
          let all = Gathering<[ClientStatus]>(count: exports.count) { parts in
            deliver(.clients(visitors, parts, reception))
          }
          for export in exports where !export.post(.clients { all.add($0) }) { all.add([]) }
        })
    case .kick(let client):
      let answer: @Sendable (Bool) -> Void = { isDone in
        deliver(isDone ? .kicked(client: client) : .refusal("there is no client \(client)"))
      }
      return desk.reception.post(
        .kick(client: client) { isDone in
          guard !isDone else { return answer(true) }
          let all = Gathering<Bool>(count: exports.count) { answer($0.contains(true)) }
          for export in exports where !export.post(.kick(client: client) { all.add($0) }) {
            all.add(false)
          }
        })
    case .reload:
      return desk.reception.post(
        .reload { reason in
          deliver(reason.map { .refusal("all stays as it was: \($0)") } ?? .reloaded)
        })
    case .bitmaps(let name):
      return try desk.export(named: name).post(.bitmaps { deliver(.bitmaps($0)) })
    case .resize(let byteCount, let name):
      return try desk.export(named: name).post(
        .resize(byteCount: byteCount) { reason in
          deliver(reason.map { .refusal($0) } ?? .resized(byteCount: byteCount))
        })
    case .snapshots(let name):
      return try desk.export(named: name).post(
        .snapshots { table in
          deliver(
            table.map { .snapshots($0.entries.map(SnapshotRow.init)) }
              ?? .refusal("the snapshot table is damaged; check the image (strata check)"))
        })
    case .changeSnapshot(let action, let name):
      return try desk.export(named: name).post(
        .edit(action.edit) { outcome, heldNanoseconds in
          switch outcome {
          case .done(let id):
            deliver(.snapshotChanged(id: id, heldNanoseconds: heldNanoseconds))
          case .failed(let reason, _): deliver(.refusal(reason))
          }
        })
    case .changeBitmap(let action, let name):
      return try desk.export(named: name).post(change([action], deliver))
    case .transaction(let actions, let name):
      return try desk.export(named: name).post(change(actions, deliver))
    }
  }

  private func change(
    _ actions: [BitmapAction], _ deliver: @escaping @Sendable (ControlAnswer) -> Void
  ) -> ExportCommand {
    .changeBitmaps(actions) { fault in
      deliver(fault.map { .refusal($0.reason) } ?? .done(actionCount: actions.count))
    }
  }

  // MARK: Answers

  /// Hands out what the export answered. Returns whether the end was among it.
  private func takeMessages() -> Bool {
    for message in inbox.takeAll() {
      switch message {
      case .stop: return true
      case .answer(let place, let serial, let answer):
        questionCount -= 1
        guard connections.isOccupied(place), connections[place].serial == serial else { continue }
        connections[place].isWaiting = false
        connections[place].append(line: answer.line)
        advance(place)
      }
    }
    return false
  }

  // MARK: Waiting and the end

  /// Waits for the socket; one that has failed will never do what is waited for.
  private func waitFor(_ place: Int, _ wanted: EventLoop.Interest) {
    guard connections[place].isWatched else { return close(place) }
    watch(place, wanted)
  }

  private func watch(_ place: Int, _ wanted: EventLoop.Interest) {
    guard connections[place].isWatched, wanted != connections[place].interest else { return }
    connections[place].interest = wanted
    events.change(connections[place].socket.descriptor, wanted, token: UInt64(place))
  }

  private func unwatch(_ place: Int) {
    guard connections[place].isWatched else { return }
    connections[place].isWatched = false
    events.remove(connections[place].socket.descriptor)
  }

  private func close(_ place: Int) {
    unwatch(place)
    connections.remove(place)
  }
}
