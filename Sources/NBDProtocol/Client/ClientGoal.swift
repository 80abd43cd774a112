// SPDX-License-Identifier: Apache-2.0
//
// What a client wants from a handshake. This file performs no I/O.

/// The wishes that a handshake tries to fulfil, best first.
public struct ClientGoal: Hashable, Sendable {
  public enum Aim: Hashable, Sendable {
    /// Enter the export of this name.
    case enter(exportName: String)
    /// Learn about all exports, then leave.
    case list
  }

  /// The meta contexts to select.
  public enum Contexts: Hashable, Sendable {
    case none
    /// Those that the server has.
    case all
    /// At most `ClientHandshake.contextsMax` of them; what the server lacks is not selected.
    case named([String])
  }

  public enum TLS: Hashable, Sendable {
    case never
    /// TLS where the server has it, else plaintext.
    case offered
    /// Without TLS there is no connection: it is never given up for plaintext.
    case required
  }

  public var aim: Aim
  public var contexts: Contexts
  public var tls: TLS
  /// What the client may speak at best; tests and old servers want less.
  public var modeMax: ProtocolMode

  public init(
    _ aim: Aim, contexts: Contexts = .all, tls: TLS = .never, modeMax: ProtocolMode = .extended
  ) {
    self.aim = aim
    self.contexts = contexts
    self.tls = tls
    self.modeMax = modeMax
  }
}
