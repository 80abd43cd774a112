// SPDX-License-Identifier: Apache-2.0
//
// Places for a fixed number of values that come and go and never move.

/// Up to `capacity` values, each at a place of its own. Access to a vacant place traps.
@safe public struct FixedPool<Element: ~Copyable>: ~Copyable {
  @usableFromInline let base: UnsafeMutablePointer<Element>
  @usableFromInline var occupied: [Bool]
  public private(set) var count = 0

  public init(capacity: Int) {
    precondition(capacity > 0, "a pool has no places")
    // SAFETY: a place is initialised exactly while `occupied` says so.
    unsafe base = UnsafeMutablePointer<Element>.allocate(capacity: capacity)
    occupied = [Bool](repeating: false, count: capacity)
  }

  deinit {
    for place in 0..<occupied.count where occupied[place] {
      unsafe (base + place).deinitialize(count: 1)
    }
    unsafe base.deallocate()
  }

  public var capacity: Int { occupied.count }

  @inlinable public func isOccupied(_ place: Int) -> Bool { occupied[place] }

  /// Puts a value in a vacant place and returns it; nil when all are occupied.
  public mutating func insert(_ element: consuming Element) -> Int? {
    guard let place = occupied.firstIndex(of: false) else { return nil }
    occupied[place] = true
    count += 1
    unsafe (base + place).initialize(to: element)
    return place
  }

  public mutating func remove(_ place: Int) {
    precondition(occupied[place], "a vacant place was vacated")
    occupied[place] = false
    count -= 1
    unsafe (base + place).deinitialize(count: 1)
  }

  /// Moves the value at `place` out.
  public mutating func take(_ place: Int) -> Element {
    precondition(occupied[place], "a vacant place was vacated")
    occupied[place] = false
    count -= 1
    // SAFETY: the place is initialised, and counts as vacant from now on.
    return unsafe (base + place).move()
  }

  @inlinable public subscript(place: Int) -> Element {
    @inline(__always) unsafeAddress {
      precondition(occupied[place], "a vacant place was read")
      return unsafe UnsafePointer(base + place)
    }
    @inline(__always) unsafeMutableAddress {
      precondition(occupied[place], "a vacant place was changed")
      return unsafe base + place
    }
  }
}
