// SPDX-License-Identifier: Apache-2.0
//
// The file of shared keys. Source: psktool(1).

import TLS
import Testing

@Suite struct `A file of shared keys` {
  private let key = String(repeating: "5a", count: 32)

  private func table(_ text: String) throws -> PSKTable { try PSKTable(parsing: Array(text.utf8)) }

  private func fault(_ text: String) -> String? {
    do throws(TLSFault) {
      _ = try PSKTable(parsing: Array(text.utf8))
      return nil
    } catch {
      return error.description
    }
  }

  @Test func `has an identity and a key on each line`() throws {
    let table = try table("alice:\(key)\nbob:\(key.uppercased())\r\n\n")
    #expect(table.entries.map { String(decoding: $0.identity, as: UTF8.self) } == ["alice", "bob"])
    #expect(table.entries.allSatisfy { $0.key == [UInt8](repeating: 0x5a, count: 32) })
  }

  @Test func `may have an identity in hexadecimal, and one with colons`() throws {
    let table = try table("#616c:\(key)\nurn:x:y:\(key)")
    let names = table.entries.map { String(decoding: $0.identity, as: UTF8.self) }
    #expect(names == ["al", "urn:x:y"])
  }

  @Test func `is refused by line, without a word of what stands there`() {
    for (text, reason) in [
      ("alice", "line 1: it is not IDENTITY:KEY"),
      ("alice:\(key)\nbob:xyz0", "line 2: its key is not hexadecimal"),
      ("alice:\(key)a", "line 1: its key is not hexadecimal"),
      ("alice:5a5a", "line 1: its key has 2 bytes, and 16...512 are allowed"),
      (":\(key)", "line 1: its identity is not of 1...1024 bytes"),
      ("#6:\(key)", "line 1: its identity starts with # and is not hexadecimal"),
      ("#00:\(key)", "line 1: its identity has a zero byte"),
      ("alice:\(key)\nalice:\(key)", "line 2: its identity is in the file already"),
      ("", "file: there is no identity in it"),
    ] {
      #expect(fault(text) == reason)
    }
  }

  @Test func `has at most 4096 identities`() {
    let lines = (0..<4_097).map { "user\($0):\(key)\n" }
    #expect(fault(lines.dropLast().joined()) == nil)
    #expect(fault(lines.joined()) == "line 4097: there are more than 4096 identities")
  }
}
