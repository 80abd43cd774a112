// SPDX-License-Identifier: Apache-2.0
//
// Checks that the sandbox holds, by what the kernel says and by trying what must fail.
// Source: proc(5), credentials(7), capabilities(7).

import CLinux
import Glibc

extension Sandbox {
  /// Throws unless every privilege is gone.
  ///
  /// If a forbidden act succeeds after all, the process must end: it has just changed itself.
  func verify() throws(SandboxError) {
    let status = try ProcessStatus.current()
    if let violation = violation(in: status) { throw SandboxError(violation) }
    guard clinux_dumpable() == 0 else { throw SandboxError("the process is still dumpable") }

    // Root alone may change its root folder; "/" is where it already is.
    // SAFETY: the path is a literal.
    guard unsafe chroot("/") != 0 else {
      throw SandboxError("the process can still change its root folder")
    }
    guard status.userIDs.contains(where: { $0 != 0 }) else { return }
    guard setuid(0) != 0 else { throw SandboxError("the process can still become root") }
    guard seteuid(0) != 0 else { throw SandboxError("the process can still act as root") }
    guard status.groupIDs.contains(where: { $0 != 0 }) else { return }
    guard setgid(0) != 0 else { throw SandboxError("the process can still join root's group") }
  }

  /// The first fact of `status` that is not as this sandbox wants it, as a sentence.
  ///
  /// The bounding set is no matter of its own: no_new_privs keeps it from ever giving anything.
  func violation(in status: ProcessStatus) -> String? {
    if let identity {
      guard status.userIDs.allSatisfy({ $0 == identity.userID }) else {
        return "not every user id is \(identity.userID): \(status.userIDs)"
      }
      guard status.groupIDs.allSatisfy({ $0 == identity.groupID }) else {
        return "not every group id is \(identity.groupID): \(status.groupIDs)"
      }
    }
    guard status.heldCapabilities == 0 else {
      return "capabilities are left: 0x\(String(status.heldCapabilities, radix: 16))"
    }
    guard status.hasNoNewPrivileges else { return "no_new_privs is not set" }
    return nil
  }
}
