// SPDX-License-Identifier: Apache-2.0
//
// Gives up every privilege of the process, once and for good. Source: capabilities(7),
// credentials(7), prctl(2), capng_change_id(3).
//
// Capabilities belong to a thread, so this runs while the process has one; threads that start
// later inherit the result.

import CCapNG
import CLinux
import Glibc

/// Where a process ends up.
public struct Sandbox: Hashable, Sendable {
  /// Whom to become; nil stays the user that the process was started as.
  public let identity: Identity?

  public init(identity: Identity?) { self.identity = identity }

  /// Drops user, groups and capabilities, then checks by trying that there is no way back.
  ///
  /// The caller has opened all that it will ever need: afterwards it may be unable to open a path.
  /// When this throws, the process is in an undefined mixture and must end.
  public func enter() throws(SandboxError) {
    umask(0o077)
    try Sandbox.forbidCoreFiles()
    try dropIdentityAndCapabilities()
    try Sandbox.check(clinux_set_no_new_privileges(), "PR_SET_NO_NEW_PRIVS")
    // Last, because a change of the user sets the attribute anew.
    try Sandbox.check(clinux_set_dumpable(0), "PR_SET_DUMPABLE")
    try verify()
  }

  private static func forbidCoreFiles() throws(SandboxError) {
    var limit = rlimit(rlim_cur: 0, rlim_max: 0)
    // SAFETY: `limit` outlives the call, which only reads it.
    guard unsafe setrlimit(__rlimit_resource_t(RLIMIT_CORE.rawValue), &limit) == 0 else {
      throw SandboxError(call: "RLIMIT_CORE", errno: errno)
    }
  }

  private func dropIdentityAndCapabilities() throws(SandboxError) {
    guard capng_get_caps_process() == 0 else {
      throw SandboxError("the capabilities of this process cannot be read")
    }
    let mayDropBounding = capng_have_capability(CAPNG_PERMITTED, Sandbox.setPrivileges) != 0
    guard let identity, identity != Identity.current() else {
      return try dropCapabilities(andBounding: mayDropBounding)
    }
    // Without CAP_SETPCAP the bounding set stays; no_new_privs makes it meaningless.
    var flags = CAPNG_DROP_SUPP_GRP.rawValue | CAPNG_CLEAR_AMBIENT.rawValue
    if mayDropBounding { flags |= CAPNG_CLEAR_BOUNDING.rawValue }
    capng_clear(CAPNG_SELECT_BOTH)
    let result = capng_change_id(
      Int32(bitPattern: identity.userID), Int32(bitPattern: identity.groupID),
      capng_flags_t(rawValue: flags))
    guard result == 0 else {
      throw SandboxError(
        "this process may not become user \(identity.userID), group \(identity.groupID)"
          + " (capng_change_id: \(result))",
        wayOut: "start it as that user, or give it CAP_SETUID and CAP_SETGID")
    }
  }

  /// For a process that keeps its user: a normal one, or root on explicit demand.
  private func dropCapabilities(andBounding mayDropBounding: Bool) throws(SandboxError) {
    let identity = Identity.current()
    if identity.isRoot {
      guard setgroups(0, nil) == 0 || errno == EPERM else {
        throw SandboxError(call: "setgroups", errno: errno)
      }
    }
    // A program file with the set-user-id bit leaves other real and saved ids behind.
    guard setregid(identity.groupID, identity.groupID) == 0,
      setreuid(identity.userID, identity.userID) == 0
    else { throw SandboxError(call: "setreuid", errno: errno) }
    capng_clear(CAPNG_SELECT_ALL)
    // The bounding set first: to drop it needs a capability that the second call takes away.
    if mayDropBounding, capng_apply(CAPNG_SELECT_BOUNDS) != 0 {
      throw SandboxError("the capability bounding set cannot be emptied")
    }
    guard capng_apply(CAPNG_SELECT_AMBIENT) == 0, capng_apply(CAPNG_SELECT_CAPS) == 0 else {
      throw SandboxError("the capabilities of this process cannot be dropped")
    }
  }

  private static func check(_ result: Int32, _ call: String) throws(SandboxError) {
    guard result >= 0 else { throw SandboxError(call: call, errno: -result) }
  }

  /// CAP_SETPCAP of linux/capability.h.
  private static let setPrivileges: UInt32 = 8
}
