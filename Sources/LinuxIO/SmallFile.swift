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

  /// Reads the file at `path` to the start of `bytes` and to nowhere else, and returns how much
  /// there was; EFBIG when there is more than room.
  public static func read(
    _ path: String, into bytes: inout MutableRawSpan
  ) throws(SystemError) -> Int {
    // SAFETY: the path outlives the call.
    let descriptor = try SystemError.check(
      unsafe clinux_open(path, O_RDONLY | O_CLOEXEC, 0), "open")
    return try read(descriptor: descriptor, into: &bytes)
  }

  /// The same for a file or pipe that the process has from its parent; it is closed, unless it is
  /// one of the standard streams.
  public static func read(
    descriptor: Int32, into bytes: inout MutableRawSpan
  ) throws(SystemError) -> Int {
    defer { if descriptor > STDERR_FILENO { close(descriptor) } }
    var done = 0
    while true {
      var portion = [UInt8](repeating: 0, count: 1)
      let room = bytes.byteCount - done
      let count = unsafe bytes.withUnsafeMutableBytes { buffer in
        // SAFETY: the kernel writes at most to the end of the span, or to the one byte that shows
        // that there is no room for more.
        guard room > 0, let base = buffer.baseAddress else {
          return unsafe Glibc.read(descriptor, &portion, 1)
        }
        return unsafe Glibc.read(descriptor, base + done, room)
      }
      if count < 0, Glibc.errno == EINTR { continue }
      guard count >= 0 else { throw SystemError(errno: Glibc.errno, call: "read") }
      if count == 0 { return done }
      guard room > 0 else { throw SystemError(errno: EFBIG, call: "read") }
      done += count
    }
  }
}
