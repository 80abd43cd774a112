// SPDX-License-Identifier: Apache-2.0
//
// One run of equal status that `map` reports. This file performs no I/O.

/// A run of the disk with one source.
public struct MapExtent: Hashable, Sendable {
  public var start: UInt64
  public var byteCount: UInt64
  /// Index in the chain of the layer that tells the content; 0 is the top image.
  public var depth: Int
  /// Whether that layer holds the run itself, be it as data or as zeroes.
  public var isPresent: Bool
  public var isZero: Bool
  public var isData: Bool
  /// Where the run is in that layer's file; nil for compressed and for encrypted data, and where
  /// there is nothing.
  public var hostOffset: UInt64?

  public init(
    start: UInt64, byteCount: UInt64, depth: Int, isPresent: Bool, isZero: Bool, isData: Bool,
    hostOffset: UInt64? = nil
  ) {
    self.start = start
    self.byteCount = byteCount
    self.depth = depth
    self.isPresent = isPresent
    self.isZero = isZero
    self.isData = isData
    self.hostOffset = hostOffset
  }

  var end: UInt64 { start + byteCount }

  /// Whether `next` continues this run with the same status.
  func merges(with next: MapExtent) -> Bool {
    guard end == next.start, depth == next.depth, isPresent == next.isPresent,
      isZero == next.isZero, isData == next.isData
    else { return false }
    guard let hostOffset else { return next.hostOffset == nil }
    return next.hostOffset == hostOffset + byteCount
  }

  /// The object that qemu-img prints, in its order.
  public var jsonText: String {
    var text = "{ \"start\": \(start), \"length\": \(byteCount), \"depth\": \(depth), "
    text += "\"present\": \(isPresent), \"zero\": \(isZero), \"data\": \(isData)"
    if let hostOffset { text += ", \"offset\": \(hostOffset)" }
    return text + "}"
  }

  /// The row that qemu-img prints for data; nil for what people are not shown.
  public func humanRow(path: String) -> String? {
    guard isData && !isZero, let hostOffset else { return nil }
    return [start, byteCount, hostOffset].map(Self.column).joined() + path
  }

  /// Printed over the rows.
  public static let humanTitle =
    "Offset          Length          Mapped to       File"

  private static func column(_ number: UInt64) -> String {
    let text = number == 0 ? "0" : "0x" + String(number, radix: 16)
    return text + String(repeating: " ", count: max(0, 16 - text.count))
  }
}
