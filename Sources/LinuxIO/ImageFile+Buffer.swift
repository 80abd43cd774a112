// SPDX-License-Identifier: Apache-2.0
//
// Reading into and writing from parts of a buffer that is used again and again, and looking for
// zeroes in it. Source: pread(2), pwrite(2). Blocks.

import BlockTypes
import Glibc

extension ImageFile {
  /// Reads into `buffer[part]`; returns how many bytes there were, fewer only where the file ends.
  public func read(
    at offset: UInt64, into buffer: inout [UInt8], _ part: Range<Int>
  ) throws(SystemError) -> Int {
    precondition(part.upperBound <= buffer.count, "a read passes the end of its buffer")
    var done = 0
    while done < part.count {
      // SAFETY: the part lies inside the array, and no more than its rest is asked for.
      let count = unsafe buffer.withUnsafeMutableBytes { bytes in
        unsafe pread(
          descriptor, bytes.baseAddress! + part.lowerBound + done, part.count - done,
          off_t(offset) + off_t(done))
      }
      if count < 0 {
        if Glibc.errno == EINTR { continue }
        throw SystemError(errno: Glibc.errno, call: "read")
      }
      if count == 0 { break }
      done += count
    }
    return done
  }

  /// Writes all of `buffer[part]` at `offset`.
  public func write(
    _ buffer: [UInt8], _ part: Range<Int>, at offset: UInt64
  ) throws(SystemError) {
    precondition(part.upperBound <= buffer.count, "a write passes the end of its buffer")
    var done = 0
    while done < part.count {
      // SAFETY: as in `read`.
      let count = unsafe buffer.withUnsafeBytes { bytes in
        unsafe pwrite(
          descriptor, bytes.baseAddress! + part.lowerBound + done, part.count - done,
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
}

extension LayerStorage {
  /// As `ImageFile.read(at:into:_:)`.
  public func read(
    at offset: UInt64, into buffer: inout [UInt8], _ part: Range<Int>
  ) throws(SystemError) -> Int {
    switch self {
    case .local(let file): return try file.read(at: offset, into: &buffer, part)
    case .remote:
      let bytes = try read(at: offset, byteCount: part.count)
      buffer.replaceSubrange(part.lowerBound..<(part.lowerBound + bytes.count), with: bytes)
      return bytes.count
    }
  }

  /// As `ImageFile.write(_:_:at:)`.
  public func write(
    _ buffer: [UInt8], _ part: Range<Int>, at offset: UInt64
  ) throws(SystemError) {
    switch self {
    case .local(let file): try file.write(buffer, part, at: offset)
    case .remote: try write(Array(buffer[part]), at: offset)
    }
  }
}

extension [UInt8] {
  /// Decrypts all bytes, which are whole sectors; false when the cipher fails.
  public mutating func unseal(with cipher: any SectorCipher, firstSector: UInt64) -> Bool {
    // SAFETY: the span covers the array's own bytes and is used during the call only.
    var all = mutableSpan
    var bytes = unsafe all.mutableBytes
    return cipher.decrypt(&bytes, firstSector: firstSector)
  }

  /// Makes all bytes of `part` zero.
  public mutating func clear(_ part: Range<Int>) {
    precondition(part.upperBound <= count, "zeroes pass the end of their buffer")
    // SAFETY: the part lies inside the array.
    unsafe withUnsafeMutableBytes { bytes in
      guard let start = bytes.baseAddress, !part.isEmpty else { return }
      unsafe memset(start + part.lowerBound, 0, part.count)
    }
  }

  /// Whether all bytes of `part` are zero.
  public func isZero(_ part: Range<Int>) -> Bool {
    precondition(part.upperBound <= count, "a look for zeroes passes the end of its buffer")
    guard !part.isEmpty else { return true }
    // SAFETY: both areas lie inside the part; a run whose first byte is zero and each byte of which
    // is the one before it is zero.
    return unsafe withUnsafeBytes { bytes in
      unsafe bytes[part.lowerBound] == 0
        && memcmp(
          bytes.baseAddress! + part.lowerBound, bytes.baseAddress! + part.lowerBound + 1,
          part.count - 1) == 0
    }
  }
}
