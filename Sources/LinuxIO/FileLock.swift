// SPDX-License-Identifier: Apache-2.0
//
// Image locks that QEMU understands: read locks of the open file description on single bytes, one
// for each permission held and one for each permission not shared. Nobody takes a write lock; who
// would conflict is found by asking for one. Source: fcntl(2), "Open file description locks";
// QEMU's byte ranges (100 and 200) as `lslocks` shows them. Blocks only on /proc, after a failure.

import BlockTypes
import CLinux
import Glibc

/// What a user of an image does to it, numbered as the locked bytes are.
private enum LockPermission: Int64, CaseIterable {
  case consistentRead = 0
  case write = 1
  case writeUnchanged = 2
  case resize = 3

  /// The byte that is locked while somebody holds this permission.
  var heldByte: Int64 { 100 + rawValue }
  /// The byte that is locked while somebody does not want others to have this permission.
  var unsharedByte: Int64 { 200 + rawValue }
}

extension ImageFile {
  /// Takes the locks of the one writer: others may neither write nor resize the image.
  ///
  /// Throws `.inUse` when somebody reads or writes it in a way that excludes this, and holds
  /// nothing then. The locks end with the file, or with `unlock()`.
  public func lockForWriting() throws(ImageError) {
    try lock(holding: [.consistentRead, .write, .resize], purpose: "writing")
  }

  /// Takes the locks of a reader, of which there can be many: nobody may write or resize.
  public func lockForReading() throws(ImageError) {
    try lock(holding: [.consistentRead], purpose: "reading")
  }

  /// Gives all locks back.
  public func unlock() {
    for permission in LockPermission.allCases {
      // Dropping a lock that is not there is no error, and no other failure is possible.
      _ = clinux_ofd_lock(descriptor, Int16(F_UNLCK), permission.heldByte, 1)
      _ = clinux_ofd_lock(descriptor, Int16(F_UNLCK), permission.unsharedByte, 1)
    }
  }

  private func lock(
    holding held: [LockPermission], purpose: String
  ) throws(ImageError) {
    let conflicts: Bool
    do throws(SystemError) {
      conflicts = try announceAndLook(holding: held)
    } catch {
      unlock()
      throw ImageError(.refused, "the image cannot be locked for \(purpose) (\(error))")
    }
    guard conflicts else { return }
    let holders = LockHolders.names(locking: self)
    unlock()
    throw ImageError(
      .inUse,
      "the image is in use\(holders.isEmpty ? "" : " by process \(holders)") and cannot be locked "
        + "for \(purpose); stop the other user first (info, check and map look on with -U)")
  }

  /// Takes the locks and returns whether somebody else's contradict them.
  ///
  /// Announces first and looks afterwards, so that of two newcomers at least one sees the other.
  private func announceAndLook(holding held: [LockPermission]) throws(SystemError) -> Bool {
    let unshared: [LockPermission] = [.write, .resize]
    for byte in held.map(\.heldByte) + unshared.map(\.unsharedByte) {
      _ = try SystemError.check(clinux_ofd_lock(descriptor, Int16(F_RDLCK), byte, 1), "lock")
    }
    for byte in held.map(\.unsharedByte) + unshared.map(\.heldByte) {
      let conflicts = try SystemError.check(
        clinux_ofd_lock_would_conflict(descriptor, Int16(F_WRLCK), byte, 1), "lock")
      if conflicts != 0 { return true }
    }
    return false
  }
}
