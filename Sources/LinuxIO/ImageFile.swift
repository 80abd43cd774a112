// SPDX-License-Identifier: Apache-2.0
//
// An open file or block device that holds a layer. Source: open(2), pread(2), fallocate(2),
// statx(2). The calls of this type block; the data plane uses them at start and at stop only.

import BlockTypes
import CLinux
import Glibc

/// An open descriptor of an image; closed when the value goes away.
public struct ImageFile: ~Copyable, Sendable {
  /// The descriptor, for the kernel objects of this module.
  public let descriptor: Int32

  /// Who the file is, whatever its name: what loop detection and locking compare.
  public struct Identity: Hashable, Sendable {
    public let device: UInt64
    public let inode: UInt64
    public init(device: UInt64, inode: UInt64) {
      self.device = device
      self.inode = inode
    }
  }

  public enum Access: Sendable { case readOnly, readWrite }

  public enum Medium: Sendable { case regularFile, blockDevice }

  /// Opens an existing file or block device.
  ///
  /// Anything else (a folder, a FIFO, a character device) is refused with EINVAL: opening such
  /// things has side effects. O_NONBLOCK keeps the open of a FIFO from waiting.
  public init(opening path: String, access: Access) throws(SystemError) {
    let mode = access == .readOnly ? O_RDONLY : O_RDWR
    // SAFETY: here and below the kernel reads a C string or fills a local value during the call.
    let descriptor = try SystemError.check(
      unsafe clinux_open(path, mode | O_CLOEXEC | O_NONBLOCK, 0), "open")
    try self.init(adopting: descriptor)
  }

  /// Opens `path`, which is absolute, if no link is on the way: whoever exchanges a part of it
  /// meanwhile gains nothing (openat2(2), "RESOLVE_NO_SYMLINKS").
  public init(openingWithoutLinks path: String, access: Access) throws(SystemError) {
    precondition(path.hasPrefix("/"), "a path without links does not begin at the root")
    let root = try SystemError.check(
      unsafe clinux_open("/", Int32(CLINUX_O_PATH) | O_DIRECTORY | O_CLOEXEC, 0),
      "open the folder")
    defer { close(root) }
    let mode = access == .readOnly ? O_RDONLY : O_RDWR
    let descriptor = try SystemError.check(
      unsafe clinux_open_beneath(
        root, String(path.dropFirst()), mode | O_CLOEXEC | O_NONBLOCK), "open")
    try self.init(adopting: descriptor)
  }

  /// Creates `path` anew and opens it for reading and writing; refuses an existing file.
  public init(creating path: String, mode: UInt32 = 0o644) throws(SystemError) {
    let descriptor = try SystemError.check(
      unsafe clinux_open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode), "create")
    try self.init(adopting: descriptor)
  }

  /// Takes over an open descriptor, which must be a regular file or a block device.
  public init(adopting descriptor: Int32) throws(SystemError) {
    self.descriptor = descriptor
    let type = try status().st_mode & S_IFMT
    guard type == S_IFREG || type == S_IFBLK else {
      throw SystemError(errno: EINVAL, call: "open (neither a regular file nor a block device)")
    }
  }

  deinit { close(descriptor) }

  private func status() throws(SystemError) -> stat {
    var result = stat()
    guard unsafe fstat(descriptor, &result) == 0 else {
      throw SystemError(errno: Glibc.errno, call: "fstat")
    }
    return result
  }

  public func identity() throws(SystemError) -> Identity {
    let result = try status()
    return Identity(device: UInt64(result.st_dev), inode: UInt64(result.st_ino))
  }

  public func medium() throws(SystemError) -> Medium {
    try status().st_mode & S_IFMT == S_IFBLK ? .blockDevice : .regularFile
  }

  /// Seconds and nanoseconds of the last change of the contents.
  public func modificationTime() throws(SystemError) -> (seconds: Int64, nanoseconds: Int64) {
    let time = try status().st_mtim
    return (Int64(time.tv_sec), Int64(time.tv_nsec))
  }

  /// Bytes that the file spans.
  public func byteCount() throws(SystemError) -> UInt64 {
    if try medium() == .blockDevice {
      var byteCount: UInt64 = 0
      _ = try SystemError.check(
        unsafe clinux_block_device_size(descriptor, &byteCount), "BLKGETSIZE64")
      return byteCount
    }
    return UInt64(try status().st_size)
  }

  /// Bytes that the file occupies, in whole 512-byte blocks.
  public func allocatedByteCount() throws(SystemError) -> UInt64 {
    UInt64(try status().st_blocks) * 512
  }

  /// Reads `byteCount` bytes at `offset`; fewer only where the file ends.
  public func read(at offset: UInt64, byteCount: Int) throws(SystemError) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: byteCount)
    var done = 0
    while done < byteCount {
      // SAFETY: `done` is below the array's count, and no more than the rest is asked for.
      let count = unsafe bytes.withUnsafeMutableBytes { buffer in
        unsafe pread(
          descriptor, buffer.baseAddress! + done, byteCount - done,
          off_t(offset) + off_t(done))
      }
      if count < 0 {
        if Glibc.errno == EINTR { continue }
        throw SystemError(errno: Glibc.errno, call: "read")
      }
      if count == 0 { break }
      done += count
    }
    bytes.removeLast(byteCount - done)
    return bytes
  }

  /// Writes all of `bytes` at `offset`.
  public func write(_ bytes: [UInt8], at offset: UInt64) throws(SystemError) {
    var done = 0
    while done < bytes.count {
      // SAFETY: as in `read`.
      let count = unsafe bytes.withUnsafeBytes { buffer in
        unsafe pwrite(
          descriptor, buffer.baseAddress! + done, bytes.count - done,
          off_t(offset) + off_t(done))
      }
      if count < 0 {
        if Glibc.errno == EINTR { continue }
        throw SystemError(errno: Glibc.errno, call: "write")
      }
      if count == 0 { throw SystemError(errno: ENOSPC, call: "write") }
      done += count
    }
  }

  public func truncate(to byteCount: UInt64) throws(SystemError) {
    guard ftruncate(descriptor, off_t(byteCount)) == 0 else {
      throw SystemError(errno: Glibc.errno, call: "ftruncate")
    }
  }

  /// Makes all writes durable.
  public func synchronize() throws(SystemError) {
    guard fdatasync(descriptor) == 0 else {
      throw SystemError(errno: Glibc.errno, call: "fdatasync")
    }
  }

  /// The start of the next data, or of the next hole, at or after `offset`; nil past the last one.
  public func nextData(from offset: UInt64) throws(SystemError) -> UInt64? {
    try seek(offset, Int32(CLINUX_SEEK_DATA))
  }

  public func nextHole(from offset: UInt64) throws(SystemError) -> UInt64? {
    try seek(offset, Int32(CLINUX_SEEK_HOLE))
  }

  private func seek(_ offset: UInt64, _ whence: Int32) throws(SystemError) -> UInt64? {
    let result = clinux_seek(descriptor, Int64(offset), whence)
    if result == -Int64(ENXIO) { return nil }
    return UInt64(try SystemError.check(result, "lseek"))
  }
}
