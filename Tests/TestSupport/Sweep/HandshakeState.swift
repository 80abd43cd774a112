// SPDX-License-Identifier: Apache-2.0
//
// The states of a server's handshake, as the way that leads to each. Source: proto.md, "Handshake
// phase". This file performs no I/O.

/// Where a handshake stands before the option that is looked at comes.
public struct HandshakeState: Sendable, CustomStringConvertible {
  /// What the server makes of TLS.
  public enum TLS: Sendable { case off, offered, required }
  /// What the server makes of this client and this export.
  public enum Access: Sendable { case open, needsTLS, refused }

  public let name: String
  /// What the client sends first.
  public let flags: UInt32
  /// Options that are sent before, each of which must be acknowledged.
  public let opening: [[UInt8]]
  public let tls: TLS
  /// The last option of the opening was STARTTLS, and TLS is up.
  public let isSecure: Bool
  /// TLS proved who the client is, and that it may use nothing.
  public let isRefused: Bool
  /// The server has been told to stop.
  public let isStopping: Bool
  /// What stands between this client and the export.
  public let access: Access

  private init(
    _ name: String, flags: UInt32 = 3, _ opening: [[UInt8]] = [], tls: TLS = .off,
    isSecure: Bool = false, isRefused: Bool = false, isStopping: Bool = false,
    access: Access = .open
  ) {
    self.name = name
    self.flags = flags
    self.opening = opening
    self.tls = tls
    self.isSecure = isSecure
    self.isRefused = isRefused
    self.isStopping = isStopping
    self.access = access
  }

  /// An option of a client in this state is answered with an error that is the same for all.
  public var isBarred: Bool { (tls == .required && !isSecure) || isRefused }
  /// Without FIXED_NEWSTYLE there are no replies to options.
  public var isFixed: Bool { flags & 1 != 0 }
  public var description: String { name }

  public static func all(export: String) -> [HandshakeState] {
    let structured = WireClient.option(8)
    let extended = WireClient.option(11)
    let startTLS = WireClient.option(5)
    let contexts = WireClient.option(
      10, WireClient.metaData(export, ["base:allocation", "qemu:allocation-depth"]))
    return [
      HandshakeState("newstyle", flags: 0),
      HandshakeState("newstyle, no zeroes", flags: 2),
      HandshakeState("fixed", flags: 1),
      HandshakeState("fixed, no zeroes"),
      HandshakeState("structured replies", [structured]),
      HandshakeState("structured replies, contexts", [structured, contexts]),
      HandshakeState("extended headers", [extended]),
      HandshakeState("extended headers, contexts", [extended, contexts]),
      HandshakeState("TLS offered", tls: .offered),
      HandshakeState("TLS offered, in use", [startTLS], tls: .offered, isSecure: true),
      HandshakeState("TLS required", tls: .required),
      HandshakeState("TLS required, in use", [startTLS], tls: .required, isSecure: true),
      HandshakeState(
        "TLS required, client refused", [startTLS], tls: .required, isSecure: true,
        isRefused: true),
      HandshakeState("export needs TLS", tls: .offered, access: .needsTLS),
      HandshakeState(
        "export needs TLS, structured replies", [structured], tls: .offered, access: .needsTLS),
      HandshakeState("export refused", access: .refused),
      HandshakeState("stopping", isStopping: true),
    ]
  }
}
