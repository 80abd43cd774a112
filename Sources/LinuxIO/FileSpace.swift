// SPDX-License-Identifier: Apache-2.0
//
// The space that a file takes, which for one with holes is less than its length. Source: stat(2).

import Glibc

/// Space on a disk.
public enum FileSpace {
  /// Bytes that the file system has given to the file at `path`; nil when nothing can be seen
  /// there.
  public static func allocatedByteCount(ofFileAt path: String) -> UInt64? {
    var status = stat()
    // SAFETY: both outlive the call.
    guard unsafe stat(path, &status) == 0 else { return nil }
    // In units of 512 bytes, whatever the file system's own are.
    return UInt64(clamping: status.st_blocks) * 512
  }
}
