// SPDX-License-Identifier: Apache-2.0
//
// A report for people: failures first, then what was not judged and why, then the counts.
// This file performs no I/O.

import ImageTools

extension LintReport {
  /// Ends with a line feed.
  public var humanText: String {
    var lines = [uri, head, ""]
    for level in LintLevel.allCases {
      for result in failures(level) { lines += LintReport.lines(of: result) + [""] }
    }
    lines += skippedLines
    lines.append(counts)
    return lines.joined(separator: "\n") + "\n"
  }

  private var head: String {
    guard let byteCount = survey.byteCount else { return "the export could not be entered" }
    let access = survey.isReadOnly ? "read-only" : "writable"
    let block = survey.minimumBlockByteCount.map { ", smallest request \($0)" } ?? ""
    let tls = survey.tlsVersion.map { ", inside \($0)" } ?? ""
    return "\(ByteCountText.describe(byteCount)), \(access)\(block)\(tls)"
  }

  private static func lines(of result: LintResult) -> [String] {
    guard case .fail(let expected, let got) = result.outcome else { return [] }
    let check = result.check
    return [
      "FAIL \(check.level.word) \(check.id): \(check.rule)",
      "     expected: \(expected)",
      "     got:      \(got)",
      "     rule:     \(check.citation)",
    ]
  }

  /// Checks that gave no verdict, by reason.
  private var skippedLines: [String] {
    var reasons: [String] = []
    var ids: [String: [String]] = [:]
    for result in results {
      let reason: String
      switch result.outcome {
      case .skipped(let text): reason = text
      case .destructiveSkipped: reason = "they write to the disk, which needs --write"
      case .pass, .fail: continue
      }
      if ids[reason] == nil { reasons.append(reason) }
      ids[reason, default: []].append(result.check.id)
    }
    guard !reasons.isEmpty else { return [] }
    var lines = ["not judged:"]
    for reason in reasons {
      let list = ids[reason] ?? []
      lines.append("  \(reason):" + LintReport.wrapped(list))
    }
    return lines + [""]
  }

  /// Names by blanks, on lines of their own when there are many.
  private static func wrapped(_ words: [String]) -> String {
    guard words.count > 2 else { return " " + words.joined(separator: " ") }
    var lines: [String] = []
    var line = "   "
    for word in words {
      if line.count + word.count > 95 {
        lines.append(line)
        line = "   "
      }
      line += " " + word
    }
    return "\n" + (lines + [line]).joined(separator: "\n")
  }

  private var counts: String {
    let failed = LintLevel.allCases.map { "\(failures($0).count) \($0.word)" }
    let unwritten = destructiveSkippedCount
    return
      "\(passedCount) passed, \(failures().count) failed (\(failed.joined(separator: ", "))), "
      + "\(skippedCount) not judged" + (unwritten > 0 ? ", \(unwritten) need --write" : "")
  }
}
