// SPDX-License-Identifier: Apache-2.0
//
// Names of the kernel's nbd devices. This file performs no I/O.

/// The device /dev/nbdN.
public struct DeviceName: Hashable, Sendable {
  /// Minor numbers have 20 bits.
  static let indexMax: UInt32 = (1 << 20) - 1

  public let index: UInt32

  public init(index: UInt32) { self.index = index }

  /// Takes /dev/nbdN, or nbdN.
  public init(_ text: String) throws(AttachFault) {
    let name = text.hasPrefix("/dev/") ? text.dropFirst(5) : text[...]
    let digits = name.dropFirst(3)
    guard name.hasPrefix("nbd"), !digits.isEmpty, digits.allSatisfy({ $0.isASCII }),
      digits.first?.isNumber == true
    else { throw .badDevice("a device is called /dev/nbd0, /dev/nbd1 and so on") }
    guard digits.allSatisfy({ $0.isNumber }) else {
      throw .badDevice("name the whole disk, not a partition")
    }
    guard let index = UInt32(digits), index <= Self.indexMax, "\(index)" == digits else {
      throw .badDevice("there is no such number of a device")
    }
    self.index = index
  }
}

extension DeviceName: CustomStringConvertible {
  public var description: String { "/dev/nbd\(index)" }
}
