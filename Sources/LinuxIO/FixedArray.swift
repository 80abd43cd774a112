// SPDX-License-Identifier: Apache-2.0
//
// An array whose length never changes and whose elements never move. Elements may be noncopyable,
// and an access neither retains nor checks uniqueness, which is why the hot path uses it.

import CLinux
import Glibc

/// `count` elements in one allocation, bounds-checked.
@safe public struct FixedArray<Element: ~Copyable>: ~Copyable {
  @usableFromInline let base: UnsafeMutablePointer<Element>
  public let count: Int
  @usableFromInline let isMapped: Bool

  /// Builds each element by `make`, which receives its index.
  @inlinable public init(count: Int, _ make: (Int) -> Element) {
    precondition(count >= 0, "an array has no negative length")
    // SAFETY: every element is initialised here and deinitialised in deinit; nobody else frees it.
    unsafe self.base = UnsafeMutablePointer<Element>.allocate(capacity: max(count, 1))
    self.count = count
    self.isMapped = false
    for index in 0..<count { unsafe (base + index).initialize(to: make(index)) }
  }

  deinit {
    if isMapped {
      unsafe munmap(base, max(count, 1) * MemoryLayout<Element>.stride)
    } else {
      unsafe base.deinitialize(count: count)
      unsafe base.deallocate()
    }
  }

  @inlinable public subscript(index: Int) -> Element {
    @inline(__always) unsafeAddress {
      precondition(index >= 0 && index < count, "an index is outside its array")
      return unsafe UnsafePointer(base + index)
    }
    @inline(__always) unsafeMutableAddress {
      precondition(index >= 0 && index < count, "an index is outside its array")
      return unsafe base + index
    }
  }
}

extension FixedArray where Element: BitwiseCopyable {
  /// `count` elements of zero bytes, in memory that costs nothing until it is touched.
  ///
  /// The caller vouches that an element of zero bytes is one that it may read.
  public init(zeroedCount count: Int) {
    unsafe self.init(zeroedTrivialCount: count)
  }
}

extension FixedArray {
  /// The same for a C structure that Swift does not know to be trivial (one with a union, say).
  ///
  /// The caller vouches that it is: elements are neither initialised nor deinitialised.
  @unsafe init(zeroedTrivialCount count: Int) {
    let byteCount = max(count, 1) * MemoryLayout<Element>.stride
    guard let address = unsafe clinux_map(byteCount) else {
      preconditionFailure("there is no memory for a fixed table of \(byteCount) bytes")
    }
    // SAFETY: the mapping is page-aligned, large enough, zeroed, and owned by this value alone.
    unsafe self.base = address.bindMemory(to: Element.self, capacity: max(count, 1))
    self.count = count
    self.isMapped = true
  }
}
