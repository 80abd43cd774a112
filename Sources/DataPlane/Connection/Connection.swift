// SPDX-License-Identifier: Apache-2.0
//
// One client: its socket, what of its byte stream is not understood yet, and its replies.
// Spec: proto.md, "Protocol phases".

import BlockTypes
import LinuxIO
import NBDProtocol

/// A connected client.
struct Connection: ~Copyable {
  enum Phase {
    case transmission
    /// No more requests are read; what was read is answered, then the socket closes.
    case finishing
  }

  /// Bytes that are received at once. More than 128 KiB gave nothing when measured.
  static let receiveByteCount = 128 << 10

  /// Counts the connections of the process from 1 on.
  let number: UInt64
  let peer: PeerIdentity
  let startNanoseconds: UInt64
  var counters: ConnectionCounters
  /// Given up when the connection closes.
  private let seat: Seat

  var socket: StreamSocket
  var phase: Phase = .transmission
  /// The rules that the handshake ended with.
  var rules: TransmissionRules
  /// The shape of headers in both directions, as the handshake agreed on it.
  let framing: ReplyFraming
  let headerByteCount: Int
  var replies: ReplyQueue
  private var sendRoom = SendRoom()
  /// The place of its TLS session; -1 while its bytes come and go as they are.
  var securePlace: Int32 = -1

  /// Received bytes `received ..< receivedEnd` are not understood yet.
  var buffer: IOBuffer
  var received = 0
  var receivedEnd = 0

  /// The slot whose payload is arriving; -1 for none.
  var payloadSlot: Int32 = -1
  /// Bytes of the payload of a refused request still to be thrown away, and its reply.
  var drainByteCount: UInt64 = 0
  var drainError: NBDErrno = .none
  var drainIdentity = RequestIdentity(cookie: 0, offset: 0)
  var drainCommand: UInt16 = 0

  /// Requests with a slot, and the bytes of their buffers.
  var requestCount = 0
  var bufferByteCount = 0
  /// The next request waits for a slot or for buffers.
  var isStalled = false
  /// What the event loop watches for.
  var interest: EventLoop.Interest = .readable
  /// What the connection had done at the last tick of the second timer, and ticks since then.
  private var doneAtLastTick: UInt64 = 0
  private var idleSeconds = 0
  /// The event loop watches the socket; it does not once the client has gone.
  var isWatched = true
  /// The socket takes no more bytes for now.
  var isBlockedOnSend = false
  /// The socket failed; nothing can be sent any more.
  var isBroken = false
  /// In the list of connections that have something to send.
  var isInTransmitList = false

  /// A client that has negotiated. `buffer` gets what it sent behind its handshake.
  init(
    _ arrival: Arrival, socket: consuming StreamSocket, rules: TransmissionRules,
    replies: consuming ReplyQueue, buffer: IOBuffer
  ) {
    number = arrival.number
    peer = arrival.peer
    startNanoseconds = arrival.startNanoseconds
    counters = arrival.counters
    seat = arrival.takeSeat()
    self.socket = socket
    self.rules = rules
    framing = rules.negotiated.framing
    headerByteCount =
      rules.negotiated.extendedHeaders ? RequestHeader.extendedByteCount : RequestHeader.byteCount
    self.replies = replies
    self.buffer = buffer
    let leftover = arrival.leftover
    precondition(leftover.count <= buffer.byteCount, "a client left over more than it could send")
    buffer.withMutableSpan(0, leftover.count) { room in
      for offset in 0..<leftover.count { room.storeBigEndian(leftover[offset], at: offset) }
    }
    receivedEnd = leftover.count
  }

  /// Decodes the header that starts the bytes not understood yet, of which enough are there; nil
  /// when it does not start with its magic.
  func nextHeader() -> RequestHeader? {
    let isExtended = framing == .extended
    return buffer.withSpan(received, headerByteCount) {
      isExtended
        ? RequestHeader(decodingExtended: $0, at: 0) : RequestHeader(decoding: $0, at: 0)
    }
  }

  /// Decodes the payload of `byteCount` bytes behind the header that `nextHeader` returns.
  func nextStatusPayload(_ byteCount: Int) -> BlockStatusPayload? {
    let selected = rules.negotiated.contexts
    return buffer.withSpan(received + headerByteCount, byteCount) {
      BlockStatusPayload(decoding: $0, at: 0, byteCount: byteCount, selected: selected)
    }
  }

  /// Whether the client waits for no answer, and nothing that it began to send is half here.
  var hasNothingUnderWay: Bool {
    switch phase {
    case .transmission:
      replies.isEmpty && requestCount == 0 && drainByteCount == 0 && !isStalled
    case .finishing: true
    }
  }

  /// Counts a second, and tells whether the client did nothing for longer than it may.
  mutating func hasOutstayed(_ patience: ClientPatience) -> Bool {
    let done = counters.receivedByteCount &+ counters.sentByteCount
    if done != doneAtLastTick {
      doneAtLastTick = done
      idleSeconds = 0
      return false
    }
    idleSeconds += 1
    if isBlockedOnSend {
      guard let max = patience.unreadSecondsMax else { return false }
      return idleSeconds > max
    }
    // Who waits for the disk is not idle.
    guard requestCount == 0, let max = patience.idleSecondsMax else { return false }
    return idleSeconds > max
  }

  /// Whether the client may hold another request with a buffer of `byteCount`.
  /// All buffers of a connection have to be within `room` bytes, but for a single request.
  func hasShare(_ byteCount: Int, of room: Int, _ limits: RequestLimits) -> Bool {
    if requestCount == 0 { return true }
    return requestCount < limits.requestsPerConnectionMax
      && bufferByteCount + byteCount <= room
  }

  /// Makes room in the socket for what the client reads.
  mutating func adaptSendRoom(readByteCount: UInt64) {
    if let room = sendRoom.learn(readByteCount: readByteCount) { socket.setSendRoom(room) }
  }

  /// Gathers the front of the replies into the socket's next send.
  mutating func gatherReplies() { replies.gather(into: &socket) }
}
