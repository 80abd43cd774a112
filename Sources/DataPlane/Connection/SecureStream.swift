// SPDX-License-Identifier: Apache-2.0
//
// The stage between a socket and the protocol for clients that speak TLS: ciphertext on its way in
// and out, and the session between. This file performs no I/O.

import BlockTypes
import LinuxIO
import TLS

/// One client's session with its ciphertext.
struct SecureStream: ~Copyable {
  /// Ciphertext that is received at once: a few records.
  static let inputByteCount = 128 << 10
  /// Ciphertext that waits for the socket: several records in one send.
  static let outputByteCount = 256 << 10
  /// The same for clients that negotiate, of whom nothing is known yet. The output holds all that a
  /// server says in one go of the handshake of TLS, certificates included.
  static let firstInputByteCount = 16 << 10
  static let firstOutputByteCount = 64 << 10

  private var session: TLSSession
  /// Ciphertext `inputStart ..< inputEnd` is not decrypted yet.
  private var input: IOBuffer
  private var inputStart = 0
  private var inputEnd = 0
  /// Ciphertext `outputStart ..< outputEnd` is not sent yet.
  private var output: IOBuffer
  private var outputStart = 0
  private var outputEnd = 0
  /// What the handshake agreed on; nil until it is over.
  private(set) var status: TLSStatus?
  private(set) var isUp = false

  /// nil when there is no memory.
  init?(_ session: consuming TLSSession, _ buffers: inout BufferPool) {
    guard let input = buffers.acquire(byteCount: SecureStream.firstInputByteCount) else {
      return nil
    }
    guard let output = buffers.acquire(byteCount: SecureStream.firstOutputByteCount) else {
      buffers.release(input)
      return nil
    }
    self.session = session
    self.input = input
    self.output = output
  }

  /// A stream that goes on where another left off; nil when there is no memory.
  init?(unpacking packed: consuming PackedStream, _ buffers: inout BufferPool) {
    guard let input = buffers.acquire(byteCount: SecureStream.inputByteCount) else { return nil }
    guard let output = buffers.acquire(byteCount: SecureStream.outputByteCount) else {
      buffers.release(input)
      return nil
    }
    let ciphertext = packed.ciphertext
    input.withMutableSpan(0, ciphertext.count) { room in
      for offset in 0..<ciphertext.count {
        room.storeBigEndian(ciphertext[offset], at: offset)
      }
    }
    inputEnd = ciphertext.count
    status = packed.status
    isUp = true
    session = packed.session
    self.input = input
    self.output = output
  }

  /// Leaves its buffers behind. TLS is up and everything was sent.
  consuming func packed(_ buffers: inout BufferPool) -> PackedStream {
    precondition(isUp && !hasCiphertext, "a stream moves with ciphertext for the client")
    var ciphertext: [UInt8] = []
    input.withSpan(inputStart, inputEnd - inputStart) { rest in
      for offset in 0..<rest.byteCount { ciphertext.append(rest.loadByte(at: offset)) }
    }
    buffers.release(input)
    buffers.release(output)
    return PackedStream(session: session, ciphertext: ciphertext, status: status)
  }

  /// Gives back the memory. The stream must not be used afterwards.
  mutating func close(_ buffers: inout BufferPool) {
    buffers.release(input)
    buffers.release(output)
  }

  /// Whether there may be more plain text, or its end, without the socket: ciphertext that came
  /// with what was decrypted, or the rest of a record. Nobody but the stream knows of it.
  var hasUndecrypted: Bool {
    isUp && (inputEnd > inputStart || session.hasUntoldEnd || session.pendingByteCount > 0)
  }

  // MARK: In

  /// Where the next ciphertext goes. Everything that came before is decrypted, or nearly so.
  mutating func roomForInput() -> DiskQueue.Piece {
    if inputStart > 0 {
      input.move(0, from: inputStart, inputEnd - inputStart)
      inputEnd -= inputStart
      inputStart = 0
    }
    return DiskQueue.Piece(input, inputEnd, input.byteCount - inputEnd)
  }

  mutating func tookInput(_ byteCount: Int) { inputEnd += byteCount }

  /// Goes on with the handshake; what it answers waits for the socket.
  mutating func continueHandshake() -> TLSSession.Progress {
    let (input, output) = (input, output)
    let (inputStart, inputEnd, outputEnd) = (inputStart, inputEnd, outputEnd)
    let step = input.withSpan(inputStart, inputEnd - inputStart) { source in
      output.withMutableSpan(outputEnd, output.byteCount - outputEnd) { room in
        session.handshake(source, &room)
      }
    }
    account(step)
    if step.progress == .bytes(0) {
      isUp = true
      status = TLSStatus(version: session.version, peer: session.peer())
    }
    return step.progress
  }

  /// Decrypts into `first` and, when that is full, into `second`.
  mutating func decrypt(
    into first: DiskQueue.Piece, then second: DiskQueue.Piece
  ) -> TLSSession.Progress {
    guard first.byteCount > 0 else { return decrypt(into: second) }
    let progress = decrypt(into: first)
    guard progress == .bytes(first.byteCount), second.byteCount > 0 else { return progress }
    // What ends the second part is found again by the next call, which it asks for.
    guard case .bytes(let count) = decrypt(into: second) else { return progress }
    return .bytes(first.byteCount + count)
  }

  private mutating func decrypt(into piece: DiskQueue.Piece) -> TLSSession.Progress {
    let input = input
    let (inputStart, inputEnd) = (inputStart, inputEnd)
    let step = input.withSpan(inputStart, inputEnd - inputStart) { source in
      piece.buffer.withMutableSpan(piece.start, piece.byteCount) { plaintext in
        session.receive(source, into: &plaintext)
      }
    }
    account(step)
    return step.progress
  }

  // MARK: Out

  var hasCiphertext: Bool { outputEnd > outputStart }

  /// The ciphertext that waits for the socket.
  var ciphertext: DiskQueue.Piece {
    DiskQueue.Piece(output, outputStart, outputEnd - outputStart)
  }

  mutating func sentCiphertext(_ byteCount: Int) {
    outputStart += byteCount
    guard outputStart == outputEnd else { return }
    outputStart = 0
    outputEnd = 0
  }

  /// Whether `encrypt` may be called.
  var hasRoomForRecord: Bool {
    output.byteCount - outputEnd >= TLSSession.sendRoomByteCount
  }

  /// Encrypts up to a record of plain text; false when the session is of no use any more.
  mutating func encrypt(_ piece: DiskQueue.Piece) -> Bool {
    let output = output
    let outputEnd = outputEnd
    let step = piece.buffer.withSpan(piece.start, piece.byteCount) { plaintext in
      output.withMutableSpan(outputEnd, output.byteCount - outputEnd) { room in
        session.send(plaintext, &room)
      }
    }
    account(step)
    return step.progress == .bytes(piece.byteCount)
  }

  /// Puts the alert about a session that failed behind the ciphertext.
  mutating func tellFailure() {
    guard isUp, outputEnd < output.byteCount else { return }
    let output = output
    let outputEnd = outputEnd
    let step = output.withMutableSpan(outputEnd, output.byteCount - outputEnd) { room in
      session.tellFailure(&room)
    }
    account(step)
  }

  /// Puts the end of our side behind the ciphertext.
  mutating func sayGoodbye() {
    guard isUp, outputEnd < output.byteCount else { return }
    let output = output
    let outputEnd = outputEnd
    let step = output.withMutableSpan(outputEnd, output.byteCount - outputEnd) { room in
      session.sayGoodbye(&room)
    }
    account(step)
  }

  private mutating func account(_ step: TLSSession.Step) {
    inputStart += step.takenByteCount
    if inputStart == inputEnd {
      inputStart = 0
      inputEnd = 0
    }
    outputEnd += step.putByteCount
  }
}

/// A session on its way from one thread to another, and what is not decrypted yet.
struct PackedStream: ~Copyable {
  let session: TLSSession
  let ciphertext: [UInt8]
  let status: TLSStatus?
}

/// The sessions of all clients of an export that speak TLS.
struct SecureStreams: ~Copyable {
  var streams: FixedPool<SecureStream>
  /// Where small replies come together in one record; empty until the first session.
  private(set) var record: IOBuffer = .empty

  init(capacity: Int) { streams = FixedPool(capacity: capacity) }

  /// Returns the place of the new session; nil when there is no memory.
  mutating func add(_ packed: consuming PackedStream, _ buffers: inout BufferPool) -> Int? {
    if record.isEmpty {
      guard let buffer = buffers.acquire(byteCount: TLSSession.recordByteCountMax) else {
        return nil
      }
      record = buffer
    }
    guard let stream = SecureStream(unpacking: packed, &buffers) else { return nil }
    guard let place = streams.insert(stream) else {
      preconditionFailure("there are more TLS sessions than connections")
    }
    return place
  }
}
