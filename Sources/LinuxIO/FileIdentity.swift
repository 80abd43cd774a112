// SPDX-License-Identifier: Apache-2.0
//
// Who a file is that a path names now, so that a file which took its place is not mistaken for
// it. Source: lstat(2), unlink(2).

import Glibc

/// Device, inode, kind and owner of the file at a path; a symbolic link is itself.
public struct FileIdentity: Hashable, Sendable {
  public let device: UInt64
  public let inode: UInt64
  public let ownerID: UInt32
  public let isSocket: Bool
  public let isRegular: Bool

  /// nil when nothing can be seen at `path`.
  public init?(ofPath path: String) {
    var status = stat()
    // SAFETY: both outlive the call.
    guard unsafe lstat(path, &status) == 0 else { return nil }
    self.init(status)
  }

  init?(of descriptor: Int32) {
    var status = stat()
    // SAFETY: `status` outlives the call.
    guard unsafe fstat(descriptor, &status) == 0 else { return nil }
    self.init(status)
  }

  private init(_ status: stat) {
    device = UInt64(status.st_dev)
    inode = UInt64(status.st_ino)
    ownerID = status.st_uid
    isSocket = status.st_mode & S_IFMT == S_IFSOCK
    isRegular = status.st_mode & S_IFMT == S_IFREG
  }

  /// Removes the file at `path` if it is still this one.
  ///
  /// - Returns: whether this file is no longer at the path.
  public func remove(at path: String) -> Bool {
    guard let now = FileIdentity(ofPath: path), now.isSameFile(as: self) else { return true }
    // SAFETY: the path outlives the call.
    return unsafe unlink(path) == 0
  }

  /// The owner may have been changed meanwhile; the file is the same.
  public func isSameFile(as other: FileIdentity) -> Bool {
    device == other.device && inode == other.inode
  }
}
