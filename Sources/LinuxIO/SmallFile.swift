// SPDX-License-Identifier: Apache-2.0
//
// A file that is read whole, such as a key. Source: open(2), read(2). Blocks.

import CLinux
import Glibc

/// Reading files that fit into memory.
public enum SmallFile {
  /// The bytes of the file, or pipe, at `path`; EFBIG when there are more than `byteCountMax`.
  public static func read(_ path: String, byteCountMax: Int) throws(SystemError) -> [UInt8] {
    // SAFETY: the path outlives the call.
    let descriptor = try SystemError.check(
      unsafe clinux_open(path, O_RDONLY | O_CLOEXEC, 0), "open")
    defer { close(descriptor) }
    var bytes: [UInt8] = []
    var portion = [UInt8](repeating: 0, count: 16_384)
    while true {
      // SAFETY: the kernel writes at most as many bytes as the array has.
      let count = unsafe Glibc.read(descriptor, &portion, portion.count)
      if count < 0, Glibc.errno == EINTR { continue }
      guard count >= 0 else { throw SystemError(errno: Glibc.errno, call: "read") }
      if count == 0 { return bytes }
      guard bytes.count + count <= byteCountMax else {
        throw SystemError(errno: EFBIG, call: "read")
      }
      bytes += portion[..<count]
    }
  }
}
