// SPDX-License-Identifier: Apache-2.0
//
// Each seeded fault is named by the check of its rule, and the run goes on to its end.

import NBDLint
import TestSupport
import Testing

/// Judges a scripted server by the checks whose names begin with one of `only`.
private func judge(
  _ server: ScriptedServer, only: [String] = [], writes: Bool = true
) throws -> LintReport {
  var run = LintRun(
    server: LintServer(place: LintPlace(.unix(path: server.path)), deadlineSeconds: 1),
    mayWrite: writes)
  try run.prepare()
  var results: [LintResult] = []
  for check in LintCatalogue.checks(downTo: .quality, only: only) {
    results.append(run.judge(check))
  }
  return LintReport(uri: "nbd+unix:///?socket=x", survey: run.survey, results: results)
}

/// The check that must fail for each fault.
private let named: [Fault: [String]] = [
  .greetingMagic: ["greet.magic"],
  .greetingFlag: ["greet.flags"],
  .keepsUnknownClientFlag: ["greet.unknown-client-flag"],
  .hangsOnUnknownOption: ["opt.unknown", "opt.unknown-payload"],
  .closesOnUnknownOption: ["opt.unknown", "opt.unknown-20"],
  .forgetsOptionData: ["opt.unknown-payload"],
  .garbageOptionReply: ["list.basic"],
  .overlongDescription: ["list.basic"],
  .reservedFlag: ["flags.no-reserved"],
  .flagDFWithoutStructured: ["flags.df-needs-structured"],
  .differentSizeByName: ["export-name.same-as-go"],
  .paddingAfterGo: ["go.no-padding"],
  .badBlockSize: ["info.block-size"],
  .acceptsTrailingJunk: ["info.trailing-junk"],
  .acceptsQueryOverrun: ["meta.query-overrun"],
  .contextTwice: ["meta.set-duplicate"],
  .otherCookie: ["order.cookies"],
  .shortData: ["read.simple", "read.structured"],
  .simpleReplyToStructuredRead: ["read.structured"],
  .overlappingChunks: ["read.structured"],
  .statusTooLong: ["bs.req-one"],
  .acceptsReadPastEnd: ["read.oob"],
  .readPastEndEnds: ["read.oob"],
  .wrongWriteErrno: ["write.oob"],
  .losesPayload: ["write.unknown-flag"],
  .zeroesTooMuch: ["wz.basic", "wz.unaligned"],
  .trimsTooMuch: ["trim.basic"],
  .answersDISC: ["disc.soft"],
  .hangsAtDISC: ["disc.soft"],
  .otherBytesOnSecondRead: ["read.modes-agree"],
]

@Suite struct `lint before a scripted server` {
  @Test func `finds nothing where there is nothing`() throws {
    let report = try judge(try ScriptedServer(.none))
    #expect(report.failures().map { "\($0.check.id): \($0.outcome)" } == [])
    #expect(report.passedCount > 100)
  }

  @Test(arguments: Fault.allCases.filter { $0 != .none })
  func `names the rule that is broken`(_ fault: Fault) throws {
    let expected = try #require(named[fault], "no rule is named for \(fault)")
    let report = try judge(try ScriptedServer(fault), only: expected)
    let failed = report.failures().map(\.check.id)
    for id in expected { #expect(failed.contains(id), "\(fault): \(report.humanText)") }
  }

  @Test(arguments: [
    Fault.hangsOnUnknownOption, .closesOnUnknownOption, .otherCookie, .greetingMagic,
  ])
  func `goes on to the end of the list`(_ fault: Fault) throws {
    let report = try judge(try ScriptedServer(fault), writes: false)
    #expect(report.results.count == LintCatalogue.checks.count)
    #expect(!report.failures().isEmpty)
  }

  @Test func `a hang fails one check and not the others`() throws {
    let report = try judge(
      try ScriptedServer(.hangsOnUnknownOption), only: ["opt.", "read.", "greet."])
    let failed = Set(report.failures().map(\.check.id))
    let unknown: Set = ["opt.unknown", "opt.unknown-payload", "opt.unknown-20", "opt.peek-export"]
    #expect(failed.isSubset(of: unknown) && !failed.isEmpty)
  }

  @Test func `gives back what it overwrote`() throws {
    let server = try ScriptedServer(.none)
    let before = server.contents
    let only = ["write.", "wz.", "trim.", "disc.", "model.", "load.", "bs."]
    let report = try judge(server, only: only)
    #expect(report.passedCount > 30)
    #expect(server.contents == before)
  }

  @Test func `gives back what it overwrote when the check has failed`() throws {
    let server = try ScriptedServer(.zeroesTooMuch)
    let before = server.contents
    #expect(try judge(server, only: ["wz.basic"]).failures().count == 1)
    #expect(server.contents == before)
  }

  @Test func `writes nothing unless it may`() throws {
    let server = try ScriptedServer(.none)
    let before = server.contents
    let report = try judge(server, writes: false)
    #expect(server.contents == before)
    #expect(report.destructiveSkippedCount > 30)
    #expect(report.results.allSatisfy { !$0.check.writes || $0.outcome == .destructiveSkipped })
  }
}

@Suite struct `the list of checks` {
  @Test func `has each name once, with a rule and a citation`() {
    let checks = LintCatalogue.checks
    #expect(Set(checks.map(\.id)).count == checks.count)
    #expect(checks.allSatisfy { $0.rule.hasSuffix(".") && $0.citation.contains("proto.md") })
  }

  @Test func `is cut by level and by name`() {
    let musts = LintCatalogue.checks(downTo: .must, only: [])
    #expect(!musts.isEmpty && musts.allSatisfy { $0.level == .must })
    let some = LintCatalogue.checks(downTo: .quality, only: ["greet.", "opt.unknown"])
    #expect(some.count == 4 + 3)
  }
}
