// SPDX-License-Identifier: Apache-2.0
//
// Why a check ended early. This file performs no I/O.

/// What ends a check before its end: a broken rule, or a reason not to judge.
enum LintStop: Error, Hashable, Sendable {
  /// The server did something else than the rule asks for.
  case broken(expected: String, got: String)
  /// The deadline passed while this was waited for.
  case timedOut(String)
  /// The server closed the connection while this was waited for.
  case ended(String)
  /// The server does not offer what the rule is about.
  case skipped(String)
  /// No connection came about.
  case unreachable(String)
  /// What was borrowed from the disk could not be given back.
  case notRestored(String)
}

/// What came of one check.
public enum LintOutcome: Hashable, Sendable {
  case pass
  case fail(expected: String, got: String)
  /// Not judged, and why.
  case skipped(String)
  /// Not run, because it changes the disk.
  case destructiveSkipped

  init(_ stop: LintStop, deadlineSeconds: Int) {
    switch stop {
    case .broken(let expected, let got): self = .fail(expected: expected, got: got)
    case .timedOut(let what):
      self = .fail(expected: what, got: "nothing within \(deadlineSeconds) s")
    case .ended(let what): self = .fail(expected: what, got: "the end of the connection")
    case .skipped(let reason): self = .skipped(reason)
    case .unreachable(let reason): self = .fail(expected: "a connection", got: reason)
    case .notRestored(let reason):
      self = .fail(expected: "the bytes from before the check", got: reason)
    }
  }

  /// The word for programs.
  public var word: String {
    switch self {
    case .pass: "pass"
    case .fail: "fail"
    case .skipped: "skipped"
    case .destructiveSkipped: "destructive-skipped"
    }
  }
}

/// A check with what came of it.
public struct LintResult: Sendable {
  public let check: LintCheck
  public let outcome: LintOutcome

  public init(check: LintCheck, outcome: LintOutcome) {
    self.check = check
    self.outcome = outcome
  }
}

/// Ends the check unless `condition` holds.
func demand(
  _ condition: Bool, _ expected: @autoclosure () -> String, got: @autoclosure () -> String
) throws(LintStop) {
  guard condition else { throw .broken(expected: expected(), got: got()) }
}

/// Ends the check without a verdict unless `condition` holds.
func need(_ condition: Bool, _ reason: @autoclosure () -> String) throws(LintStop) {
  guard condition else { throw .skipped(reason()) }
}
