// SPDX-License-Identifier: Apache-2.0
//
// All rules, in the order in which they are judged. This file performs no I/O.

/// The list of checks.
public enum LintCatalogue {
  /// From the greeting to the crowd: what a server breaks early is named early.
  public static let checks: [LintCheck] =
    GreetingChecks.all + OptionChecks.all + ListChecks.all + TLSChecks.all + InfoChecks.all
    + ExportChecks.all + MetaChecks.all + StatusChecks.all + ReadChecks.all + WriteChecks.all
    + ZeroChecks.all + SpaceChecks.all + TrimChecks.all + CommandChecks.all + ReadOnlyChecks.all
    + EndChecks.all
    + OrderChecks.all + ExtendedChecks.all + ExtendedFaultChecks.all + ModelChecks.all
    + CrowdChecks.all + SlowChecks.all

  /// The checks whose level is at least as strict as `level` and whose id matches one of
  /// `prefixes`; all of them when there are none.
  public static func checks(
    downTo level: LintLevel, only prefixes: [String]
  ) -> [LintCheck] {
    checks.filter { check in
      check.level <= level
        && (prefixes.isEmpty || prefixes.contains { check.id.hasPrefix($0) })
    }
  }
}
