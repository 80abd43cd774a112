// SPDX-License-Identifier: Apache-2.0
//
// Which servers a backing file's name may make us talk to, in the user's words.
// See tools/decisions/0017. This file performs no I/O.

import NBDProtocol

/// What the user allows, and how long is waited for it.
public struct RemotePolicy: Hashable, Sendable {
  /// URIs that images may name as their backing files, or `RemotePolicy.any`.
  public var allowedBases: [String] = []
  /// Seconds for which requests wait for a server that is gone.
  public var secondsMax = RemotePolicy.secondsMaxDefault

  /// The word that allows every URI.
  public static let any = "any"
  public static let secondsMaxDefault = 60
  public static let secondsRange = 1...86_400

  public init() {}

  /// Why an image may not name `uri` as its backing file; nil when it may.
  ///
  /// URIs are compared by what they mean. `any` does not cover files of this machine that a URI
  /// names for TLS: those are for the user to choose.
  public func objection(to uri: NBDURI) throws(ControlError) -> String? {
    for allowed in allowedBases where allowed != RemotePolicy.any {
      if try RemotePolicy.parse(allowed) == uri { return nil }
    }
    guard allowedBases.contains(RemotePolicy.any) else {
      return "it names a server, which images may do only where that is allowed"
    }
    guard uri.tls.certificatesFolder == nil, uri.tls.keyFile == nil else {
      return "it names files of this machine for TLS, which 'any' does not allow"
    }
    return nil
  }

  /// Checks the words without looking at the world.
  public func validate() throws(ControlError) {
    for allowed in allowedBases where allowed != RemotePolicy.any {
      _ = try RemotePolicy.parse(allowed)
    }
    guard RemotePolicy.secondsRange.contains(secondsMax) else {
      throw ControlError(
        "--remote-timeout",
        "\(secondsMax) is outside \(RemotePolicy.secondsRange.lowerBound)..."
          + "\(RemotePolicy.secondsRange.upperBound)")
    }
  }

  private static func parse(_ text: String) throws(ControlError) -> NBDURI {
    do throws(NBDURIFault) {
      return try NBDURI(text)
    } catch {
      throw ControlError(
        "--allow-remote-base", "'\(text)' is neither 'any' nor an NBD URI: \(error)")
    }
  }
}
