// SPDX-License-Identifier: Apache-2.0
//
// Taking, zeroing and giving back space in a file. Linux AIO cannot do these, so the data plane
// runs them on the blocking pool. Source: fallocate(2), BLKDISCARD and BLKZEROOUT (linux/fs.h).

import BlockTypes
import CLinux
import Glibc

extension ImageFile {
  /// Frees the range; it reads as zeroes afterwards.
  ///
  /// - Throws: EOPNOTSUPP where the filesystem or device has no such operation.
  public func punchHole(_ range: ByteRange) throws(SystemError) {
    guard !range.isEmpty else { return }
    if try medium() == .blockDevice {
      _ = try SystemError.check(
        clinux_block_zero(descriptor, range.start, range.byteCount), "BLKZEROOUT")
      return
    }
    try allocate(range, CLINUX_FALLOC_PUNCH_HOLE | CLINUX_FALLOC_KEEP_SIZE, "punch hole")
  }

  /// Makes the range read as zeroes and keeps, or takes, space for all of it.
  public func zeroAndProvision(_ range: ByteRange) throws(SystemError) {
    guard !range.isEmpty else { return }
    if try medium() == .blockDevice {
      _ = try SystemError.check(
        clinux_block_zero(descriptor, range.start, range.byteCount), "BLKZEROOUT")
      return
    }
    do throws(SystemError) {
      try allocate(range, CLINUX_FALLOC_ZERO_RANGE | CLINUX_FALLOC_KEEP_SIZE, "zero range")
    } catch {
      guard error.errno == EOPNOTSUPP else { throw error }
      try punchHole(range)
      try allocate(range, CLINUX_FALLOC_KEEP_SIZE, "allocate")
    }
  }

  /// Takes space for all of the range and changes none of its bytes, nor the length of the file.
  ///
  /// - Throws: EOPNOTSUPP where the filesystem cannot take space ahead.
  public func provision(_ range: ByteRange) throws(SystemError) {
    guard try medium() == .regularFile else { return }
    try allocate(range, CLINUX_FALLOC_KEEP_SIZE, "allocate")
  }

  /// Extends a regular file to `byteCount`, with space taken for all of the new part where the
  /// filesystem can: later writes there neither wait for an allocation nor find the disk full.
  public func grow(from old: UInt64, to new: UInt64) throws(SystemError) {
    do throws(SystemError) {
      try allocate(ByteRange(start: old, end: new), 0, "grow")
    } catch {
      guard error.errno == EOPNOTSUPP else { throw error }
      try truncate(to: new)
    }
  }

  private func allocate(
    _ range: ByteRange, _ mode: some BinaryInteger, _ call: String
  ) throws(SystemError) {
    var result: Int32
    repeat {
      result = clinux_fallocate(
        descriptor, Int32(mode), Int64(range.start), Int64(range.byteCount))
    } while result == -EINTR
    _ = try SystemError.check(result, call)
  }
}
