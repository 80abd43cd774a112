// SPDX-License-Identifier: Apache-2.0
//
// One rule of the protocol that a server is judged by, and the code that judges.
// This file performs no I/O.

/// How binding a rule is.
public enum LintLevel: String, Hashable, Sendable, CaseIterable, Comparable {
  /// The text says MUST.
  case must = "M"
  /// The text says SHOULD.
  case should = "S"
  /// Robustness that the text implies, or that any server needs.
  case quality = "Q"

  /// The stricter level is the smaller one.
  public static func < (a: LintLevel, b: LintLevel) -> Bool { a.rank < b.rank }

  private var rank: Int {
    switch self {
    case .must: 0
    case .should: 1
    case .quality: 2
    }
  }
}

/// A named check. Its name is that of its rule, such as `opt.unknown`.
public struct LintCheck: Sendable {
  typealias Body = @Sendable (LintServer) throws(LintStop) -> Void

  /// `group.rule`.
  public let id: String
  public let level: LintLevel
  /// The rule in one sentence.
  public let rule: String
  /// Where the rule is written: document and section.
  public let citation: String
  /// Whether it changes the disk, and is therefore only run with permission.
  public let writes: Bool
  let body: Body

  init(
    _ id: String, _ level: LintLevel, _ rule: String, _ citation: String, writes: Bool = false,
    run body: @escaping Body
  ) {
    self.id = id
    self.level = level
    self.rule = rule
    self.citation = citation
    self.writes = writes
    self.body = body
  }

  /// The part before the dot.
  public var group: String { String(id.prefix { $0 != "." }) }
}

/// The documents that the rules are cited from.
enum Source {
  /// A section of the protocol's text (NetworkBlockDevice/nbd, doc/proto.md).
  static func text(_ section: String) -> String { "proto.md, \"\(section)\"" }
  /// A section of the draft of extended headers (branch extension-ext-header).
  static func draft(_ section: String) -> String {
    "proto.md of extension-ext-header, \"\(section)\""
  }
}
