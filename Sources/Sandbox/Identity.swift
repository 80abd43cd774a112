// SPDX-License-Identifier: Apache-2.0
//
// Users and groups by name or by number. Source: getpwnam(3), getgrnam(3), credentials(7).
// Looking a name up reads the system's user database; do it before the sandbox is entered.

import Glibc

/// A user with a group: whom a process becomes, or who owns a socket.
public struct Identity: Hashable, Sendable {
  public let userID: UInt32
  public let groupID: UInt32

  public init(userID: UInt32, groupID: UInt32) {
    self.userID = userID
    self.groupID = groupID
  }

  /// Who this process is now (the effective ids).
  public static func current() -> Identity { Identity(userID: geteuid(), groupID: getegid()) }

  public var isRoot: Bool { userID == 0 }

  /// Looks up `USER` or `USER:GROUP`; each may be a name or a decimal number.
  ///
  /// Without a group it is the user's own; a number that no user has must come with one.
  public init(parsing text: String) throws(SandboxError) {
    let parts = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
    let user = String(parts[0])
    guard let found = Identity.user(user) else {
      throw SandboxError("there is no user '\(user)'", wayOut: "name one that exists")
    }
    var groupID = found.groupID
    if parts.count == 2 { groupID = try Identity.group(String(parts[1])) }
    guard let groupID else {
      throw SandboxError(
        "user \(user) has no entry that tells its group", wayOut: "say \(user):GROUP")
    }
    self.init(userID: found.userID, groupID: groupID)
  }

  /// The user `name` with its own group; nil when there is none.
  public init?(ofUser name: String) {
    guard let found = Identity.user(name), let groupID = found.groupID else { return nil }
    self.init(userID: found.userID, groupID: groupID)
  }

  /// The user with this name or number, which need not be in the system's database; nil when no
  /// user has the name.
  public static func userID(named text: String) -> UInt32? { user(text)?.userID }

  /// The same for a group.
  public static func groupID(named text: String) -> UInt32? {
    do throws(SandboxError) { return try group(text) } catch { return nil }
  }

  private static func user(_ text: String) -> (userID: UInt32, groupID: UInt32?)? {
    if let number = number(text) {
      // SAFETY: the record belongs to the C library and is read before the next look-up.
      guard let entry = unsafe getpwuid(number) else { return (number, nil) }
      // SAFETY: as above.
      return unsafe (number, entry.pointee.pw_gid)
    }
    // SAFETY: as above; `text` outlives the call.
    guard !text.isEmpty, let entry = unsafe getpwnam(text) else { return nil }
    // SAFETY: as above.
    return unsafe (entry.pointee.pw_uid, entry.pointee.pw_gid)
  }

  private static func group(_ text: String) throws(SandboxError) -> UInt32 {
    if let number = number(text) { return number }
    // SAFETY: the record belongs to the C library and is read before the next look-up.
    guard !text.isEmpty, let entry = unsafe getgrnam(text) else {
      throw SandboxError("there is no group '\(text)'", wayOut: "name one that exists")
    }
    // SAFETY: as above.
    return unsafe entry.pointee.gr_gid
  }

  /// A decimal id; the highest value means "leave as it is" to the kernel and is not one.
  private static func number(_ text: String) -> UInt32? {
    guard text.utf8.allSatisfy({ UInt8(ascii: "0")...UInt8(ascii: "9") ~= $0 }),
      let value = UInt32(text), value != UInt32.max
    else { return nil }
    return value
  }
}
