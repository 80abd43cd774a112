// SPDX-License-Identifier: Apache-2.0
//
// A failed system call, as a value. Source: errno(3).

import BlockTypes
import Glibc

/// A system call that failed: its errno and its name.
public struct SystemError: Error, Hashable, Sendable {
  public let errno: Int32
  /// What was tried, as a verb: "open", "fdatasync".
  public let call: String

  public init(errno: Int32, call: String) {
    self.errno = errno
    self.call = call
  }

  /// Returns `result` unless it is a negative errno, as the shims of CLinux give it.
  @inlinable
  static func check<Result: FixedWidthInteger & SignedInteger>(
    _ result: Result, _ call: @autoclosure () -> String
  ) throws(SystemError) -> Result {
    guard result >= 0 else { throw SystemError(errno: Int32(-result), call: call()) }
    return result
  }
}

extension SystemError {
  /// Whether nothing has the name that was asked for.
  public var isMissing: Bool { errno == ENOENT }

  /// Whether the storage has no such operation.
  public var isNotSupported: Bool { errno == EOPNOTSUPP }
}

extension SystemError: CustomStringConvertible {
  public var description: String { "\(call): \(SystemError.text(of: errno))" }

  /// The C library's sentence for `errno`.
  public static func text(of errno: Int32) -> String {
    // SAFETY: strerror returns a C string that lives until the next call on this thread.
    unsafe String(cString: strerror(errno))
  }
}

extension BlockErrno {
  /// What a failed call on an image means for a request.
  public init(systemErrno: Int32) {
    switch systemErrno {
    case 0: self = .none
    case ENOSPC, EDQUOT, EFBIG: self = .noSpace
    case EROFS, EPERM, EACCES: self = .readOnly
    case ENOMEM: self = .noMemory
    case EOPNOTSUPP: self = .notSupported
    default: self = .io
    }
  }
}
