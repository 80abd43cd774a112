// SPDX-License-Identifier: Apache-2.0
//
// The bytes that the fuzzer invents, taken apart: a few for the setting, the others for the wire.
// This file performs no I/O.

/// A cursor over the fuzzer's bytes. Behind their end everything is 0.
struct FuzzInput {
  private var rest: ArraySlice<UInt8>

  init(_ bytes: [UInt8]) { rest = bytes[...] }

  var isEmpty: Bool { rest.isEmpty }

  mutating func byte() -> UInt8 { rest.popFirst() ?? 0 }

  mutating func integer<T: FixedWidthInteger & UnsignedInteger>(_ type: T.Type = T.self) -> T {
    (0..<T.bitWidth / 8).reduce(0) { value, _ in value << 8 | T(byte()) }
  }

  /// One of `choices`.
  mutating func choice<T>(_ choices: [T]) -> T { choices[Int(byte()) % choices.count] }

  mutating func bytes(_ count: Int) -> [UInt8] {
    defer { rest = rest.dropFirst(count) }
    return Array(rest.prefix(count))
  }

  mutating func all() -> [UInt8] { bytes(rest.count) }
}

/// In which portions a stream arrives: all at once, or in pieces of changing lengths.
struct Portions {
  private var state: UInt8

  /// - Parameter seed: 0 for all at once, 1 for single bytes.
  init(_ seed: UInt8) { state = seed }

  /// Calls `take` with one portion after the other until it returns false or all are taken.
  mutating func deliver(_ bytes: [UInt8], _ take: (ArraySlice<UInt8>) -> Bool) {
    var position = 0
    while position < bytes.count {
      let end = state == 0 ? bytes.count : min(bytes.count, position + length())
      guard take(bytes[position..<end]) else { return }
      position = end
    }
  }

  private mutating func length() -> Int {
    guard state > 1 else { return 1 }
    state = state &* 197 &+ 3
    if state < 2 { state = 2 }
    return 1 + Int(state) % 61
  }
}

extension [UInt8] {
  mutating func appendBigEndian<T: FixedWidthInteger>(_ value: T) {
    Swift.withUnsafeBytes(of: value.bigEndian) { append(contentsOf: $0) }
  }

  func bigEndian<T: FixedWidthInteger & UnsignedInteger>(_ type: T.Type, at offset: Int) -> T {
    self[offset..<offset + T.bitWidth / 8].reduce(0) { $0 << 8 | T($1) }
  }
}

/// Ends the run: the fuzzer keeps the input.
func require(_ condition: Bool, _ sentence: @autoclosure () -> String) {
  if !condition { fatalError(sentence()) }
}
