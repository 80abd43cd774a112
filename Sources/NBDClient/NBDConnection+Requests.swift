// SPDX-License-Identifier: Apache-2.0
//
// The requests of a client: read, write, flush, trim, zeroes, cache, status.
// Spec: proto.md, "Request types".

import BlockTypes
import NBDProtocol

extension NBDConnection {
  /// What a write asks for beside its data.
  public struct WriteFlags: OptionSet, Hashable, Sendable {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    /// Answered when it is durable.
    public static let durable = WriteFlags(rawValue: 1)
    /// Zeroes keep their space.
    public static let provisioned = WriteFlags(rawValue: 2)
    /// Zeroes are fast or fail with ENOTSUP.
    public static let fast = WriteFlags(rawValue: 4)

    var commandFlags: CommandFlags {
      var flags: CommandFlags = []
      if contains(.durable) { flags.insert(.fua) }
      if contains(.provisioned) { flags.insert(.noHole) }
      if contains(.fast) { flags.insert(.fastZero) }
      return flags
    }
  }

  /// Largest payload of one request, in bytes; longer reads and writes are several requests.
  public var payloadByteCountMax: Int {
    Int(
      UInt64(session.export.payloadByteCountMax).alignedDown(
        to: UInt64(session.export.minimumBlockByteCount)))
  }

  /// Reads `byteCount` bytes. More than one payload is read piece by piece.
  public func read(
    at offset: UInt64, byteCount: Int
  ) async throws(NBDClientFault) -> [UInt8] {
    guard byteCount > 0 else { return [] }
    if byteCount <= payloadByteCountMax { return try await readPiece(offset, byteCount) }
    var bytes: [UInt8] = []
    // Refused before a byte is asked for, as a whole.
    guard UInt64(byteCount) <= self.byteCount else { return try await readPiece(offset, byteCount) }
    while bytes.count < byteCount {
      let count = min(payloadByteCountMax, byteCount - bytes.count)
      bytes += try await readPiece(offset + UInt64(bytes.count), count)
    }
    return bytes
  }

  private func readPiece(
    _ offset: UInt64, _ byteCount: Int
  ) async throws(NBDClientFault) -> [UInt8] {
    let outcome = try await request(.read, [], offset, UInt64(byteCount))
    guard case .data(let bytes) = outcome else {
      preconditionFailure("a READ ended without data")
    }
    return bytes
  }

  /// Writes all of `bytes`. More than one payload is written piece by piece, and not as a whole.
  public func write(
    _ bytes: [UInt8], at offset: UInt64, _ flags: WriteFlags = []
  ) async throws(NBDClientFault) {
    if bytes.count <= payloadByteCountMax {
      guard !bytes.isEmpty else { return }
      _ = try await request(
        .write, flags.commandFlags, offset, UInt64(bytes.count), payload: bytes)
      return
    }
    var done = 0
    while done < bytes.count {
      let count = min(payloadByteCountMax, bytes.count - done)
      let (start, overflows) = offset.addingReportingOverflow(UInt64(done))
      guard !overflows else { throw .request(RequestFault.pastTheEnd) }
      _ = try await request(
        .write, flags.commandFlags, start, UInt64(count),
        payload: Array(bytes[done..<done + count]))
      done += count
    }
  }

  /// Makes everything durable that was answered before.
  ///
  /// An export without flush has nothing to do, by its own words.
  ///
  /// - Throws: also when acknowledged writes were lost with a former connection.
  public func flush() async throws(NBDClientFault) {
    _ = try await send(.flush, [], 0, 0, [])
  }

  /// Says that the bytes are not needed any more; what they read as is undefined afterwards.
  public func trim(
    at offset: UInt64, byteCount: UInt64, _ flags: WriteFlags = []
  ) async throws(NBDClientFault) {
    try await effect(.trim, flags.intersection(.durable).commandFlags, offset, byteCount)
  }

  /// Makes the bytes read as zeroes.
  public func writeZeroes(
    at offset: UInt64, byteCount: UInt64, _ flags: WriteFlags = []
  ) async throws(NBDClientFault) {
    try await effect(.writeZeroes, flags.commandFlags, offset, byteCount)
  }

  /// Asks the server to have the bytes at hand.
  public func cache(at offset: UInt64, byteCount: UInt64) async throws(NBDClientFault) {
    try await effect(.cache, [], offset, byteCount)
  }

  /// The status of the bytes from `offset` on, for each context of `export.contexts`, in that
  /// order. Each answer covers a part of the range at least, and may pass its end.
  public func blockStatus(
    at offset: UInt64, byteCount: UInt64, requestsOne: Bool = false
  ) async throws(NBDClientFault) -> [[StatusExtent]] {
    let outcome = try await request(
      .blockStatus, requestsOne ? .requestOne : [], offset, byteCount)
    guard case .status(let contexts) = outcome else {
      preconditionFailure("a BLOCK_STATUS ended without extents")
    }
    return contexts.map(\.extents)
  }

  /// A request whose range may be longer than a header can say.
  private func effect(
    _ command: Command, _ flags: CommandFlags, _ offset: UInt64, _ byteCount: UInt64
  ) async throws(NBDClientFault) {
    let pieceMax = rules.effectByteCountMax
    guard byteCount > pieceMax else {
      if byteCount > 0 { _ = try await request(command, flags, offset, byteCount) }
      return
    }
    guard offset <= self.byteCount, byteCount <= self.byteCount - offset else {
      throw .request(RequestFault.pastTheEnd)
    }
    var done: UInt64 = 0
    while done < byteCount {
      let count = min(pieceMax, byteCount - done)
      _ = try await request(command, flags, offset + done, count)
      done += count
    }
  }

  /// Sends a request that keeps the export's rules, and waits for its answer.
  private func request(
    _ command: Command, _ flags: CommandFlags, _ offset: UInt64, _ length: UInt64,
    payload: [UInt8] = []
  ) async throws(NBDClientFault) -> ServerAnswer.Outcome {
    do throws(RequestFault) {
      try rules.check(command, flags, offset, length)
    } catch {
      throw .request(error)
    }
    return try await send(command, flags, offset, length, payload)
  }

  private func send(
    _ command: Command, _ flags: CommandFlags, _ offset: UInt64, _ length: UInt64,
    _ payload: [UInt8]
  ) async throws(NBDClientFault) -> ServerAnswer.Outcome {
    let ticket = mailbox.nextTicket()
    let outcome = await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        mailbox.submit(
          Submission(
            ticket: ticket, command: command, flags: flags, offset: offset, length: length,
            payload: payload, reply: { continuation.resume(returning: $0) }))
        // A cancellation that came before the submission was told to nobody.
        if Task.isCancelled { mailbox.cancel(ticket) }
      }
    } onCancel: {
      mailbox.cancel(ticket)
    }
    return try outcome.get()
  }
}
