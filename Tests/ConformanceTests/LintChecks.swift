// SPDX-License-Identifier: Apache-2.0
//
// The rules as `strata lint` judges them, all of them for each disk. What stratad promises beyond
// them is in the other files here.

import NBDLint
import TestSupport
import Testing

/// Disks that are asked every rule.
private enum LintedKind: String, CaseIterable, Sendable {
  case raw
  case qcow2
  case readOnly
  case largeBlocks

  func serve() throws -> ServedDisk {
    // lint borrows up to 65 MiB.
    let byteCount: UInt64 = 80 << 20
    switch self {
    case .raw: return try ServedDisk(.raw, byteCount: byteCount)
    case .qcow2: return try ServedDisk(.qcow2, byteCount: byteCount)
    case .readOnly: return try ServedDisk(.raw, byteCount: byteCount, readOnly: true)
    case .largeBlocks:
      return try ServedDisk(.raw, byteCount: byteCount, readOnly: false, "--block-size", "4096")
    }
  }
}

@Suite(.serialized) struct `each rule of lint` {
  @Test(arguments: LintedKind.allCases)
  private func `is kept`(_ kind: LintedKind) throws {
    let disk = try kind.serve()
    let place = LintPlace(.unix(path: disk.socketPath))
    var run = LintRun(server: LintServer(place: place, deadlineSeconds: 20), mayWrite: true)
    try run.prepare()
    var passedCount = 0
    for check in LintCatalogue.checks {
      let outcome = run.judge(check).outcome
      switch outcome {
      case .pass: passedCount += 1
      case .skipped: break
      case .fail, .destructiveSkipped: Issue.record("\(check.id): \(outcome)")
      }
    }
    #expect(passedCount > 100)
    #expect(try disk.client().read(0, 4096).error == 0)
  }
}
