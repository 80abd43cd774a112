// SPDX-License-Identifier: Apache-2.0
//
// The errors of the transmission phase, and the one mapping from the data plane's error.
// Spec: proto.md, "Error values". This file performs no I/O.

import BlockTypes

/// An error number on the wire. The names are the specification's without their prefix `NBD_`.
// swift-format-ignore: AlwaysUseLowerCamelCase
@frozen public enum NBDErrno: UInt32, Sendable {
  case none = 0
  case EPERM = 1
  case EIO = 5
  case ENOMEM = 12
  case EINVAL = 22
  case ENOSPC = 28
  case EOVERFLOW = 75
  case ENOTSUP = 95
  case ESHUTDOWN = 108

  /// The number for `error` in the answer to `command` with `flags`.
  ///
  /// ENOTSUP is reserved for FAST_ZERO and EOVERFLOW for DF; elsewhere both become EINVAL.
  ///
  /// - Spec: proto.md, "Error values".
  @inlinable public init(
    _ error: BlockErrno, for command: Command?, flags: CommandFlags
  ) {
    switch error {
    case .none: self = .none
    case .io: self = .EIO
    case .noSpace: self = .ENOSPC
    case .invalid: self = .EINVAL
    case .readOnly: self = .EPERM
    case .notSupported:
      self = command == .writeZeroes && flags.contains(.fastZero) ? .ENOTSUP : .EINVAL
    case .overflow:
      self = command == .read && flags.contains(.dontFragment) ? .EOVERFLOW : .EINVAL
    case .noMemory: self = .ENOMEM
    case .shutdown: self = .ESHUTDOWN
    }
  }
}
