// SPDX-License-Identifier: Apache-2.0
//
// Clients that come, negotiate, and go on to an export or away. Spec: proto.md, "Newstyle
// negotiation", "NBD_OPT_STARTTLS".

import BlockTypes
import LinuxIO
import NBDProtocol
import TLS

extension Reception {
  mutating func acceptAll(_ listener: Int32) {
    while !isStopping {
      guard attendance.hasRoom(max: plan.connectionsMax) else { return setListening(false) }
      do throws(SystemError) {
        guard let socket = try StreamSocket.accept(from: listener) else { return }
        open(socket)
      } catch {
        // Out of descriptors, say, which the kernel also tells when nobody waits. A client of an
        // export gives one back when it leaves, and who has been silent for long has to go.
        guard endOldest(nanosecondsMin: Reception.silenceNanosecondsMin) else {
          attendance.awaitDeparture()
          return setListening(false)
        }
      }
    }
  }

  /// Who has been negotiating for so long may have to go when descriptors run out.
  private static var silenceNanosecondsMin: UInt64 { 1_000_000_000 }

  /// Makes room for somebody new by ending the one who has been negotiating for longest; false when
  /// nobody is. Silent clients get in the way of nobody, however many they are: who has something
  /// to say has said it before others have filled all places.
  private mutating func endOldest(nanosecondsMin: UInt64 = 0) -> Bool {
    var oldest: Int?
    for place in 0..<visitors.capacity where visitors.isOccupied(place) {
      guard let other = oldest else {
        oldest = place
        continue
      }
      if visitors[place].number < visitors[other].number { oldest = place }
    }
    guard let oldest,
      MonotonicClock.nanoseconds - visitors[oldest].startNanoseconds >= nanosecondsMin
    else { return false }
    end(oldest)
    return true
  }

  mutating func setListening(_ listens: Bool) {
    guard listens != isListening, !isStopping else { return }
    isListening = listens
    for (index, listener) in listeners.enumerated() {
      events.change(listener, listens ? .readable : [], token: Source.listener.token(index))
    }
  }

  private mutating func open(_ socket: consuming StreamSocket) {
    let descriptor = socket.descriptor
    let peer = PeerIdentity(of: descriptor)
    connectionTotal += 1
    let access = access(Caller(peer: peer, tls: nil))
    let refusal = refusalAtTheDoor(peer) ?? Reception.commonRefusal(access)
    var handshake = ServerHandshake(
      exports: entrances.map(\.notice.current), limits: plan.limits,
      listIsAllowed: plan.listsExports, tls: rules.tls?.policy ?? .off, access: access,
      refusal: refusal)
    // Without negotiation no word can be said to one who is not let in.
    if plan.speaksOldstyle, refusal != nil || access[0] != .open { return }
    let greeting = plan.speaksOldstyle ? handshake.startOldstyle() : handshake.start()
    if visitors.count == visitors.capacity { _ = endOldest() }
    let visitor = Visitor(
      number: connectionTotal, peer: peer, handshake: handshake, greeting: greeting,
      refusal: refusal, socket: socket)
    guard let place = visitors.insert(visitor) else {
      preconditionFailure("a client was accepted though the table is full")
    }
    do throws(SystemError) {
      try events.add(descriptor, .readable, token: Source.visitor.token(place))
    } catch {
      visitors[place].isWatched = false
      return end(place)
    }
    advance(place)
  }

  /// Moves a client on as far as it can go.
  mutating func advance(_ place: Int) {
    while true {
      switch visitors[place].advance(scratch) {
      case .waits: return watch(place)
      case .startsTLS:
        guard startTLS(place) else { return end(place) }
      case .isKnown: admitOverTLS(place)
      case .enters(let negotiated): return enter(place, negotiated)
      case .ends: return end(place)
      }
    }
  }

  // MARK: TLS

  private mutating func startTLS(_ place: Int) -> Bool {
    guard let credentials = rules.tls?.credentials else {
      // A reload turned TLS off between the greeting and the option.
      return false
    }
    do throws(TLSFault) {
      guard let stream = SecureStream(try TLSSession(credentials), &buffers) else { return false }
      visitors[place].startTLS(stream)
      return true
    } catch {
      return false  // no memory
    }
  }

  private mutating func admitOverTLS(_ place: Int) {
    let caller = Caller(peer: visitors[place].peer, tls: visitors[place].tlsStatus?.peer)
    let access = access(caller)
    visitors[place].continueOverTLS(
      access: access, refusal: visitors[place].refusal ?? Reception.commonRefusal(access))
  }

  // MARK: Who may do what

  /// What a client may do with each export now.
  private func access(_ caller: Caller) -> [ExportAccess] {
    entrances.indices.map { index in
      let access = rules.access[index](caller)
      guard access == .open, isFull(index) else { return access }
      return .refused(reason: "\(entrances[index].connectionsMax) clients use this export")
    }
  }

  private func refusalAtTheDoor(_ peer: PeerIdentity) -> String? {
    guard attendance.count(of: peer) >= plan.connectionsPerPeerMax else { return nil }
    return "\(plan.connectionsPerPeerMax) connections from the same place are open"
  }

  /// Why a client may use nothing at all, in the words of the first export; nil when it may.
  private static func commonRefusal(_ access: [ExportAccess]) -> String? {
    var first: String?
    for one in access {
      guard case .refused(let reason) = one else { return nil }
      first = first ?? reason
    }
    return first
  }

  // MARK: Into an export

  /// Leaves the client with the loop of its export.
  private mutating func enter(_ place: Int, _ negotiated: Negotiated) {
    // Others may have come in while it negotiated.
    let peer = visitors[place].peer
    guard !isFull(negotiated.exportIndex), refusalAtTheDoor(peer) == nil else { return end(place) }
    guard attendance.hasRoom(max: plan.connectionsMax) else {
      visitors[place].waitsForSeat = true
      return watch(place)
    }
    unwatch(place)
    var visitor = visitors.take(place)
    var session: PackedStream?
    if visitor.isSecure { session = visitor.secure.take(0).packed(&buffers) }
    let seat = Seat(attendance, peer, export: negotiated.exportIndex)
    let arrival = Arrival(visitor, negotiated, seat: seat, session: session)
    let isPosted = entrances[negotiated.exportIndex].arrivals.post(arrival)
    precondition(isPosted, "an export has more arrivals than there are seats")
  }

  /// Lets those in who wait for a seat, as far as there are any.
  mutating func seatThoseWhoWait() {
    for place in 0..<visitors.capacity
    where visitors.isOccupied(place) && visitors[place].waitsForSeat {
      visitors[place].waitsForSeat = false
      advance(place)
    }
  }

  private func isFull(_ index: Int) -> Bool {
    attendance.count(inExport: index) >= entrances[index].connectionsMax
  }

  // MARK: Waiting and the end

  private mutating func watch(_ place: Int) {
    let wanted = visitors[place].wanted
    guard wanted != visitors[place].interest else { return }
    visitors[place].interest = wanted
    events.change(
      visitors[place].socket.descriptor, wanted, token: Source.visitor.token(place))
  }

  private mutating func unwatch(_ place: Int) {
    guard visitors[place].isWatched else { return }
    visitors[place].isWatched = false
    events.remove(visitors[place].socket.descriptor)
  }

  mutating func end(_ place: Int) {
    unwatch(place)
    visitors[place].close(&buffers)
    visitors.remove(place)
  }
}
