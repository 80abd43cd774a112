// SPDX-License-Identifier: Apache-2.0
//
// Calls and words that tools/STYLE.md bans, and the budget of `unsafe`.

import Foundation
import Testing

/// L1 to L3 (DESIGN.md 3.2): no concurrency, no Foundation, no output.
private let coreModules: Set<String> = [
  "BlockTypes", "NBDProtocol", "Qcow2", "Bitmaps", "LinuxIO", "TLS", "Sandbox", "Compression",
  "Encryption", "DataPlane",
]

/// Folders and files that may hold `unsafe`.
private let unsafePlaces = [
  "Sources/LinuxIO/", "Sources/Sandbox/", "Sources/Compression/",
  "Sources/BlockTypes/BigEndian.swift",
  "Sources/TLS/TLSCredentials.swift", "Sources/TLS/TLSSession.swift",
  "Sources/TLS/TLSStream.swift", "Sources/Encryption/SecretBytes.swift",
  "Sources/Encryption/Cryptography.swift", "Sources/Encryption/VolumeCipher.swift",
]

private func expectNone(_ pattern: String, in sources: [SourceText], _ rule: Comment) {
  for source in sources {
    for match in source.matches(of: pattern) { Issue.record("\(rule): \(match)") }
  }
}

@Suite struct `banned calls` {
  @Test(arguments: [
    #"\btry\?"#, #"\btry!"#, #"\bfatalError\("#, #"\bunsafeBitCast\b"#, #"\bas!"#,
    #"\bFIXME\b"#, #"\bassert\("#,
  ])
  func `nowhere in the product`(pattern: String) throws {
    expectNone(pattern, in: try Repository.sources(), "banned")
  }

  @Test(arguments: [
    #"\bprint\("#, #"\bdebugPrint\("#, #"\bimport (Foundation|Dispatch|Logging)\b"#,
    #"\basync\b"#, #"\bawait\b"#, #"\bTask\b"#, #"^\s*(public |final )*actor\b"#,
    #"\bany Error\b"#,
  ])
  func `not in the modules from BlockTypes to DataPlane`(pattern: String) throws {
    let core = try Repository.sources().filter { coreModules.contains($0.module ?? "") }
    expectNone(pattern, in: core, "banned below ImageTools")
  }

  @Test func `no Foundation in the product, because of its start-up time`() throws {
    expectNone(#"\bimport Foundation\b"#, in: try Repository.sources(), "banned")
  }

  @Test func `an implicitly unwrapped type is nowhere in the product`() throws {
    expectNone(#":\s*[A-Z][A-Za-z0-9.<>\[\]]*!(\s|$|=)"#, in: try Repository.sources(), "banned")
  }
}

@Suite struct `unsafe code` {
  private static let pattern = #"\bunsafe\b"#

  @Test func `is only where it is budgeted`() throws {
    let others = try Repository.sources().filter { source in
      !unsafePlaces.contains { source.path.hasPrefix($0) }
    }
    expectNone(Self.pattern, in: others, "unsafe outside its budget")
  }

  @Test func `comes with a SAFETY line in its file that names the invariant`() throws {
    for source in try Repository.sources() where !source.matches(of: Self.pattern).isEmpty {
      #expect(source.lines.contains { $0.contains("// SAFETY: ") }, "\(source)")
    }
  }
}
