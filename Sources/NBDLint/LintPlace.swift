// SPDX-License-Identifier: Apache-2.0
//
// Where lint finds an export. Who reads it from a URI is above. This file performs no I/O.

/// An export and the address of its server.
public struct LintPlace: Hashable, Sendable {
  public enum Address: Hashable, Sendable {
    case unix(path: String)
    case tcp(host: String, port: UInt16)
  }

  public let address: Address
  public let export: String

  public init(_ address: Address, export: String = "") {
    self.address = address
    self.export = export
  }
}
