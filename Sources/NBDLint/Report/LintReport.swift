// SPDX-License-Identifier: Apache-2.0
//
// What a run found, counted. This file performs no I/O.

/// The results of a run, in the order of the catalogue.
public struct LintReport: Sendable {
  public let uri: String
  public let survey: LintSurvey
  public let results: [LintResult]

  public init(uri: String, survey: LintSurvey, results: [LintResult]) {
    self.uri = uri
    self.survey = survey
    self.results = results
  }

  public var passedCount: Int { results.count { $0.outcome == .pass } }
  public var destructiveSkippedCount: Int { results.count { $0.outcome == .destructiveSkipped } }

  public var skippedCount: Int {
    results.count {
      if case .skipped = $0.outcome { true } else { false }
    }
  }

  /// The failures of a level, or of all.
  public func failures(_ level: LintLevel? = nil) -> [LintResult] {
    results.filter { result in
      guard case .fail = result.outcome else { return false }
      return level == nil || result.check.level == level
    }
  }

  /// The exit status: 1 when a MUST, or with `isStrict` also a SHOULD, was broken; else 0.
  public func exitCode(isStrict: Bool) -> Int32 {
    let isBroken =
      !failures(.must).isEmpty || isStrict && !failures(.should).isEmpty
    return isBroken ? 1 : 0
  }
}

extension LintLevel {
  /// The word for people.
  public var word: String {
    switch self {
    case .must: "MUST"
    case .should: "SHOULD"
    case .quality: "quality"
    }
  }
}
