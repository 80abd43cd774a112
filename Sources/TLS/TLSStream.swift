// SPDX-License-Identifier: Apache-2.0
//
// A session with the bytes that wait on either side of it, for ends whose speed is not that of the
// data plane. This file performs no I/O: its owner moves ciphertext to and from a socket.

/// One end of a TLS connection: ciphertext in and out, plain text in and out.
public struct TLSStream: ~Copyable {
  /// Ciphertext that waits for the socket, beyond which nothing more is encrypted.
  public static var outputByteCountMax: Int { 256 << 10 }

  private var session: TLSSession
  /// Of the peer, from `inputStart` on.
  private var input: [UInt8] = []
  private var inputStart = 0
  /// For the peer, from `outputStart` on.
  private var output: [UInt8] = []
  private var outputStart = 0
  private var room = [UInt8](repeating: 0, count: TLSSession.sendRoomByteCount)

  public init(_ session: consuming TLSSession) { self.session = session }

  /// Takes ciphertext of the peer.
  public mutating func take(_ ciphertext: ArraySlice<UInt8>) {
    if inputStart == input.count {
      input.removeAll(keepingCapacity: true)
      inputStart = 0
    }
    input.append(contentsOf: ciphertext)
  }

  /// Ciphertext for the peer.
  public var waiting: ArraySlice<UInt8> { output[outputStart...] }

  public var hasWaiting: Bool { outputStart < output.count }

  /// Forgets the first bytes of `waiting`: they are on their way.
  public mutating func forget(_ count: Int) {
    outputStart += count
    precondition(outputStart <= output.count, "more was sent than was waiting")
    guard outputStart == output.count else { return }
    output.removeAll(keepingCapacity: true)
    outputStart = 0
  }

  /// Whether `receive` may have something without further ciphertext.
  public var hasReceived: Bool {
    inputStart < input.count || session.pendingByteCount > 0 || session.hasUntoldEnd
  }

  /// Goes on with the handshake: `.bytes(0)` when it is over, else `.wantsRead` or `.failed`.
  /// In each case there may be something to send.
  public mutating func handshake() -> TLSSession.Progress {
    while true {
      let progress = exchange { session, source, room in session.handshake(source, &room) }
      if progress != .wantsWrite { return progress }
    }
  }

  /// Who the peer is. The handshake is over.
  public func peer() -> TLSPeer { session.peer() }

  /// "TLS1.3"
  public var version: String { session.version }

  /// Decrypts to the start of `plaintext`: `.bytes`, `.wantsRead`, `.closed` or `.failed`. The
  /// peer is told of a failure, if its owner sends what waits.
  public mutating func receive(into plaintext: inout [UInt8]) -> TLSSession.Progress {
    let step: TLSSession.Step
    do {
      let ciphertext = input
      let source = unsafe ciphertext.span.bytes.extracting(inputStart..<ciphertext.count)
      var target = plaintext.mutableSpan
      // SAFETY: here and below the elements are bytes, so any bytes may be read and written.
      var bytes = unsafe target.mutableBytes
      step = session.receive(source, into: &bytes)
    }
    inputStart += step.takenByteCount
    if case .failed = step.progress {
      _ = exchange { session, _, room in session.tellFailure(&room) }
    }
    return step.progress
  }

  /// Encrypts the beginning of `plaintext` and returns how much that was: 0 when too much waits.
  public mutating func send(_ plaintext: ArraySlice<UInt8>) throws(TLSFault) -> Int {
    var count = 0
    while count < plaintext.count, output.count - outputStart < TLSStream.outputByteCountMax {
      let piece = plaintext.dropFirst(count).prefix(TLSSession.recordByteCountMax)
      let progress = exchange { session, _, room in
        unsafe session.send(piece.span.bytes, &room)
      }
      if case .failed(let fault) = progress { throw fault }
      count += piece.count
    }
    return count
  }

  /// Says that nothing more comes. What waits has to be sent still.
  public mutating func sayGoodbye() {
    // A session that cannot say it is one whose peer does not listen.
    _ = exchange { session, _, room in session.sayGoodbye(&room) }
  }

  /// One call of the session with the peer's bytes and room for ours.
  private mutating func exchange(
    _ call: (inout TLSSession, RawSpan, inout MutableRawSpan) -> TLSSession.Step
  ) -> TLSSession.Progress {
    let step: TLSSession.Step
    // The session and its room are changed at once, which only locals can be.
    var room: [UInt8] = []
    swap(&room, &self.room)
    do {
      let ciphertext = input
      let source = unsafe ciphertext.span.bytes.extracting(inputStart..<ciphertext.count)
      var target = room.mutableSpan
      var bytes = unsafe target.mutableBytes
      step = call(&session, source, &bytes)
    }
    swap(&room, &self.room)
    inputStart += step.takenByteCount
    output.append(contentsOf: self.room[..<step.putByteCount])
    return step.progress
  }
}
