// SPDX-License-Identifier: Apache-2.0
//
// What a person reads when a daemon cannot do its work: subject, cause, way out.
// This file performs no I/O.

import Glibc
import ImageTools
import LinuxIO
import Sandbox

/// A failure above the image and the socket, as one sentence. Its description is the message.
public struct ControlError: Error, Hashable, Sendable {
  /// The file, address or option that the message is about; nil when there is no single one.
  public let subject: String?
  public let cause: String
  /// What the user can do, nil when the cause says it.
  public let wayOut: String?
  /// The number of the system's error, when there was one.
  public var errno: Int32?

  @inline(never)
  public init(_ subject: String?, _ cause: String, wayOut: String? = nil) {
    self.subject = subject
    self.cause = cause
    self.wayOut = wayOut
  }

  public init(_ fault: ImageFault) { self.init(fault.path, fault.cause, wayOut: fault.wayOut) }

  public init(_ subject: String?, _ error: SystemError, wayOut: String? = nil) {
    self.init(subject, error.description, wayOut: wayOut)
    errno = error.errno
  }

  public init(_ subject: String, _ error: SandboxError) {
    self.init(subject, error.reason, wayOut: error.wayOut)
  }

  /// A listening address that cannot be had.
  public init(_ subject: String, _ error: SocketError) {
    let wayOut: String? =
      switch error {
      case .pathTooLong, .pathEmpty: "choose a shorter path, for instance below /run"
      case .taken: "stop the other server, or listen elsewhere"
      case .notASocket: "it is left alone: remove it by hand, or listen elsewhere"
      case .foreign: "it is left alone: remove it by hand, or start as its owner"
      case .unknownHost: "check the host's name, or give its address"
      case .notListening: "pass stream sockets that listen (sd_listen_fds(3))"
      case .system(let error):
        switch error.errno {
        case EACCES, EPERM: "check the permissions of the folder, or listen elsewhere"
        case ENOENT: "make the folder first"
        case EADDRNOTAVAIL: "name an address of this machine"
        default: nil
        }
      }
    self.init(subject, error.description, wayOut: wayOut)
  }
}

extension ControlError: CustomStringConvertible {
  public var description: String {
    let head = subject.map { "\($0): \(cause)" } ?? cause
    return wayOut.map { "\(head); \($0)" } ?? head
  }
}
