// SPDX-License-Identifier: Apache-2.0
//
// Why an image cannot be used, said so that a person can act on it. This file performs no I/O.

/// A fault of an image file: what is wrong, where, and by which rule.
///
/// Factories are cold on purpose; the data plane carries `BlockErrno` instead.
public struct ImageError: Error, Hashable, Sendable {
  public enum Kind: Hashable, Sendable {
    /// The bytes contradict the format.
    case corrupt
    /// The format allows it, this program does not do it (yet).
    case unsupported
    /// The file ends before what it must hold.
    case truncated
    /// Somebody else holds the image.
    case inUse
    /// What the user asked for makes no sense or is not allowed.
    case refused
  }

  public let kind: Kind
  /// One sentence without the file's name, which the caller adds.
  public let reason: String
  /// Where in the file, if the fault has a place.
  public let location: HostOffset?

  @inline(never)
  public init(_ kind: Kind, _ reason: String, at location: HostOffset? = nil) {
    self.kind = kind
    self.reason = reason
    self.location = location
  }
}

extension ImageError: CustomStringConvertible {
  public var description: String {
    guard let location else { return reason }
    return "\(reason) (at byte \(location.byteOffset))"
  }
}
