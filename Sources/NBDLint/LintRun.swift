// SPDX-License-Identifier: Apache-2.0
//
// Running checks against a server, whatever it does. This file makes connections.

import LinuxIO

/// One run: the checks one after the other, each with connections of its own.
public struct LintRun {
  private var server: LintServer
  private let mayWrite: Bool
  /// Why no more checks are run; nil while they are.
  private var end: String?
  /// Why an export cannot be entered at all; nil when it can.
  private var noEntry: String?
  /// Whether everything but STARTTLS is refused.
  private var wantsTLS = false

  /// What was found out before the checks.
  public private(set) var survey = LintSurvey()

  public init(server: LintServer, mayWrite: Bool) {
    self.server = server
    self.mayWrite = mayWrite
  }

  /// Looks at the server; throws when nothing answers there at all.
  public mutating func prepare() throws(LintRefusal) {
    do throws(LintStop) { _ = try server.connect() } catch {
      guard case .unreachable(let reason) = error else { throw LintRefusal("\(error)") }
      throw LintRefusal("no connection: \(reason)")
    }
    if server.tls != nil {
      // Without it, hardly a rule could be judged, and that must not look like a good server.
      do throws(LintStop) { survey.tlsVersion = try server.greeted().socket.tlsVersion } catch {
        throw LintRefusal(
          "TLS: \(LintOutcome(error, deadlineSeconds: server.deadlineSeconds).text)")
      }
    } else {
      do throws(LintStop) {
        let probe = try server.greeted()
        let answer = try probe.ask(Option.info, Probe.infoData(server.export, [Info.blockSize]))
        wantsTLS = answer.type == Reply.tlsRequired
      } catch {}  // a check will tell
    }
    do throws(LintStop) {
      let probe = try server.entered(.simple)
      let version = survey.tlsVersion
      survey = LintSurvey(probe)
      survey.tlsVersion = version
      withExtendedLifetime(probe) {
        server.servesSecondClient = server.withShortDeadline.greets
      }
    } catch { noEntry = LintOutcome(error, deadlineSeconds: server.deadlineSeconds).text }
    guard isThere() else {
      throw LintRefusal("the server ended with its first client; let it serve more than one")
    }
  }

  /// Judges by one check.
  public mutating func judge(_ check: LintCheck) -> LintResult {
    LintResult(check: check, outcome: outcome(of: check))
  }

  private mutating func outcome(of check: LintCheck) -> LintOutcome {
    if let end { return .skipped(end) }
    if check.writes && !mayWrite { return .destructiveSkipped }
    if wantsTLS && !LintRun.idsBeforeTLS.contains(check.id) && check.group != "tls" {
      return .skipped("the server wants TLS first: say nbds:")
    }
    if let noEntry, !LintRun.groupsWithoutEntry.contains(check.group) {
      return .skipped("the export cannot be entered: \(noEntry)")
    }
    do throws(LintStop) { try check.body(server) } catch {
      if case .notRestored(let reason) = error { end = "after \(check.id): \(reason)" }
      if case .timedOut(Probe.greetingText) = error, !server.servesSecondClient {
        return .skipped("the server serves one client at a time")
      }
      if case .skipped = error {} else { waitForServer(after: check) }
      return LintOutcome(error, deadlineSeconds: server.deadlineSeconds)
    }
    return .pass
  }

  /// What can be judged where everything but STARTTLS is refused, besides `tls`.
  private static let idsBeforeTLS: Set<String> = [
    "greet.magic", "greet.flags", "greet.unknown-client-flag",
  ]

  /// Groups that say something even when the way into an export is broken.
  private static let groupsWithoutEntry: Set<String> = [
    "greet", "opt", "list", "tls", "starttls", "info", "go", "export-name", "structured", "meta",
  ]

  /// After a failure: a server that died may be started again by its keeper.
  private mutating func waitForServer(after check: LintCheck) {
    if !isThere() { end = "the server is gone since \(check.id)" }
  }

  /// Whether somebody answers within three seconds.
  private func isThere() -> Bool {
    for _ in 0..<30 {
      if server.answers { return true }
      MonotonicClock.sleep(milliseconds: 100)
    }
    return false
  }
}

/// What a server told before the checks, for the head of a report.
public struct LintSurvey: Hashable, Sendable {
  public var byteCount: UInt64?
  public var isReadOnly = false
  public var flags: UInt16 = 0
  public var minimumBlockByteCount: Int?
  /// "TLS1.3"; nil when everything was said in clear.
  public var tlsVersion: String?

  init() {}

  init(_ probe: Probe) {
    byteCount = probe.size
    flags = probe.flags
    isReadOnly = probe.has(ExportFlag.readOnly)
    minimumBlockByteCount = probe.blockByteCount
  }
}

extension LintServer {
  fileprivate var withShortDeadline: LintServer {
    with(deadlineSeconds: min(deadlineSeconds, 2))
  }

  /// Whether somebody is there: says something, or at least does not leave at once.
  fileprivate var answers: Bool {
    do throws(LintStop) {
      let probe = try connect()
      guard try probe.socket.hasInput(withinMilliseconds: 1000) else { return true }
      _ = try probe.socket.receive(1, "a byte of a greeting")
      return true
    } catch { return false }
  }

  /// Whether a greeting comes.
  fileprivate var greets: Bool {
    do throws(LintStop) {
      _ = try greeted()
      return true
    } catch { return false }
  }
}
