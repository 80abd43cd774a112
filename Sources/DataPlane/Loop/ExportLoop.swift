// SPDX-License-Identifier: Apache-2.0
//
// The loop of one export: requests in, replies out, disk completions in between. One thread runs
// it and owns everything in it. A tick takes all that is ready, submits once, sends once for each
// client. Clients come from the reception, and have negotiated.

import Bitmaps
import BlockTypes
import Glibc
import LinuxIO
import NBDProtocol

/// The server of one export.
public struct ExportLoop: ~Copyable {
  /// How the loop ended.
  public enum Outcome: Sendable {
    /// Every request was answered, every table is durable, the file is trimmed to its content.
    case drained
    /// The same, but bitmaps that the image keeps are left as in use: the text says why.
    case drainedWithoutBitmaps(String)
    /// A second signal ended it at once.
    case abandoned
    /// Tables could not be made durable: the text says why.
    case failed(String)
  }

  /// What a descriptor is, in the upper half of its token.
  enum Source: UInt64 {
    case arrival = 1
    case connection
    case pool
    case timer
    case signal
    case mailbox
    case disks

    func token(_ index: Int = 0) -> UInt64 { rawValue << 32 | UInt64(index) }
  }

  /// Becomes read-only when the image turns out to be damaged.
  var plan: ExportPlan
  let notice: ExportNotice
  var image: ImageStack
  var events: EventLoop
  let timer: IntervalTimer
  let arrivals: Mailbox<Arrival>
  let stopOrder: StopOrder
  let mailbox: Mailbox<ExportCommand>
  /// Control asked for something, to be obeyed at the end of the tick.
  var hasMail = false
  var counters = LoopCounters()
  let startNanoseconds = MonotonicClock.nanoseconds
  var connections: FixedPool<Connection>
  /// The sessions of those clients that speak TLS.
  var secure: SecureStreams
  /// Connections with replies to send, in this tick.
  var transmitList: [Int32] = []
  var stalledCount = 0
  /// Bytes of buffers that each connection may hold now, and that all of them hold.
  var bufferShare = 0
  var heldBufferByteCount = 0
  var stop = StopState()
  var spin: SpinPolicy
  var lone = LoneClient()
  /// What control waits to hear of the resizes that it asked for, by their slots.
  var resizeOrders: [Int: @Sendable (String?) -> Void] = [:]
  /// Changes of bitmaps that the image keeps, in order; the first may be under way.
  var bitmapOrders: [BitmapOrder] = []
  /// Changes of the image's file, in order; the first may be under way.
  var editOrders: [EditOrder] = []
  /// Seconds since tables last became dirty and stayed so.
  var dirtySeconds = 0

  /// Reads the tables of the images. What comes by `mailbox` is obeyed at the end of a tick.
  ///
  /// - Throws: `ImageError` when a table is damaged, `SystemError` when the kernel refuses.
  public init(plan: ExportPlan, mailbox: Mailbox<ExportCommand>) throws {
    let slotCount = plan.limits.connectionsMax * plan.limits.requestsPerConnectionMax + 4
    let image = try ImageStack(plan, slotCount: slotCount)
    let events = try EventLoop()
    let timer = try IntervalTimer(milliseconds: 1000)
    // There is a place for each: the reception counts clients, too.
    let arrivals = try Mailbox<Arrival>(messagesMax: plan.limits.connectionsMax)
    let stopOrder = try StopOrder()
    try events.add(arrivals.eventDescriptor, .readable, token: Source.arrival.token())
    try events.add(image.pool.eventDescriptor, .readable, token: Source.pool.token())
    if let descriptor = image.disks.remoteEventDescriptor {
      try events.add(descriptor, .readable, token: Source.disks.token())
    }
    try events.add(timer.descriptor, .readable, token: Source.timer.token())
    try events.add(stopOrder.eventDescriptor, .readable, token: Source.signal.token())
    try events.add(mailbox.eventDescriptor, .readable, token: Source.mailbox.token())

    notice = ExportNotice(ExportLoop.describe(plan, image.bitmaps))
    connections = FixedPool(capacity: plan.limits.connectionsMax)
    secure = SecureStreams(capacity: plan.limits.connectionsMax)
    spin = SpinPolicy(windowNanoseconds: plan.spinNanosecondsMax)
    self.plan = plan
    self.image = image
    self.events = events
    self.timer = timer
    self.arrivals = arrivals
    self.stopOrder = stopOrder
    self.mailbox = mailbox
  }

  /// The way in, for the reception.
  public var entrance: Entrance {
    Entrance(
      notice: notice, arrivals: arrivals, stopOrder: stopOrder,
      connectionsMax: plan.limits.connectionsMax)
  }

  static func describe(_ plan: ExportPlan, _ bitmaps: BitmapSet) -> ExportDescription {
    var traits = ExportTraits(
      // The bitmaps grow last, when a resize is done.
      byteCount: bitmaps.diskByteCount, isReadOnly: plan.isReadOnly,
      minimumBlockByteCount: plan.minimumBlockByteCount,
      preferredBlockByteCount: max(4096, plan.minimumBlockByteCount),
      maximumPayloadByteCount: plan.limits.payloadBytesMax,
      isRotational: false,
      // All connections share one table cache and one order of flushes, so a flush on one
      // covers what was answered on all.
      canMultiConn: plan.limits.connectionsMax > 1,
      canTrim: true, canWriteZeroes: true, canFastZero: true, canCache: true)
    traits.canResize = plan.clientsMayResize
    return ExportDescription(
      name: plan.name, description: plan.description, traits: traits,
      contexts: MetaContext.ofEveryImage
        + bitmaps.all.map { MetaContext.dirtyBitmap($0.name, number: $0.number) },
      revision: bitmaps.revision)
  }

  /// Serves until it is ordered to stop.
  public mutating func run() -> Outcome {
    while true {
      let count = waitForEvents()
      for index in 0..<count {
        let (token, what) = events.event(index)
        if let outcome = dispatch(token, what) { return outcome }
      }
      tick()
      if hasMail { obeyMail() }
      if let outcome = continueStopping() { return outcome }
    }
  }

  private mutating func dispatch(_ token: UInt64, _ what: EventLoop.Interest) -> Outcome? {
    guard let source = Source(rawValue: token >> 32) else {
      preconditionFailure("an event came from nowhere")
    }
    let index = Int(token & 0xffff_ffff)
    switch source {
    case .arrival: takeArrivals()
    case .connection: connectionEvent(index, what)
    case .pool: image.takePoolCompletions()
    case .disks: image.disks.takeRemoteEvent()
    case .timer: secondPassed()
    case .signal: return stopOrdered()
    case .mailbox: hasMail = true
    }
    return nil
  }

  /// Rounds of a tick after which replies are sent and sockets looked at, though more could go on:
  /// a flush of many tables, or a request as long as the disk, keeps the rounds coming.
  private static let roundsMax = 16

  /// Moves everything that can move, until nothing does or the others have waited long enough.
  mutating func tick() {
    image.ready.append(contentsOf: &image.deferred, &image.requests.slots)
    if !bitmapOrders.isEmpty { startBitmapOrder() }
    if !editOrders.isEmpty { startEditOrder() }
    var roundCount = 0
    while true {
      roundCount += 1
      image.runReady()
      image.startFlushIfWanted()
      makeReplies()
      image.disks.submit()
      let goesOn =
        image.takeDiskCompletions() || image.endDraining() || !image.ready.isEmpty
      if goesOn, roundCount < ExportLoop.roundsMax { continue }
      makeReplies()
      if image.overlapGuard.isUnreported { reportDamage() }
      transmitAll()
      if goesOn || !resumeStalled() { return }
    }
  }

  // MARK: Replies

  /// Turns finished requests into replies.
  private mutating func makeReplies() {
    while let index = image.finished.popFirst(&image.requests.slots) {
      image.requests.slots[index].stage = .replying
      if image.requests.slots[index].command == .resize { resizeEnded(index) }
      let connection = Int(image.requests.slots[index].connection)
      guard connection >= 0 else {
        if image.store.work.slot == Int32(index) { bitmapOrderEnded(index) }
        if image.standstill.slot == Int32(index) { editEnded() }
        image.retire(index)
        continue
      }
      countAnswer(connection, index)
      guard !connections[connection].isBroken else {
        retire(index)
        closeIfDone(connection)
        continue
      }
      appendReply(connection, index)
      wantTransmit(connection)
    }
  }

  mutating func wantTransmit(_ connection: Int) {
    if connections[connection].isInTransmitList || connections[connection].isBlockedOnSend {
      return
    }
    connections[connection].isInTransmitList = true
    transmitList.append(Int32(connection))
  }

  private mutating func transmitAll() {
    var index = 0
    while index < transmitList.count {
      let connection = Int(transmitList[index])
      connections[connection].isInTransmitList = false
      transmit(connection)
      index += 1
    }
    transmitList.removeAll(keepingCapacity: true)
  }

  // MARK: Time

  private mutating func secondPassed() {
    timer.take()
    counters.otherCallCount += 1
    for index in 0..<connections.capacity where connections.isOccupied(index) {
      if connections[index].hasOutstayed(plan.patience) { breakConnection(index) }
    }
    // Tables that nobody flushed are written after a while, so that a crash of this process
    // loses little even to a client that never flushes.
    if image.hasDirtyTables, !image.flush.isRunning {
      dirtySeconds += 1
      if dirtySeconds >= 2 {
        image.wantFlush()
        dirtySeconds = 0
      }
    } else {
      dirtySeconds = 0
    }
    stop.intervalsLeft -= 1
  }
}
