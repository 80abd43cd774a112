// SPDX-License-Identifier: Apache-2.0
//
// What the sandbox reads from the kernel, and what it concludes. Source: proc(5).

import Testing

@testable import Sandbox

private let dropped = """
  Name:\tstratad
  Uid:\t65534\t65534\t65534\t65534
  Gid:\t65533\t65533\t65533\t65533
  Groups:\t
  Threads:\t1
  CapInh:\t0000000000000000
  CapPrm:\t0000000000000000
  CapEff:\t0000000000000000
  CapBnd:\t000001ffffffffff
  CapAmb:\t0000000000000000
  NoNewPrivs:\t1

  """

@Suite struct `The status of a process` {
  @Test func `is read field by field`() throws {
    let status = try ProcessStatus(parsing: dropped)
    #expect(status.userIDs == [65_534, 65_534, 65_534, 65_534])
    #expect(status.groupIDs == [65_533, 65_533, 65_533, 65_533])
    #expect(status.heldCapabilities == 0)
    #expect(status.hasNoNewPrivileges)
  }

  @Test(arguments: ["Uid", "Gid", "CapInh", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs"])
  func `is refused when a field is missing`(field: String) {
    let text = dropped.split(separator: "\n").filter { !$0.hasPrefix("\(field):") }
    #expect(throws: SandboxError.self) {
      try ProcessStatus(parsing: text.joined(separator: "\n"))
    }
  }

  @Test func `is refused when an id is no number of 32 bits`() {
    for wrong in ["4294967296", "-1", "x", ""] {
      let text = dropped.replacing("Uid:\t65534", with: "Uid:\t\(wrong)")
      #expect(throws: SandboxError.self) { try ProcessStatus(parsing: text) }
    }
  }

  @Test(arguments: ["CapInh", "CapPrm", "CapEff", "CapAmb"])
  func `shows a capability that is held in any set`(field: String) throws {
    let text = dropped.replacing("\(field):\t0000000000000000", with: "\(field):\t0000000000000002")
    #expect(try ProcessStatus(parsing: text).heldCapabilities == 2)
  }

  @Test func `of this process can be read`() throws {
    #expect(try ProcessStatus.current().userIDs[1] == Identity.current().userID)
  }
}

@Suite struct `A sandbox finds a violation` {
  private let sandbox = Sandbox(identity: Identity(userID: 65_534, groupID: 65_533))

  private func violation(replacing old: String, with new: String) throws -> String? {
    sandbox.violation(in: try ProcessStatus(parsing: dropped.replacing(old, with: new)))
  }

  @Test func `in nothing when all is dropped`() throws {
    #expect(sandbox.violation(in: try ProcessStatus(parsing: dropped)) == nil)
  }

  @Test func `in one user id of four that is still root`() throws {
    let ids = "Uid:\t65534\t65534\t65534\t65534"
    for index in 0..<4 {
      var words = ["65534", "65534", "65534", "65534"]
      words[index] = "0"
      let text = try violation(replacing: ids, with: "Uid:\t" + words.joined(separator: "\t"))
      #expect(text?.contains("user id") == true)
    }
  }

  @Test func `in one group id that is still root's`() throws {
    let text = try violation(replacing: "Gid:\t65533\t65533", with: "Gid:\t65533\t0")
    #expect(text?.contains("group id") == true)
  }

  @Test func `in a capability`() throws {
    let text = try violation(
      replacing: "CapPrm:\t0000000000000000", with: "CapPrm:\t0000000000000080")
    #expect(text == "capabilities are left: 0x80")
  }

  @Test func `in a missing no_new_privs`() throws {
    let text = try violation(replacing: "NoNewPrivs:\t1", with: "NoNewPrivs:\t0")
    #expect(text == "no_new_privs is not set")
  }

  @Test func `in no user when it keeps the one it has`() throws {
    let staying = Sandbox(identity: nil)
    #expect(staying.violation(in: try ProcessStatus(parsing: dropped)) == nil)
  }
}
