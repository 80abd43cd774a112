// SPDX-License-Identifier: Apache-2.0
//
// The commands of the transmission phase. Spec: proto.md, "Request types".
// This file performs no I/O.

/// What a request asks for. `resize` is known by name only: no server flag offers it.
@frozen public enum Command: UInt16, Sendable {
  case read = 0
  case write
  case disconnect
  case flush
  case trim
  case cache
  case writeZeroes
  case blockStatus
  case resize

  /// The command with this number on the wire, or nil when the specification has none.
  ///
  /// Written out so that it inlines into the data plane.
  @inlinable public init?(rawValue: UInt16) {
    switch rawValue {
    case 0: self = .read
    case 1: self = .write
    case 2: self = .disconnect
    case 3: self = .flush
    case 4: self = .trim
    case 5: self = .cache
    case 6: self = .writeZeroes
    case 7: self = .blockStatus
    case 8: self = .resize
    default: return nil
    }
  }
}
