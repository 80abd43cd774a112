// SPDX-License-Identifier: Apache-2.0
//
// Bytes that a READ returned, comparable without flooding a test's output.

/// Received data. Not a collection on purpose: a failed `#expect` would print a difference of
/// megabytes; this prints where the first one is.
public struct WireData: Hashable, Sendable, CustomStringConvertible {
  public var bytes: [UInt8]

  public init(_ bytes: [UInt8] = []) { self.bytes = bytes }

  public var count: Int { bytes.count }

  public subscript(range: Range<Int>) -> WireData { WireData(Array(bytes[range])) }

  public static func == (data: WireData, expected: [UInt8]) -> Bool { data.bytes == expected }

  public var description: String {
    let shown = bytes.prefix(16).map { String($0, radix: 16) }.joined(separator: " ")
    return "\(bytes.count) bytes: \(shown)\(bytes.count > 16 ? " ..." : "")"
  }

  /// Where this differs from `expected` first, or nil.
  public func difference(from expected: [UInt8]) -> String? {
    guard bytes != expected else { return nil }
    guard let index = zip(bytes, expected).enumerated().first(where: { $1.0 != $1.1 })?.offset
    else { return "\(bytes.count) bytes instead of \(expected.count)" }
    return "byte \(index) is \(bytes[index]) instead of \(expected[index])"
  }
}
