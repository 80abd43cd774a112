// SPDX-License-Identifier: Apache-2.0
//
// Users and groups by name and by number. Every Debian system has root, nobody and nogroup.

import Sandbox
import Testing

@Suite struct `An identity` {
  @Test func `by name has the user's own group`() throws {
    #expect(try Identity(parsing: "nobody") == Identity(userID: 65_534, groupID: 65_534))
  }

  @Test func `may name another group`() throws {
    #expect(try Identity(parsing: "nobody:root") == Identity(userID: 65_534, groupID: 0))
    #expect(try Identity(parsing: "nobody:12") == Identity(userID: 65_534, groupID: 12))
  }

  @Test func `may be a number`() throws {
    #expect(try Identity(parsing: "65534") == Identity(userID: 65_534, groupID: 65_534))
    #expect(try Identity(parsing: "54321:54322") == Identity(userID: 54_321, groupID: 54_322))
  }

  @Test func `by a number that no user has needs a group`() {
    #expect(
      throws: SandboxError(
        "user 54321 has no entry that tells its group", wayOut: "say 54321:GROUP")
    ) {
      try Identity(parsing: "54321")
    }
  }

  // setresuid(2) takes -1 for "leave it": such an id would silently stay root.
  @Test(arguments: [
    "4294967295", "4294967295:1", "65534:4294967295", "", ":", "nobody:", "-1", "no such user",
  ])
  func `is refused when it is nobody's`(text: String) {
    #expect(throws: SandboxError.self) { try Identity(parsing: text) }
  }
}
