// SPDX-License-Identifier: Apache-2.0
//
// Why privileges could not be given up. This file performs no I/O.

import Glibc

/// A step of the sandbox that failed, or a fact that is not as it must be afterwards.
public struct SandboxError: Error, Hashable, Sendable {
  /// One sentence without a final full stop.
  public let reason: String
  /// What the user can do about it, if anything.
  public let wayOut: String?

  @inline(never)
  public init(_ reason: String, wayOut: String? = nil) {
    self.reason = reason
    self.wayOut = wayOut
  }

  /// `call` failed with `errno`.
  @inline(never)
  init(call: String, errno: Int32, wayOut: String? = nil) {
    // SAFETY: strerror returns a C string that lives until the next call on this thread.
    let text = unsafe String(cString: strerror(errno))
    self.init("\(call): \(text)", wayOut: wayOut)
  }
}

extension SandboxError: CustomStringConvertible {
  public var description: String {
    guard let wayOut else { return reason }
    return "\(reason); \(wayOut)"
  }
}
