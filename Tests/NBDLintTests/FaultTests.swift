// SPDX-License-Identifier: Apache-2.0
//
// Each seeded fault is named by the check of its rule, and the run goes on to its end.

import NBDLint
import TLS
import TestSupport
import Testing

/// The key of servers with TLS.
enum LintedKeys {
  private static let key = [UInt8](repeating: 0x5a, count: 16)
  static let proof = ServerProof.key(identity: "lint", bytes: key)
  static let plan = TLSClientPlan(
    .keys(PSKTable(identity: Array("lint".utf8), key: key)), host: nil)
}

/// Judges a scripted server by the checks whose names begin with one of `only`.
///
/// - Parameter seconds: that an answer may take. One is for servers that are asked to hang; others
///   may be slow beside the rest of the tests.
private func judge(
  _ server: ScriptedServer, only: [String] = [], writes: Bool = true, seconds: Int = 1
) throws -> LintReport {
  var run = LintRun(
    server: LintServer(
      place: LintPlace(.unix(path: server.path)), deadlineSeconds: seconds,
      tls: server.fault.hasTLS ? LintedKeys.plan : nil),
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
  .oddAnswerToExtended: ["ext.negotiate"],
  .acceptsExtendedData: ["ext.data"],
  .structuredWinsOverExtended: ["ext.after-structured"],
  .secondExtendedResets: ["ext.duplicate"],
  .structuredAfterExtended: ["ext.structured-after"],
  .noMetaWithoutStructured: ["ext.meta-without-structured"],
  .payloadFlagWithoutContext: ["ext.flag-payload"],
  .otherOffsetInChunk: ["ext.read"],
  .simpleErrorsInExtended: ["ext.errors"],
  .dropsExtendedWrites: ["ext.write"],
  .compactStatusInExtended: ["ext.block-status"],
  .upperStatusBits: ["ext.block-status"],
  .otherStatusInExtended: ["ext.same-status"],
  .hangsWithoutPayloadFlag: ["ext.write-no-payload-flag"],
  .leavesPayloadOfOthers: ["ext.payload-on-others"],
  .waitsForHugePayload: ["ext.payload-too-large"],
  .takesCompactRequests: ["ext.compact-magic"],
  .cutsReadLengths: ["ext.read-64bit-length"],
  .cutsLengths: ["ext.trim-wz-64bit-oob", "ext.wz-64bit"],
  .refusesLongStatus: ["ext.block-status-64bit"],
  .ignoresStatusPayload: ["ext.bs-payload"],
  .acceptsUnknownContextIDs: ["ext.bs-payload-bad"],
  .acceptsSecondStartTLS: ["tls.second-starttls"],
  .keepsStateOverTLS: ["tls.state-dropped"],
  .acceptsStartTLSData: ["tls.starttls-data"],
  .refusesAbortBeforeTLS: ["tls.forced"],
  .obeysPlainTextBehindStartTLS: ["tls.plain-inject"],
]

/// Faults that show only where there are more than 4 GiB.
private let hugeFaults: Set<Fault> = [.cutsLengths, .refusesLongStatus]

@Suite struct `lint before a scripted server` {
  @Test func `finds nothing where there is nothing`() throws {
    let report = try judge(try ScriptedServer(.none), seconds: 60)
    #expect(report.failures().map { "\($0.check.id): \($0.outcome)" } == [])
    #expect(report.passedCount > 100)
  }

  @Test func `finds nothing where there is nothing, inside TLS`() throws {
    let report = try judge(try ScriptedServer(.offersTLS), seconds: 60)
    #expect(report.failures().map { "\($0.check.id): \($0.outcome)" } == [])
    #expect(report.passedCount > 125)
    #expect(report.survey.tlsVersion == "TLS1.3")
  }

  @Test func `finds nothing where there is nothing, on 9 GiB`() throws {
    let report = try judge(
      try ScriptedServer(.none, size: 9 << 30), only: ["ext."], seconds: 60)
    #expect(report.failures().map { "\($0.check.id): \($0.outcome)" } == [])
    #expect(report.skippedCount == 0, "\(report.humanText)")
  }

  @Test func `refuses to judge where TLS does not come about`() throws {
    let server = try ScriptedServer(.none)
    var run = LintRun(
      server: LintServer(
        place: LintPlace(.unix(path: server.path)), deadlineSeconds: 1, tls: LintedKeys.plan),
      mayWrite: false)
    do throws(LintRefusal) {
      try run.prepare()
      Issue.record("a server without TLS was judged inside TLS")
    } catch { #expect("\(error)".contains("TLS: ")) }
  }

  @Test(arguments: Fault.allCases.filter { $0 != .none && $0 != .offersTLS })
  func `names the rule that is broken`(_ fault: Fault) throws {
    let expected = try #require(named[fault], "no rule is named for \(fault)")
    let size: UInt64 = hugeFaults.contains(fault) ? 9 << 30 : UInt64(ScriptedServer.byteCount)
    let report = try judge(try ScriptedServer(fault, size: size), only: expected)
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
    let report = try judge(server, only: only, seconds: 60)
    #expect(report.passedCount > 30)
    #expect(server.contents == before)
  }

  @Test func `gives back what it overwrote when the check has failed`() throws {
    let server = try ScriptedServer(.zeroesTooMuch)
    let before = server.contents
    #expect(try judge(server, only: ["wz.basic"], seconds: 60).failures().count == 1)
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
