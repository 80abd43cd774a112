// SPDX-License-Identifier: Apache-2.0
//
// The operations of a layer's storage as requests to an export. What is too long for one request
// becomes several; reads are rounded out to whole blocks. Spec: proto.md, "Request types", "Size
// constraints".

import BlockTypes
import LinuxIO
import NBDProtocol
import Synchronization

extension ExportStorage {
  public typealias Completion = @Sendable (Result<RemoteAnswer, RemoteFault>) -> Void

  public func start(_ operation: RemoteOperation, completion: @escaping Completion) {
    switch operation {
    case .read(let range): startRead(range, completion)
    case .write(let offset, let bytes, let isDurable):
      startWrite(bytes, at: offset, isDurable: isDurable, completion)
    case .flush: startFlush(completion)
    case .trim(let range):
      guard session.export.flags.contains(.sendTrim) else {
        return completion(.failure(.unsupported("the export has no trim")))
      }
      startEffect(.trim, [], range, completion)
    case .zero(let range, let keepsSpace, let isFast):
      guard session.export.flags.contains(.sendWriteZeroes),
        !isFast || session.export.flags.contains(.sendFastZero)
      else { return completion(.failure(.unsupported("the export has no such zeroing"))) }
      var flags: CommandFlags = []
      if keepsSpace { flags.insert(.noHole) }
      if isFast { flags.insert(.fastZero) }
      startEffect(.writeZeroes, flags, range, completion)
    case .status(let range): startStatus(range, completion)
    case .resize, .provision:
      completion(.failure(.unsupported("an export has the size that its server says")))
    }
  }

  public func run(_ operation: RemoteOperation) throws(RemoteFault) -> RemoteAnswer {
    if case .write(let offset, let bytes, let isDurable) = operation {
      return try runWrite(bytes, at: offset, isDurable: isDurable)
    }
    return try runWhole(operation)
  }

  private func runWhole(_ operation: RemoteOperation) throws(RemoteFault) -> RemoteAnswer {
    let outcome: Outcomes<Result<RemoteAnswer, RemoteFault>>
    do throws(SystemError) { outcome = try Outcomes() } catch {
      throw RemoteFault(errno: error.errno, "\(error)")
    }
    start(operation) { outcome.put($0) }
    while !outcome.isThere {
      if !runHere(until: { outcome.isThere }) { outcome.wait() }
    }
    guard let result = outcome.take() else {
      preconditionFailure("a request has neither succeeded nor failed")
    }
    return try result.get()
  }

  /// Writes whole blocks, completed by what the export has in their other parts.
  private func runWrite(
    _ bytes: [UInt8], at offset: UInt64, isDurable: Bool
  ) throws(RemoteFault) -> RemoteAnswer {
    let (end, overflows) = offset.addingReportingOverflow(UInt64(bytes.count))
    guard !overflows, end <= byteCount else { throw .outOfPlace("a write passes the end") }
    let range = ByteRange(start: offset, end: end)
    let whole = range.roundedOut(to: blockByteCount)
    guard whole != range else {
      return try runWhole(.write(offset: offset, bytes: bytes, isDurable: isDurable))
    }
    guard case .bytes(var blocks) = try runWhole(.read(whole)) else {
      preconditionFailure("a read was answered without bytes")
    }
    let start = Int(range.start - whole.start)
    blocks.replaceSubrange(start..<start + bytes.count, with: bytes)
    return try runWhole(.write(offset: whole.start, bytes: blocks, isDurable: isDurable))
  }

  // MARK: One by one

  private func startRead(_ range: ByteRange, _ completion: @escaping Completion) {
    guard range.start < byteCount else { return completion(.success(.bytes([]))) }
    let wanted = ByteRange(start: range.start, end: min(range.end, byteCount))
    guard !wanted.isEmpty else { return completion(.success(.bytes([]))) }
    let whole = wanted.roundedOut(to: blockByteCount)
    let pieces = pieces(of: whole, byteCountMax: payloadByteCountMax)
    let first = Int(wanted.start - whole.start)
    let count = Int(wanted.byteCount)
    let parts = Parts(count: pieces.count) { result in
      completion(
        result.map { parts in
          var bytes = parts[0]
          for part in parts.dropFirst() { bytes += part }
          return .bytes(bytes.count == count ? bytes : Array(bytes[first..<first + count]))
        })
    }
    for (index, piece) in pieces.enumerated() {
      submit(.read, [], piece) { outcome in
        parts.put(
          index,
          outcome.map { outcome in
            if case .data(let bytes) = outcome { return bytes }
            preconditionFailure("a READ ended without data")
          })
      }
    }
  }

  private func startWrite(
    _ bytes: [UInt8], at offset: UInt64, isDurable: Bool, _ completion: @escaping Completion
  ) {
    guard access == .readWrite else { return completion(.failure(ExportStorage.readOnlyFault)) }
    let hasFUA = session.export.flags.contains(.sendFUA)
    let range = ByteRange(start: offset, end: offset + UInt64(bytes.count))
    let pieces = pieces(of: range, byteCountMax: payloadByteCountMax)
    let parts = Parts(count: pieces.count) { result in
      switch result {
      case .failure(let fault): completion(.failure(fault))
      case .success:
        if isDurable, !hasFUA { return self.startFlush(completion) }
        self.noteWritten(bytes.count)
        completion(.success(.done))
      }
    }
    for (index, piece) in pieces.enumerated() {
      let start = Int(piece.start - offset)
      let payload =
        pieces.count == 1 ? bytes : Array(bytes[start..<start + Int(piece.byteCount)])
      submit(.write, isDurable && hasFUA ? .fua : [], piece, payload: payload) { outcome in
        parts.put(index, outcome.map { _ in [] })
      }
    }
  }

  private func startEffect(
    _ command: Command, _ flags: CommandFlags, _ range: ByteRange,
    _ completion: @escaping Completion
  ) {
    guard access == .readWrite else { return completion(.failure(ExportStorage.readOnlyFault)) }
    let pieces = pieces(of: range, byteCountMax: rules.effectByteCountMax)
    let parts = Parts(count: pieces.count) { result in
      completion(result.map { _ in .done })
    }
    for (index, piece) in pieces.enumerated() {
      submit(command, flags, piece) { outcome in parts.put(index, outcome.map { _ in [] }) }
    }
  }

  private func startStatus(_ range: ByteRange, _ completion: @escaping Completion) {
    guard let allocationIndex else {
      return completion(.failure(.unsupported("the export tells no status")))
    }
    let whole = range.roundedOut(to: blockByteCount)
    let asked = ByteRange(
      start: whole.start, end: min(whole.end, whole.start + rules.effectByteCountMax, byteCount))
    submit(.blockStatus, .requestOne, asked) { outcome in
      completion(
        outcome.map { outcome in
          guard case .status(let contexts) = outcome,
            let extent = contexts[allocationIndex].extents.first
          else { preconditionFailure("a BLOCK_STATUS ended without extents") }
          let end = min(whole.start + min(extent.byteCount, asked.byteCount), range.end)
          // An extent below a block does not reach the place that was asked for.
          guard end > range.start else {
            return .run(StatusRun(byteCount: 1, isHole: false, isZero: false))
          }
          return .run(
            StatusRun(
              byteCount: end - range.start, isHole: extent.status & 1 != 0,
              isZero: extent.status & 2 != 0))
        })
    }
  }

  // MARK: Requests

  private static var readOnlyFault: RemoteFault {
    .readOnly("the export was opened for reading")
  }

  private var payloadByteCountMax: UInt64 {
    UInt64(session.export.payloadByteCountMax).alignedDown(to: blockByteCount)
  }

  private func pieces(of range: ByteRange, byteCountMax: UInt64) -> [ByteRange] {
    var pieces: [ByteRange] = []
    var start = range.start
    repeat {
      let end = min(range.end, start + min(byteCountMax, range.end - start))
      pieces.append(ByteRange(start: start, end: end))
      start = end
    } while start < range.end
    return pieces
  }

  /// Sends a request that keeps the export's rules, or answers it at once.
  func submit(
    _ command: Command, _ flags: CommandFlags, _ range: ByteRange, payload: [UInt8] = [],
    reply: @escaping @Sendable (Result<ServerAnswer.Outcome, RemoteFault>) -> Void
  ) {
    do throws(RequestFault) {
      try rules.check(command, flags, range.start, range.byteCount)
    } catch {
      return reply(.failure(.outOfPlace("\(error)")))
    }
    mailbox.submit(
      Submission(
        ticket: mailbox.nextTicket(), command: command, flags: flags, offset: range.start,
        length: range.byteCount, payload: payload,
        reply: { outcome in reply(outcome.mapError { $0.remoteFault }) }))
  }
}

/// The answers to the requests of one operation.
private final class Parts: Sendable {
  private struct State {
    var parts: [[UInt8]]
    var leftCount: Int
    var fault: RemoteFault?
  }

  private let state: Mutex<State>
  private let completion: @Sendable (Result<[[UInt8]], RemoteFault>) -> Void

  /// - Parameter completion: called once, after the last answer.
  init(
    count: Int, completion: @escaping @Sendable (Result<[[UInt8]], RemoteFault>) -> Void
  ) {
    state = Mutex(State(parts: Array(repeating: [], count: count), leftCount: count))
    self.completion = completion
  }

  func put(_ index: Int, _ result: Result<[UInt8], RemoteFault>) {
    let end = state.withLock { state -> Result<[[UInt8]], RemoteFault>? in
      switch result {
      case .success(let bytes): state.parts[index] = bytes
      case .failure(let fault): state.fault = state.fault ?? fault
      }
      state.leftCount -= 1
      guard state.leftCount == 0 else { return nil }
      return state.fault.map { .failure($0) } ?? .success(state.parts)
    }
    if let end { completion(end) }
  }
}

extension NBDClientFault {
  /// What the fault of a request means for a layer.
  var remoteFault: RemoteFault {
    switch self {
    case .failed(_, let failure) where failure.errno == .none: .failed("\(self)")
    case .failed(_, let failure):
      // The wire's numbers are those of Linux.
      RemoteFault(errno: Int32(failure.errno.rawValue), "\(self)")
    case .unreachable, .timedOut, .lost, .closed, .cancelled: .unanswered("\(self)")
    case .unsupported, .insecure, .refused, .violated, .writesLost, .exportChanged,
      .tooManyRequests:
      .failed("\(self)")
    case .request: .outOfPlace("\(self)")
    }
  }
}
