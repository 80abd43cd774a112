// SPDX-License-Identifier: Apache-2.0
//
// Which requests an export admits, and with which error it refuses the others.
// Spec: proto.md, "Request types", "Command flags", "Error values", "Size constraints"; its branch
// extension-ext-header for NBD_CMD_FLAG_PAYLOAD_LEN.
// This file performs no I/O.

import BlockTypes

/// What becomes of one request.
@frozen public enum Verdict: Hashable, Sendable {
  case execute(Command)
  /// BLOCK_STATUS for some contexts only: take `payloadByteCount` bytes, decode them as
  /// `BlockStatusPayload`, and judge the header again with the length found there.
  case filterStatus(payloadByteCount: Int)
  /// Answer with this error after reading and dropping `payloadByteCount` bytes.
  case refuse(NBDErrno, payloadByteCount: UInt64)
  /// DISC: finish what is in flight, send its replies, then close.
  case disconnect
  /// The peer broke the protocol in a way that cannot be answered: close now.
  case hangUp
}

/// The rules of the transmission phase of one connection: a pure function of a header.
@frozen public struct TransmissionRules: Sendable, Hashable {
  /// Largest payload that is read and dropped to keep a refused client in step.
  ///
  /// Twice what any client may send without agreement; above it the connection ends.
  @inlinable public static var drainedPayloadByteCountMax: UInt64 { 64 << 20 }
  /// The same for a payload that the client counted by PAYLOAD_LEN: what any client may send.
  ///
  /// - Spec: a larger one SHOULD end the connection.
  @inlinable public static var countedPayloadByteCountMax: UInt64 { 32 << 20 }

  public var traits: ExportTraits
  public let negotiated: Negotiated

  @inlinable public init(traits: ExportTraits, negotiated: Negotiated) {
    self.traits = traits
    self.negotiated = negotiated
  }

  /// Judges `header`, whose magic was right.
  ///
  /// Order: DISC, payload cap, known command, flags, read-only, bounds, block size, ability; a
  /// request with one fault thus gets the error that the specification names for it. An admitted
  /// request may have length 0, except BLOCK_STATUS: it succeeds and does nothing.
  @inlinable public func admit(_ header: RequestHeader) -> Verdict {
    let command = Command(rawValue: header.command)
    if command == .disconnect { return .disconnect }
    // Only WRITE carries a payload in the compact style, whatever its other faults are. With
    // extended headers any request may say that it carries one, and WRITE does even if it does not
    // say so: QEMU's client never does.
    let isCounted = negotiated.extendedHeaders && header.flags.contains(.payloadLength)
    let payloadByteCount = command == .write || isCounted ? header.length : 0
    guard payloadByteCount <= payloadByteCountMax(isCounted: isCounted) else { return .hangUp }
    guard let command else { return .refuse(.EINVAL, payloadByteCount: payloadByteCount) }
    if isCounted, command == .blockStatus { return admitFilter(header) }
    let fault = fault(of: header, command: command)
    guard fault == .none else { return .refuse(fault, payloadByteCount: payloadByteCount) }
    return .execute(command)
  }

  @inlinable func payloadByteCountMax(isCounted: Bool) -> UInt64 {
    guard isCounted else { return TransmissionRules.drainedPayloadByteCountMax }
    return max(
      TransmissionRules.countedPayloadByteCountMax, UInt64(traits.maximumPayloadByteCount))
  }

  /// Judges BLOCK_STATUS with a payload by what can be told before the payload is there: a filter
  /// names each of the selected contexts at most once.
  @inlinable func admitFilter(_ header: RequestHeader) -> Verdict {
    let contextCount = negotiated.contexts.count
    guard contextCount > 0, header.flags.isSubset(of: admittedFlags(of: .blockStatus)),
      header.length <= UInt64(BlockStatusPayload.byteCount(contextCount: contextCount))
    else { return .refuse(.EINVAL, payloadByteCount: header.length) }
    return .filterStatus(payloadByteCount: Int(header.length))
  }

  /// The error for `header`, or `none` when the request is sound.
  @inlinable func fault(of header: RequestHeader, command: Command) -> NBDErrno {
    guard header.flags.isSubset(of: admittedFlags(of: command)) else { return .EINVAL }
    if traits.isReadOnly && TransmissionRules.changesData(command) { return .EPERM }
    switch command {
    case .read:
      guard header.length <= UInt64(traits.maximumPayloadByteCount) else {
        // Past the end is the graver fault: EOVERFLOW would invite smaller tries at the same place.
        let isRefusedForDF = header.flags.contains(.dontFragment) && isInside(header)
        return isRefusedForDF ? .EOVERFLOW : .EINVAL
      }
      return rangeFault(of: header, outside: .EINVAL)
    case .write:
      guard header.length <= UInt64(traits.maximumPayloadByteCount) else { return .EINVAL }
      return rangeFault(of: header, outside: .ENOSPC)
    case .writeZeroes:
      let fault = rangeFault(of: header, outside: .ENOSPC)
      return fault == .none && !traits.canWriteZeroes ? .EINVAL : fault
    case .trim:
      let fault = rangeFault(of: header, outside: .EINVAL)
      return fault == .none && !traits.canTrim ? .EINVAL : fault
    case .cache:
      let fault = rangeFault(of: header, outside: .EINVAL)
      return fault == .none && !traits.canCache ? .EINVAL : fault
    case .blockStatus:
      guard negotiated.structuredReplies, !negotiated.contexts.isEmpty, header.length > 0 else {
        return .EINVAL
      }
      return rangeFault(of: header, outside: .EINVAL)
    case .flush:
      // "length and offset are reserved, and MUST be set to all-zero."
      return header.offset == 0 && header.length == 0 ? .none : .EINVAL
    case .resize: return resizeFault(of: header)
    case .disconnect: return .none
    }
  }

  /// The flags that `command` may carry here. FUA is accepted on all of them (proto.md, "FUA").
  @inlinable func admittedFlags(of command: Command) -> CommandFlags {
    switch command {
    case .read: negotiated.structuredReplies ? [.fua, .dontFragment] : .fua
    case .writeZeroes: traits.offersFastZero ? [.fua, .noHole, .fastZero] : [.fua, .noHole]
    case .blockStatus:
      negotiated.extendedHeaders
        ? [.fua, .requestOne, .payloadLength] : [.fua, .requestOne]
    case .write: negotiated.extendedHeaders ? [.fua, .payloadLength] : .fua
    case .disconnect, .flush, .trim, .cache, .resize: .fua
    }
  }

  @inlinable static func changesData(_ command: Command) -> Bool {
    switch command {
    case .write, .trim, .writeZeroes: true
    case .read, .disconnect, .flush, .cache, .blockStatus, .resize: false
    }
  }

  /// The offset of RESIZE is the wanted size; its length is reserved, and 0.
  ///
  /// - Spec: proto.md of the branch extension-resize, "NBD_CMD_RESIZE": EPERM by policy.
  @inlinable func resizeFault(of header: RequestHeader) -> NBDErrno {
    guard traits.canResize, header.length == 0 else { return .EINVAL }
    if traits.isReadOnly || header.offset < traits.byteCount { return .EPERM }
    guard header.offset.isAligned(to: UInt64(traits.minimumBlockByteCount)) else { return .EINVAL }
    return header.offset <= UInt64(Int64.max) ? .none : .ENOSPC
  }

  /// From now on the export has `byteCount` bytes: it grew.
  public mutating func grow(to byteCount: UInt64) {
    precondition(byteCount >= traits.byteCount, "an export shrank under its clients")
    traits.byteCount = byteCount
  }

  @inlinable func isInside(_ header: RequestHeader) -> Bool {
    let (end, isOverflow) = header.offset.addingReportingOverflow(header.length)
    return !isOverflow && end <= traits.byteCount
  }

  /// Checks bounds, then alignment where block sizes were agreed on.
  ///
  /// A range may end at an end of the disk that is not aligned: no other way leads to the tail.
  @inlinable func rangeFault(of header: RequestHeader, outside: NBDErrno) -> NBDErrno {
    guard isInside(header) else { return outside }
    guard negotiated.blockSizesAgreed else { return .none }
    let blockByteCount = UInt64(traits.minimumBlockByteCount)
    guard header.offset.isAligned(to: blockByteCount) else { return .EINVAL }
    let end = header.offset &+ header.length  // isInside proved that this does not wrap
    return end.isAligned(to: blockByteCount) || end == traits.byteCount ? .none : .EINVAL
  }
}
