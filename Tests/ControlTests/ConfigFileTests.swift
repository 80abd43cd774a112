// SPDX-License-Identifier: Apache-2.0
//
// The text of a configuration file. Source: stratad(8), "CONFIGURATION FILE".

import Control
import Testing

private func fault(_ text: String) -> String? {
  do throws(ControlError) {
    _ = try ConfigFile(parsing: text, path: "strata.conf")
    return nil
  } catch {
    return error.subject
  }
}

@Suite struct `A configuration file` {
  @Test func `has a section for the server and one for each export`() throws {
    let file = try ConfigFile(
      parsing: """
        # all exports
        [server]
        socket = /run/strata/nbd.sock

        [export vm 1]
          image=/images/a=b.qcow2
        ; a comment
        read-only =  yes
        [ export other ]
        image = x
        """, path: "strata.conf")
    #expect(file.server.map(\.key) == ["socket"])
    #expect(file.server.map(\.value) == ["/run/strata/nbd.sock"])
    #expect(file.server.map(\.line) == [3])
    #expect(file.exports.map(\.name) == ["vm 1", "other"])
    #expect(file.exports.map(\.line) == [5, 9])
    #expect(file.exports[0].entries.map(\.key) == ["image", "read-only"])
    #expect(file.exports[0].entries.map(\.value) == ["/images/a=b.qcow2", "yes"])
  }

  @Test func `may be empty`() { #expect(fault("\n\n") == nil) }

  @Test(arguments: [
    ("socket = x", 1), ("\n[server\n", 2), ("[sever]", 1), ("[export]", 1),
    ("[server]\n\nsocket\n", 3),
  ])
  func `that is wrong is named with its line`(text: String, line: Int) {
    #expect(fault(text) == "strata.conf:\(line)")
  }
}
