// SPDX-License-Identifier: Apache-2.0
//
// Big-endian fields for the test client, which shares no code with the server on purpose.

/// A cursor over received bytes.
public struct WireReader {
  public let bytes: [UInt8]
  public private(set) var position = 0

  public init(_ bytes: [UInt8]) { self.bytes = bytes }

  public var remainingCount: Int { bytes.count - position }

  public mutating func integer<T: FixedWidthInteger & UnsignedInteger>(
    _ type: T.Type = T.self
  ) throws -> T {
    try take(T.bitWidth / 8).reduce(0) { $0 << 8 | T($1) }
  }

  public mutating func take(_ count: Int) throws -> ArraySlice<UInt8> {
    guard count <= remainingCount else {
      throw WireError.violation("a message of \(bytes.count) bytes is too short for its fields")
    }
    defer { position += count }
    return bytes[position..<position + count]
  }

  public mutating func rest() -> [UInt8] {
    defer { position = bytes.count }
    return Array(bytes[position...])
  }
}

/// The big-endian bytes of integers, one after the other.
public func wire<each T: FixedWidthInteger>(_ values: repeat each T) -> [UInt8] {
  var bytes: [UInt8] = []
  for value in repeat each values {
    withUnsafeBytes(of: value.bigEndian) { bytes.append(contentsOf: $0) }
  }
  return bytes
}

/// `text` with its length of 32 bits in front.
public func counted(_ text: String) -> [UInt8] { counted(Array(text.utf8)) }

public func counted(_ bytes: [UInt8]) -> [UInt8] { wire(UInt32(bytes.count)) + bytes }
