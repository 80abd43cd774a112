// SPDX-License-Identifier: Apache-2.0
//
// A report for programs; strata(1) describes its keys. This file performs no I/O.

import ImageTools

extension LintReport {
  /// One JSON document.
  public var jsonText: String {
    var writer = JSONWriter()
    writer.beginObject()
    writer.field("uri", uri)
    if let byteCount = survey.byteCount {
      writer.beginObject("export")
      writer.field("size", byteCount)
      writer.field("flags", survey.flags)
      writer.field("read-only", survey.isReadOnly)
      if let block = survey.minimumBlockByteCount { writer.field("minimum-block", block) }
      writer.end()
    }
    if let version = survey.tlsVersion { writer.field("tls", version) }
    writer.beginObject("counts")
    writer.field("pass", passedCount)
    writer.field("fail", failures().count)
    for level in LintLevel.allCases {
      writer.field("fail-\(level.rawValue)", failures(level).count)
    }
    writer.field("skipped", skippedCount)
    writer.field("destructive-skipped", destructiveSkippedCount)
    writer.end()
    writer.beginArray("checks")
    for result in results { result.write(into: &writer) }
    writer.end()
    writer.end()
    return writer.finish()
  }
}

extension LintCheck {
  /// The rules without results.
  public static func jsonText(of checks: [LintCheck]) -> String {
    var writer = JSONWriter()
    writer.beginArray()
    for check in checks {
      writer.beginObject()
      check.writeRule(into: &writer)
      writer.end()
    }
    writer.end()
    return writer.finish()
  }

  fileprivate func writeRule(into writer: inout JSONWriter) {
    writer.field("id", id)
    writer.field("level", level.rawValue)
    writer.field("rule", rule)
    writer.field("citation", citation)
    writer.field("writes", writes)
  }
}

extension LintResult {
  fileprivate func write(into writer: inout JSONWriter) {
    writer.beginObject()
    check.writeRule(into: &writer)
    writer.field("result", outcome.word)
    switch outcome {
    case .pass, .destructiveSkipped: break
    case .fail(let expected, let got):
      writer.field("expected", expected)
      writer.field("got", got)
    case .skipped(let reason): writer.field("reason", reason)
    }
    writer.end()
  }
}
