// SPDX-License-Identifier: Apache-2.0
//
// Aligned memory for payloads and tables, reused warm. Bounded by what its user lets requests
// hold; sizes are powers of two from 4 KiB on.

import BlockTypes
import CLinux
import Glibc

/// Hands out page-aligned buffers and takes them back. One thread uses it.
public struct BufferPool: ~Copyable {
  /// Smallest buffer: one page, which satisfies any O_DIRECT alignment that occurs.
  public static let smallestByteCount = 4096
  /// Buffers below this size are carved from slabs of this size.
  static let slabByteCount = 1 << 20
  /// Released bytes of large buffers that stay mapped for the next request.
  static let warmByteCountMax = 64 << 20

  /// One stack of free addresses for each power of two.
  private var freeAddresses: [[UInt]] = Array(repeating: [], count: 48)
  private var warmByteCount = 0
  /// Bytes of each mapping that has not ended, by its address.
  private var mappings: [UInt: Int] = [:]
  /// Bytes handed out and not yet returned.
  public private(set) var heldByteCount = 0
  /// Calls of mmap(2) and munmap(2).
  public private(set) var systemCallCount: UInt64 = 0

  public init() {}

  /// The size that a request for `byteCount` bytes really takes.
  public static func roundedByteCount(_ byteCount: Int) -> Int {
    let wanted = max(byteCount, smallestByteCount)
    return 1 << (Int.bitWidth - (wanted - 1).leadingZeroBitCount)
  }

  /// Returns a buffer of at least `byteCount` bytes with unspecified contents, or nil when the
  /// machine has no memory left.
  public mutating func acquire(byteCount: Int) -> IOBuffer? {
    let rounded = BufferPool.roundedByteCount(byteCount)
    let sizeClass = rounded.trailingZeroBitCount
    if freeAddresses[sizeClass].isEmpty {
      guard refill(sizeClass: sizeClass, byteCount: rounded) else { return nil }
    } else if rounded >= BufferPool.slabByteCount {
      warmByteCount -= rounded
    }
    guard let address = freeAddresses[sizeClass].popLast() else { return nil }
    heldByteCount += rounded
    // SAFETY: the address came from mmap in `refill`, is `rounded` bytes long and is handed out
    // once until it is released.
    return unsafe IOBuffer(
      base: UnsafeMutableRawPointer(bitPattern: address), byteCount: rounded)
  }

  private mutating func refill(sizeClass: Int, byteCount: Int) -> Bool {
    let mappedByteCount = max(byteCount, BufferPool.slabByteCount)
    systemCallCount += 1
    guard let base = unsafe clinux_map(mappedByteCount) else { return false }
    let address = UInt(bitPattern: base)
    mappings[address] = mappedByteCount
    for offset in stride(from: mappedByteCount - byteCount, through: 0, by: -byteCount) {
      freeAddresses[sizeClass].append(address + UInt(offset))
    }
    return true
  }

  /// Takes back a buffer that `acquire` returned. The empty buffer is ignored.
  public mutating func release(_ buffer: IOBuffer) {
    guard !buffer.isEmpty else { return }
    let sizeClass = buffer.byteCount.trailingZeroBitCount
    heldByteCount -= buffer.byteCount
    precondition(heldByteCount >= 0, "a buffer was released twice")
    // SAFETY: the handle is given up here; its address goes back to the stack it came from, or its
    // mapping, which it owns alone at this size, ends.
    let address = unsafe UInt(bitPattern: buffer.base)
    if buffer.byteCount >= BufferPool.slabByteCount {
      guard warmByteCount + buffer.byteCount <= BufferPool.warmByteCountMax else {
        systemCallCount += 1
        mappings[address] = nil
        unsafe munmap(UnsafeMutableRawPointer(bitPattern: address), buffer.byteCount)
        return
      }
      warmByteCount += buffer.byteCount
    }
    freeAddresses[sizeClass].append(address)
  }

  /// Gives all memory back to the kernel, whoever holds a part of it, for a pool that nobody uses
  /// again.
  public mutating func unmapAll() {
    for (address, byteCount) in mappings {
      // SAFETY: the address and the length are those of one mapping; the caller vouches for its
      // users.
      unsafe munmap(UnsafeMutableRawPointer(bitPattern: address), byteCount)
    }
    self = BufferPool()
  }
}
