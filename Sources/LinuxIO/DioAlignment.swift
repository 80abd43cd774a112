// SPDX-License-Identifier: Apache-2.0
//
// Which alignment O_DIRECT needs on a file. Source: statx(2) STATX_DIOALIGN, open(2) O_DIRECT.

import BlockTypes
import CLinux
import Glibc

extension ImageFile {
  /// Largest alignment that the data plane works with: one page of its table cache.
  public static let directAlignmentMax: UInt64 = 4096

  /// Turns page-cache bypass on and returns the alignment in bytes that it then needs for offsets,
  /// lengths and memory; nil when this file cannot do it, which leaves the page cache in use.
  public func enableDirect() -> UInt64? {
    guard clinux_set_direct(descriptor, 1) == 0 else { return nil }
    if let alignment = directAlignment() { return alignment }
    disableDirect()
    return nil
  }

  public func disableDirect() {
    let result = clinux_set_direct(descriptor, 0)
    precondition(result == 0, "O_DIRECT cannot be turned off")
  }

  private func directAlignment() -> UInt64? {
    var memory: UInt32 = 0
    var offset: UInt32 = 0
    let result = unsafe clinux_dio_alignment(descriptor, &memory, &offset)
    if result == 0, offset > 0 {
      let alignment = UInt64(max(memory, offset, 512))
      return alignment.isPowerOfTwo && alignment <= ImageFile.directAlignmentMax ? alignment : nil
    }
    return probedAlignment()
  }

  /// Tries reads at growing alignments, for filesystems whose statx does not tell.
  private func probedAlignment() -> UInt64? {
    var pool = BufferPool()
    guard let buffer = pool.acquire(byteCount: 8192) else { return nil }
    defer { pool.release(buffer) }
    for alignment in [512, 1024, 2048, 4096] {
      // SAFETY: the buffer holds 8,192 bytes; the read asks for at most 4,096 at its middle.
      let count = unsafe buffer.withAddress(alignment, alignment) { address in
        unsafe pread(descriptor, address, alignment, off_t(alignment))
      }
      if count >= 0 { return UInt64(alignment) }
      if errno != EINVAL { return nil }
    }
    return nil
  }
}
