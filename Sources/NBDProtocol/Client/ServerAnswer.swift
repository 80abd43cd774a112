// SPDX-License-Identifier: Apache-2.0
//
// What a server answered to one request. Spec: proto.md, "Reply types", "Error values".
// This file performs no I/O.

/// A run of bytes with one status, as a server reports it.
@frozen public struct StatusExtent: Hashable, Sendable {
  /// At least 1; the last extent of an answer may pass the end of the request.
  public var byteCount: UInt64
  /// The meaning belongs to the context. Compact replies fill the lower 32 bits.
  public var status: UInt64

  @inlinable public init(byteCount: UInt64, status: UInt64) {
    self.byteCount = byteCount
    self.status = status
  }
}

/// The extents of one meta context, from the offset of the request on.
public struct ContextExtents: Hashable, Sendable {
  public var contextID: UInt32
  public var extents: [StatusExtent]

  public init(contextID: UInt32, extents: [StatusExtent]) {
    self.contextID = contextID
    self.extents = extents
  }
}

/// Why a server did not do a request.
public struct ServerFailure: Hashable, Sendable {
  /// The number on the wire, also one that `NBDErrno` does not have.
  public var number: UInt32
  /// The server's words, cleaned and cut; empty when it said none.
  public var text: String
  /// The byte of the disk where a READ failed, if the server told.
  public var offset: UInt64?

  public init(number: UInt32, text: String = "", offset: UInt64? = nil) {
    self.number = number
    self.text = text
    self.offset = offset
  }

  /// - Spec: proto.md, "Error values": numbers that a client does not know count as EINVAL.
  public var errno: NBDErrno { NBDErrno(rawValue: number) ?? .EINVAL }
}

extension ServerFailure: CustomStringConvertible {
  public var description: String {
    var sentence = NBDErrno(rawValue: number).map { "\($0)" } ?? "error \(number)"
    if let offset { sentence += " at byte \(offset)" }
    return text.isEmpty ? sentence : "\(sentence): \(text)"
  }
}

/// The complete answer to one request.
public struct ServerAnswer: Hashable, Sendable {
  public enum Outcome: Hashable, Sendable {
    case done
    /// All bytes of a READ.
    case data([UInt8])
    /// BLOCK_STATUS: one entry for each selected context, in the order of selection.
    case status([ContextExtents])
    case failed(ServerFailure)
  }

  public var cookie: UInt64
  public var outcome: Outcome

  public init(cookie: UInt64, outcome: Outcome) {
    self.cookie = cookie
    self.outcome = outcome
  }
}
