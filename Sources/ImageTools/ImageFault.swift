// SPDX-License-Identifier: Apache-2.0
//
// A failure of a verb on an image, said so that a person can act on it: file, cause, way out.

import BlockTypes
import Glibc
import LinuxIO

/// Why a verb on an image failed. Its description is the whole message.
public struct ImageFault: Error, Hashable, Sendable {
  /// The file that the message is about, as the user or the overlay names it.
  public let path: String
  public let cause: String
  /// What the user can do, nil when the cause says it.
  public let wayOut: String?
  /// The kind of an image's own fault, nil for a failed system call.
  public let kind: ImageError.Kind?
  /// A synchronisation failed: what was written before it may be lost (fsync(2), EIO).
  public internal(set) var losesWrites = false

  public init(
    _ path: String, _ cause: String, wayOut: String? = nil, kind: ImageError.Kind? = nil
  ) {
    self.path = path
    self.cause = cause
    self.wayOut = wayOut
    self.kind = kind
  }

  public init(_ path: String, _ error: ImageError) {
    self.init(path, error.description, kind: error.kind)
  }

  /// The same fault, which met what comes behind the main thing: `done` says that it is done.
  func after(_ done: String) -> ImageFault {
    var fault = ImageFault(path, "\(cause); \(done)", wayOut: wayOut, kind: kind)
    fault.losesWrites = losesWrites
    return fault
  }

  /// A failed system call on the file itself.
  public init(_ path: String, _ error: SystemError) {
    self.init(path, error.description, wayOut: Self.wayOut(of: error.errno))
  }

  /// What helps against an errno, where something does.
  static func wayOut(of errno: Int32) -> String? {
    switch errno {
    case ENOENT: "check the name"
    case EACCES, EPERM: "check the permissions of the file and of its folders"
    case EROFS: "the filesystem is read-only; open the image read-only or move it"
    case EMFILE, ENFILE: "raise the limit of open files (ulimit -n)"
    case ENOSPC, EDQUOT: "make room on the filesystem"
    case EISDIR, EINVAL: "name a regular file or a block device"
    default: nil
    }
  }
}

extension SystemError {
  /// Whether a file could not be created because its name is taken.
  var isAlreadyThere: Bool { errno == EEXIST }

  /// Whether there is no file of the name.
  var isMissing: Bool { errno == ENOENT }
}

extension ImageFault: CustomStringConvertible {
  public var description: String {
    wayOut.map { "\(path): \(cause); \($0)" } ?? "\(path): \(cause)"
  }
}
