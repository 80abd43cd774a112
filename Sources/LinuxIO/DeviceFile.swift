// SPDX-License-Identifier: Apache-2.0
//
// A block device as something to control, not to read. Source: open(2) ("O_EXCL" on block devices),
// ioctl(2), fsync(2). Blocks.

import CLinux
import Glibc

/// An open block device; closed when the value goes away.
public struct DeviceFile: ~Copyable, Sendable {
  private let descriptor: Int32

  /// Opens the block device at `path`. ENOTBLK for anything else.
  ///
  /// - Parameter exclusively: EBUSY when the device is mounted, swapped to, or part of another
  ///   device; until the close it cannot become so.
  public init(opening path: String, exclusively: Bool) throws(SystemError) {
    let flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | (exclusively ? O_EXCL : 0)
    // SAFETY: the path outlives the call.
    let descriptor = try SystemError.check(unsafe clinux_open(path, flags, 0), "open")
    try self.init(adopting: descriptor)
  }

  private init(adopting descriptor: Int32) throws(SystemError) {
    self.descriptor = descriptor
    var status = stat()
    // SAFETY: `status` outlives the call.
    guard unsafe fstat(descriptor, &status) == 0 else {
      throw SystemError(errno: errno, call: "fstat")
    }
    guard status.st_mode & S_IFMT == S_IFBLK else {
      throw SystemError(errno: ENOTBLK, call: "open")
    }
  }

  deinit { close(descriptor) }

  /// An ioctl whose argument is a number.
  public func control(_ request: UInt, _ value: UInt, _ name: String) throws(SystemError) {
    _ = try SystemError.check(clinux_control(descriptor, request, value), name)
  }

  /// Writes what the page cache holds for the device, and waits until the device has it.
  public func synchronize() throws(SystemError) {
    while fsync(descriptor) != 0 {
      guard errno == EINTR else { throw SystemError(errno: errno, call: "fsync") }
    }
  }
}
