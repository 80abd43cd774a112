// SPDX-License-Identifier: Apache-2.0
//
// Policy: whom the export process becomes. The choice is a pure function; the look-up of names
// reads the system's user database.

import Sandbox

/// Decides about the user of the worker.
public enum WorkerIdentity {
  /// Users that a process started as root becomes, the first that exists.
  static let candidates = ["strata", "nobody"]

  /// nil: stay who we are.
  ///
  /// A process that is not root cannot become anybody, so asking for it is an error unless it is
  /// that user already. Root stays root only when the user says so; it has no capabilities then.
  static func choose(
    current: Identity, requested: Identity?, fallback: Identity?
  ) throws(ControlError) -> Identity? {
    if let requested {
      guard current.isRoot || requested == current else {
        throw ControlError(
          "--user", "only root can become another user", wayOut: "leave the option out")
      }
      return requested
    }
    guard current.isRoot else { return nil }
    guard let fallback else {
      throw ControlError(
        "--user", "neither user \(candidates.joined(separator: " nor ")) exists",
        wayOut: "name an unprivileged user")
    }
    return fallback
  }

  static func resolve(requested text: String?) throws(ControlError) -> Identity? {
    var requested: Identity?
    var fallback: Identity?
    do throws(SandboxError) {
      if let text { requested = try Identity(parsing: text) }
    } catch {
      throw ControlError("--user", error)
    }
    if requested == nil, Identity.current().isRoot {
      for name in candidates where fallback == nil { fallback = Identity(ofUser: name) }
    }
    return try choose(current: .current(), requested: requested, fallback: fallback)
  }
}
