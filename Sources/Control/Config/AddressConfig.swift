// SPDX-License-Identifier: Apache-2.0
//
// Where the user wants the server to listen. This file performs no I/O.

/// The addresses of a server, in the user's words. More may come from the service manager.
public struct AddressConfig: Sendable {
  /// Paths; one that starts with @ is an abstract name (unix(7)).
  public var socketPaths: [String] = []
  /// Of the sockets at `socketPaths`.
  public var socketMode: UInt32
  /// `USER[:GROUP]`.
  public var socketOwner: String?
  public var tcpEndpoints: [TCPEndpoint] = []
  public var allowsTCPWithoutTLS = false
  /// Ports for virtual machines on this host (vsock(7)).
  public var vsockPorts: [UInt32] = []
  /// Listening sockets that this process inherited, by number.
  public var descriptors: [Int32] = []
  /// Where to listen for `strata status` and its like; nil for nowhere.
  public var controlPath: String?

  public init(socketMode: UInt32) { self.socketMode = socketMode }
}
