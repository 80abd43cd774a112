// SPDX-License-Identifier: Apache-2.0
//
// Where lint finds an export. Who reads it from a URI is above. This file performs no I/O.

import LinuxIO

/// An export and the address of its server.
public struct LintPlace: Hashable, Sendable {
  public typealias Address = Dialer.Target

  public let address: Address
  public let export: String

  public init(_ address: Address, export: String = "") {
    self.address = address
    self.export = export
  }

  /// The address for people.
  var text: String {
    switch address {
    case .unix(let path): path.hasPrefix("\0") ? "@" + path.dropFirst() : path
    case .tcp(let host, let port): "\(host):\(port)"
    case .addresses(let addresses): addresses.map { "\($0)" }.joined(separator: ", ")
    case .vsock(let contextID, let port): "vsock \(contextID):\(port)"
    }
  }
}
