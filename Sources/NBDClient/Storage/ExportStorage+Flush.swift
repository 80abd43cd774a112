// SPDX-License-Identifier: Apache-2.0
//
// Flushes of an export: those that are asked for, and those that keep the client's memory of
// unflushed writes from running full (tools/decisions/0013). Spec: proto.md, "NBD_CMD_FLUSH".

import BlockTypes
import LinuxIO
import NBDProtocol

/// What was written since the last flush, and what became of flushes that nobody asked for.
struct Checkpoint {
  /// Bytes written after which a flush is sent though nobody asked for one.
  static let byteCountMax = 32 << 20

  var writtenByteCount = 0
  /// Told at the next flush that somebody asks for.
  var fault: RemoteFault?
}

extension ClientRules {
  /// Bytes of writes that may be in flight when a flush is sent, on top of those before it.
  static var payloadsInFlightByteCountMax: Int { 64 << 20 }
}

extension ExportStorage {
  func startFlush(_ completion: @escaping Completion) {
    let fault = checkpoint.withLock { checkpoint in
      defer { checkpoint = Checkpoint() }
      return checkpoint.fault
    }
    submit(.flush, [], ByteRange(start: 0, end: 0)) { outcome in
      if let fault { return completion(.failure(fault)) }
      completion(outcome.map { _ in .done })
    }
  }

  /// Counts what was written, and sends a flush when it is much.
  func noteWritten(_ byteCount: Int) {
    guard session.export.flags.contains(.sendFlush) else { return }
    let isDue = checkpoint.withLock { checkpoint in
      checkpoint.writtenByteCount += byteCount
      guard checkpoint.writtenByteCount >= Checkpoint.byteCountMax else { return false }
      checkpoint.writtenByteCount = 0
      return true
    }
    guard isDue else { return }
    submit(.flush, [], ByteRange(start: 0, end: 0)) { [weak self] outcome in
      // Who gets no answer has lost nothing: the writes are kept.
      guard case .failure(let fault) = outcome, fault.errno != RemoteFault.unanswered("").errno
      else { return }
      self?.checkpoint.withLock { $0.fault = $0.fault ?? fault }
    }
  }
}
