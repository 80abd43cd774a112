// SPDX-License-Identifier: Apache-2.0
//
// Where all clients come in: it accepts them, negotiates with them, and leaves each with the loop
// of the export that it chose. One thread runs it, so that certificates, keys and slow or silent
// clients cost no guest anything.

import BlockTypes
import Glibc
import LinuxIO
import NBDProtocol

/// What Control and signals may ask of the reception, by its mailbox.
///
/// A completion is called once, on the reception's thread, and must not wait.
public enum ReceptionCommand: Sendable {
  /// The clients that negotiate, oldest first, and how many are here in all.
  case clients(@Sendable ([ClientStatus], ReceptionStatus) -> Void)
  /// Completes with false when no client of this number negotiates.
  case kick(client: UInt64, @Sendable (Bool) -> Void)
  /// Reads credentials and rules anew; completes with the reason when they stay as they were.
  case reload(@Sendable (String?) -> Void)
}

/// How many clients there are.
public struct ReceptionStatus: Sendable {
  public let connectionCount: Int
  public let connectionsMax: Int
  public let connectionTotal: UInt64
}

/// The front of the server.
public struct Reception: ~Copyable {
  /// What a descriptor is, in the upper half of its token.
  enum Source: UInt64 {
    case listener = 1
    case visitor
    case departure
    case signal
    case mailbox
    case ended

    func token(_ index: Int = 0) -> UInt64 { rawValue << 32 | UInt64(index) }
  }

  /// Bytes that one receive or one send moves.
  private static let scratchByteCount = 64 << 10
  /// How often the clocks of visitors are looked at, and that of a stop.
  private static let lookMilliseconds: Int32 = 1_000
  private static let stopLookMilliseconds: Int32 = 100
  /// Clients that negotiate at once; one more, and the oldest of them ends.
  static let visitorsMax = 1_024

  let plan: ReceptionPlan
  var rules: ReceptionRules
  /// Reads the rules anew.
  let reload: () throws -> ReceptionRules
  let entrances: [Entrance]
  let listeners: [Int32]
  let signals: Int32
  let mailbox: Mailbox<ReceptionCommand>
  /// Signalled when the loop of an export has ended.
  let ended: EndedCount

  var events: EventLoop
  let attendance: Attendance
  var visitors: FixedPool<Visitor>
  var buffers = BufferPool()
  let scratch: IOBuffer
  var connectionTotal: UInt64 = 0
  var isListening = true
  var isStopping = false
  var stopDeadline: UInt64 = 0

  /// Registers the listeners, which are bound, listening and non-blocking. `signals` is a signalfd.
  ///
  /// - Parameters:
  ///   - reload: returns what SIGHUP and `ReceptionCommand.reload` are to bring into force.
  ///   - ended: counts the loops that have ended.
  /// - Throws: `SystemError` when the kernel refuses.
  public init(
    plan: ReceptionPlan, entrances: [Entrance], attendance: Attendance, listeners: [Int32],
    signals: Int32, mailbox: Mailbox<ReceptionCommand>, ended: EndedCount,
    reload: @escaping () throws -> ReceptionRules
  ) throws {
    precondition(plan.rules.access.count == entrances.count, "an export has no access rule")
    let events = try EventLoop()
    for (index, listener) in listeners.enumerated() {
      try events.add(listener, .readable, token: Source.listener.token(index))
    }
    try events.add(attendance.eventDescriptor, .readable, token: Source.departure.token())
    try events.add(signals, .readable, token: Source.signal.token())
    try events.add(mailbox.eventDescriptor, .readable, token: Source.mailbox.token())
    try events.add(ended.eventDescriptor, .readable, token: Source.ended.token())
    guard let scratch = buffers.acquire(byteCount: Reception.scratchByteCount) else {
      throw SystemError(errno: ENOMEM, call: "mmap")
    }
    self.scratch = scratch
    visitors = FixedPool(capacity: Reception.visitorsMax)
    rules = plan.rules
    self.plan = plan
    self.reload = reload
    self.entrances = entrances
    self.attendance = attendance
    self.listeners = listeners
    self.signals = signals
    self.mailbox = mailbox
    self.ended = ended
    self.events = events
  }

  /// Serves until a signal has ended it and every export.
  public mutating func run() {
    while !(isStopping && visitors.count == 0 && ended.count == entrances.count) {
      let count = events.wait(timeoutMilliseconds: waitMilliseconds)
      for index in 0..<count {
        let (token, what) = events.event(index)
        dispatch(token, what)
      }
      endLateVisitors()
    }
  }

  private var waitMilliseconds: Int32 {
    if isStopping { return Reception.stopLookMilliseconds }
    return visitors.count > 0 || !isListening ? Reception.lookMilliseconds : -1
  }

  private mutating func dispatch(_ token: UInt64, _ what: EventLoop.Interest) {
    guard let source = Source(rawValue: token >> 32) else {
      preconditionFailure("an event came from nowhere")
    }
    let index = Int(token & 0xffff_ffff)
    switch source {
    case .listener: acceptAll(listeners[index])
    case .visitor: if visitors.isOccupied(index) { advance(index) }
    case .departure:
      attendance.takeEvent()
      seatThoseWhoWait()
      setListening(true)
    case .signal: signalArrived()
    case .mailbox: obeyMail()
    case .ended: ended.takeEvent()
    }
  }

  // MARK: Time

  private mutating func endLateVisitors() {
    // One who could not be accepted, for want of a descriptor say, gets another chance.
    if !isListening, !isStopping, attendance.hasRoom(max: plan.connectionsMax) {
      setListening(true)
    }
    guard visitors.count > 0 else { return }
    let now = MonotonicClock.nanoseconds
    let nanosecondsMax = UInt64(plan.limits.handshakeSecondsMax) * 1_000_000_000
    for place in 0..<visitors.capacity where visitors.isOccupied(place) {
      let isLate =
        !visitors[place].waitsForSeat
        && now - visitors[place].startNanoseconds >= nanosecondsMax
      if isLate || isStopping && now >= stopDeadline { end(place) }
    }
  }

  // MARK: The stop

  private mutating func signalArrived() {
    switch SignalQueue.take(from: signals) {
    case .reload: _ = renewRules()
    case .stop:
      guard !isStopping else {
        for entrance in entrances { entrance.stopOrder.give(.abandon) }
        stopDeadline = 0
        return
      }
      isStopping = true
      stopDeadline = MonotonicClock.nanoseconds + UInt64(StopState.millisecondsMax) * 1_000_000
      for listener in listeners { events.remove(listener) }
      for place in 0..<visitors.capacity where visitors.isOccupied(place) {
        visitors[place].handshake.isStopping = true
        // What the client sent before it could know is answered, be it with a refusal.
        advance(place)
        if visitors.isOccupied(place), visitors[place].hasNothingUnderWay { end(place) }
      }
      for entrance in entrances { entrance.stopOrder.give(.drain) }
    }
  }

  /// Brings into force what the files say now; returns why not, when they stay as they were.
  mutating func renewRules() -> String? {
    do {
      rules = try reload()
      return nil
    } catch {
      return "\(error)"
    }
  }
}
