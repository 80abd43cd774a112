// SPDX-License-Identifier: Apache-2.0
//
// Requests of generic netlink as bytes, in the byte order of this machine.
// Source: linux/netlink.h, linux/genetlink.h; the kernel's "Introduction to Netlink".
// This file performs no I/O.

/// A request that is being put together: header, command, attributes.
struct NetlinkMessage {
  /// Bytes before the first attribute: 16 of the message, 4 of generic netlink.
  static let headerByteCount = 20
  static let wantsReply: UInt16 = 0x1 | 0x4  // NLM_F_REQUEST, NLM_F_ACK

  private(set) var bytes: [UInt8]

  /// - Parameters:
  ///   - type: the number of the family, as the kernel has told it.
  ///   - sequence: comes back in every answer.
  init(type: UInt16, command: UInt8, version: UInt8, sequence: UInt32) {
    bytes = []
    bytes.appendNative(UInt32(Self.headerByteCount))
    bytes.appendNative(type)
    bytes.appendNative(Self.wantsReply)
    bytes.appendNative(sequence)
    bytes.appendNative(UInt32(0))  // the port: the kernel knows whose socket it is
    bytes.append(command)
    bytes.append(version)
    bytes.appendNative(UInt16(0))
  }

  mutating func append<Value: FixedWidthInteger>(_ attribute: UInt16, _ value: Value) {
    append(attribute) { $0.appendNative(value) }
  }

  /// Appends a text and its final zero.
  mutating func append(_ attribute: UInt16, text: String) {
    append(attribute) {
      $0.append(contentsOf: text.utf8)
      $0.append(0)
    }
  }

  /// Appends attributes inside an attribute.
  mutating func append(_ attribute: UInt16, nested: (inout NetlinkMessage) -> Void) {
    let start = bytes.count
    appendHeader(attribute | 0x8000)  // NLA_F_NESTED
    nested(&self)
    close(start)
  }

  private mutating func append(_ attribute: UInt16, payload: (inout [UInt8]) -> Void) {
    let start = bytes.count
    appendHeader(attribute)
    payload(&bytes)
    close(start)
  }

  /// The length comes later, with `close`.
  private mutating func appendHeader(_ attribute: UInt16) {
    bytes.appendNative(UInt16(0))
    bytes.appendNative(attribute)
  }

  /// Sets the lengths of the attribute at `start` and of the message, and pads to four bytes; an
  /// attribute's own length is that before padding.
  private mutating func close(_ start: Int) {
    let byteCount = bytes.count - start
    precondition(byteCount <= UInt16.max, "an attribute is too long")
    bytes.storeNative(UInt16(byteCount), at: start)
    while bytes.count % 4 != 0 { bytes.append(0) }
    bytes.storeNative(UInt32(bytes.count), at: 0)
  }
}

extension [UInt8] {
  /// Appends an integer in this machine's byte order.
  mutating func appendNative<Value: FixedWidthInteger>(_ value: Value) {
    let start = count
    append(contentsOf: repeatElement(0, count: Value.bitWidth / 8))
    storeNative(value, at: start)
  }

  mutating func storeNative<Value: FixedWidthInteger>(_ value: Value, at offset: Int) {
    // On a machine of either order, the low byte of `littleEndian` is the one that is stored first.
    for index in 0..<Value.bitWidth / 8 {
      self[offset + index] = UInt8(truncatingIfNeeded: value.littleEndian >> (8 * index))
    }
  }
}

extension ArraySlice<UInt8> {
  /// The integer in this machine's byte order that starts `offset` bytes behind the start; nil when
  /// the slice ends before it does.
  func loadNative<Value: FixedWidthInteger>(_ type: Value.Type, at offset: Int) -> Value? {
    let size = Value.bitWidth / 8
    guard offset >= 0, offset <= count - size else { return nil }
    var little: Value = 0
    for index in 0..<size {
      little |= Value(self[startIndex + offset + index]) << Value(8 * index)
    }
    return Value(littleEndian: little)
  }
}
