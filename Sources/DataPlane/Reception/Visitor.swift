// SPDX-License-Identifier: Apache-2.0
//
// A client that negotiates: its socket, its handshake, and what is to be sent to it.
// Spec: proto.md, "Handshake phase".

import BlockTypes
import LinuxIO
import NBDProtocol
import TLS

/// A client that is in no export yet.
struct Visitor: ~Copyable {
  /// Where it stands after it has been moved on.
  enum State {
    /// It waits for the client.
    case waits
    /// It asked for TLS, and the answer is on its way: a session is needed.
    case startsTLS
    /// TLS came up: the server has to say what this client may do.
    case isKnown
    /// All that it was told is sent; it enters an export.
    case enters(Negotiated)
    case ends
  }

  let number: UInt64
  let peer: PeerIdentity
  let startNanoseconds = MonotonicClock.nanoseconds
  var counters = ConnectionCounters()
  var handshake: ServerHandshake
  /// Why it may use no export, whoever it proves to be.
  let refusal: String?

  var socket: StreamSocket
  /// Vacant while bytes come and go as they are.
  var secure = FixedPool<SecureStream>(capacity: 1)
  /// Bytes for the client that are not sent, or not encrypted, yet.
  private var output: [UInt8] = []
  private var outputStart = 0
  /// What came behind the handshake.
  private(set) var leftover: [UInt8] = []
  /// It has negotiated and waits until there is room for it.
  var waitsForSeat = false
  /// What the event loop watches for.
  var interest: EventLoop.Interest = .readable
  var isWatched = true
  private var isGone = false
  /// Receives of one turn, so that a client with much to say holds up nobody.
  private static var receivesMax: Int { 4 }
  /// Answers that may wait before the client is heard on.
  private static var outputByteCountMax: Int { 1 << 20 }

  init(
    number: UInt64, peer: PeerIdentity, handshake: ServerHandshake, greeting: [UInt8],
    refusal: String?, socket: consuming StreamSocket
  ) {
    self.number = number
    self.peer = peer
    self.handshake = handshake
    self.refusal = refusal
    self.socket = socket
    output = greeting
  }

  /// Its place in `secure`, if it has a session.
  var isSecure: Bool { secure.isOccupied(0) }

  /// What was agreed on with TLS; nil without it.
  var tlsStatus: TLSStatus? { isSecure ? secure[0].status : nil }

  /// What is to be waited for.
  var wanted: EventLoop.Interest {
    var wanted: EventLoop.Interest = []
    if listens { wanted.insert(.readable) }
    if hasOutput { wanted.insert(.writable) }
    return wanted
  }

  /// Whether its bytes are wanted: no more than it takes answers for.
  private var listens: Bool {
    output.count - outputStart <= Visitor.outputByteCountMax
      && (handshake.outcome == .negotiating || isSecure && handshake.outcome == .startsTLS)
  }

  private var hasOutput: Bool {
    outputStart < output.count || isSecure && secure[0].hasCiphertext
  }

  /// Whether the client waits for no answer, and nothing that it began to send is half here.
  var hasNothingUnderWay: Bool { !hasOutput && !handshake.isMidMessage }

  // MARK: Moving on

  /// Takes what the client sent, answers it, and tells where it stands.
  mutating func advance(_ scratch: IOBuffer) -> State {
    if !transmit(scratch) { return .ends }
    var receiveCount = 0
    // What is decrypted already, or could be, the socket will not tell of.
    while listens, !isGone, receiveCount < Visitor.receivesMax || hasUndecrypted {
      receiveCount += 1
      switch isSecure ? receiveSecurely(scratch) : receivePlain(scratch) {
      case .wouldBlock: return endOfTurn()
      case .closed: isGone = true
      case .bytes(let count):
        if handshake.outcome == .startsTLS { return .isKnown }
        take(count, scratch)
        if !transmit(scratch) { return .ends }
      }
    }
    return endOfTurn()
  }

  private var hasUndecrypted: Bool { isSecure && secure[0].hasUndecrypted }

  private mutating func endOfTurn() -> State {
    switch handshake.outcome {
    case .negotiating: return isGone ? .ends : .waits
    case .startsTLS where isSecure: return isGone ? .ends : .waits
    case .startsTLS:
      // The socket is full of replies that the client did not read: nobody needs TLS like that.
      return isGone || hasOutput ? .ends : .startsTLS
    case .ready(let negotiated): return hasOutput ? .waits : .enters(negotiated)
    case .finished: return hasOutput && !isGone ? .waits : .ends
    case .hangUp: return .ends
    }
  }

  /// Feeds received bytes to the handshake, and queues what it answers.
  private mutating func take(_ count: Int, _ scratch: IOBuffer) {
    let consumed = scratch.withSpan(0, count) { handshake.receive($0) }
    if consumed < count {
      scratch.withSpan(consumed, count - consumed) { rest in
        for offset in 0..<rest.byteCount { leftover.append(rest.loadByte(at: offset)) }
      }
    }
    output.append(contentsOf: handshake.takeOutput())
  }

  private mutating func receivePlain(_ scratch: IOBuffer) -> StreamSocket.Transfer {
    let transfer = socket.receive(
      into: DiskQueue.Piece(scratch, 0, scratch.byteCount), then: .none)
    if case .bytes(let count) = transfer { counters.receivedByteCount += UInt64(count) }
    return transfer
  }

  // MARK: TLS

  /// Begins TLS: from now on every byte is of the session.
  mutating func startTLS(_ stream: consuming SecureStream) {
    guard secure.insert(stream) != nil else { preconditionFailure("a client has two sessions") }
  }

  /// Goes on with the options, now that it is known who the client is.
  mutating func continueOverTLS(access: [ExportAccess], refusal: String?) {
    handshake.continueOverTLS(access: access, refusal: refusal)
  }

  /// Receives ciphertext and decrypts it into `scratch`; `.bytes` also when TLS has just come up.
  private mutating func receiveSecurely(_ scratch: IOBuffer) -> StreamSocket.Transfer {
    let room = secure[0].roomForInput()
    if !secure[0].hasUndecrypted {
      guard room.byteCount > 0 else { return fail(scratch) }
      let transfer = socket.receive(into: room, then: .none)
      guard case .bytes(let count) = transfer else { return transfer }
      counters.receivedByteCount += UInt64(count)
      secure[0].tookInput(count)
    }
    if !secure[0].isUp {
      switch secure[0].continueHandshake() {
      case .bytes: return .bytes(0)
      case .wantsRead: return transmit(scratch) ? .wouldBlock : .closed
      case .wantsWrite, .closed, .failed: return fail(scratch)
      }
    }
    switch secure[0].decrypt(into: DiskQueue.Piece(scratch, 0, scratch.byteCount), then: .none) {
    case .bytes(let count): return .bytes(count)
    case .wantsRead: return .wouldBlock
    case .closed: return .closed
    case .wantsWrite, .failed: return fail(scratch)
    }
  }

  /// The session failed: the client is told by an alert, if the socket takes it.
  private mutating func fail(_ scratch: IOBuffer) -> StreamSocket.Transfer {
    secure[0].tellFailure()
    if secure[0].hasCiphertext { _ = sendCiphertext() }
    return .closed
  }

  // MARK: Out

  /// Sends as much as the socket takes; false when it takes nothing ever again.
  mutating func transmit(_ scratch: IOBuffer) -> Bool {
    isSecure ? transmitSecurely(scratch) : transmitPlainly(scratch)
  }

  private mutating func transmitPlainly(_ scratch: IOBuffer) -> Bool {
    while outputStart < output.count {
      let count = fill(scratch, upTo: scratch.byteCount)
      switch send(DiskQueue.Piece(scratch, 0, count)) {
      case .bytes(let sent): drop(sent)
      case .wouldBlock: return true
      case .closed: return false
      }
    }
    return true
  }

  private mutating func transmitSecurely(_ scratch: IOBuffer) -> Bool {
    while true {
      while secure[0].isUp, outputStart < output.count, secure[0].hasRoomForRecord {
        let count = fill(scratch, upTo: TLSSession.recordByteCountMax)
        guard secure[0].encrypt(DiskQueue.Piece(scratch, 0, count)) else { return false }
        drop(count)
      }
      guard secure[0].hasCiphertext else { return true }
      switch sendCiphertext() {
      case .bytes: continue
      case .wouldBlock: return true
      case .closed: return false
      }
    }
  }

  private mutating func sendCiphertext() -> StreamSocket.Transfer {
    let transfer = send(secure[0].ciphertext)
    if case .bytes(let count) = transfer { secure[0].sentCiphertext(count) }
    return transfer
  }

  private mutating func send(_ piece: DiskQueue.Piece) -> StreamSocket.Transfer {
    socket.beginSend()
    socket.gather(piece)
    let transfer = socket.send()
    if case .bytes(let count) = transfer { counters.sentByteCount += UInt64(count) }
    return transfer
  }

  /// Copies the next bytes of the output to `scratch`.
  private func fill(_ scratch: IOBuffer, upTo byteCountMax: Int) -> Int {
    let count = min(byteCountMax, output.count - outputStart)
    scratch.withMutableSpan(0, count) { room in
      for offset in 0..<count {
        room.storeBigEndian(output[outputStart + offset], at: offset)
      }
    }
    return count
  }

  private mutating func drop(_ byteCount: Int) {
    outputStart += byteCount
    guard outputStart == output.count else { return }
    output.removeAll(keepingCapacity: false)
    outputStart = 0
  }

  // MARK: The end

  /// Says goodbye to a client whose handshake ended in order, and gives back the memory. The socket
  /// is not waited for.
  mutating func close(_ buffers: inout BufferPool) {
    guard isSecure else { return }
    if handshake.outcome == .finished, secure[0].isUp {
      secure[0].sayGoodbye()
      if secure[0].hasCiphertext { _ = sendCiphertext() }
    }
    secure[0].close(&buffers)
  }
}

extension Arrival {
  /// A visitor whose handshake is over, on its way.
  convenience init(
    _ visitor: consuming Visitor, _ negotiated: Negotiated, seat: consuming Seat,
    session: consuming PackedStream?
  ) {
    self.init(
      number: visitor.number, peer: visitor.peer, startNanoseconds: visitor.startNanoseconds,
      negotiated: negotiated, leftover: visitor.leftover, counters: visitor.counters,
      socket: visitor.socket, seat: seat, session: session)
  }
}
