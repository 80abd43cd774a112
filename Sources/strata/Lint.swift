// SPDX-License-Identifier: Apache-2.0
//
// `strata lint`: tells whether an NBD server keeps the protocol.

import ArgumentParser
import NBDClient
import NBDLint
import NBDProtocol
import TLS

struct Lint: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Tell whether an NBD server keeps the protocol.",
    discussion: """
      URI is nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH; with nbds instead of nbd \
      the server is judged inside TLS. Each rule of the protocol is one check with connections of \
      its own. Without --write nothing is written. With it, parts \
      of the disk are overwritten and given back afterwards: nobody else may use the disk, and \
      the run must not be interrupted.

      Exit status: 0 when no MUST is broken, 1 when one is (with --strict: or a SHOULD), 2 for \
      wrong options and when there is no server.
      """)

  @Flag(help: "Print JSON.")
  var json = false

  @Flag(help: "Run the checks that write, too; they give back the bytes that they overwrite.")
  var write = false

  @Flag(help: "Exit with 1 for a broken SHOULD, too.")
  var strict = false

  @Option(help: ArgumentHelp("Checks of this level and the stricter ones.", valueName: "M|S|Q"))
  var level = LintLevel.quality

  @Option(help: ArgumentHelp("Only checks whose names begin so; repeatable.", valueName: "prefix"))
  var only: [String] = []

  @Option(help: ArgumentHelp("How long an answer may take.", valueName: "seconds"))
  var timeout = 5

  @Option(
    help: ArgumentHelp("The server drops silent clients after this long.", valueName: "seconds"))
  var handshakeTimeout: Int?

  @Option(
    help: ArgumentHelp("The file behind a raw export, to see its space.", valueName: "path"))
  var rawFile: String?

  @Option(help: ArgumentHelp("A second export of the server.", valueName: "name"))
  var otherExport: String?

  @OptionGroup var tls: ClientTLSOptions

  @Flag(help: "List the checks and run none.")
  var list = false

  @Argument(help: "The server and its export.")
  var uri: String?

  /// The exit status of wrong options.
  static let usageExitCode: Int32 = 2

  func run() throws {
    let checks = LintCatalogue.checks(downTo: level, only: only)
    guard !checks.isEmpty else {
      throw refusal("no check is named \(only.joined(separator: ", "))")
    }
    if list {
      json ? print(LintCheck.jsonText(of: checks)) : printList(checks)
      return
    }
    guard let uri else { throw refusal("a URI is missing, such as nbd+unix:///?socket=PATH") }
    guard (1...600).contains(timeout), (1...600).contains(handshakeTimeout ?? 1) else {
      throw refusal("a timeout is 1 to 600 seconds")
    }
    let found: LintReport
    do throws(LintRefusal) {
      let server = try server(at: uri)
      var run = LintRun(server: server, mayWrite: write)
      try run.prepare()
      var results: [LintResult] = []
      for check in checks { results.append(run.judge(check)) }
      found = LintReport(uri: uri, survey: run.survey, results: results)
    } catch { throw refusal("\(error)") }
    json ? print(found.jsonText) : print(found.humanText, terminator: "")
    throw ExitCode(found.exitCode(isStrict: strict))
  }

  private func server(at text: String) throws(LintRefusal) -> LintServer {
    let uri: NBDURI
    do throws(NBDURIFault) {
      uri = try NBDURI(text)
    } catch {
      throw LintRefusal("\(text): \(error)")
    }
    let address: LintPlace.Address =
      switch uri.endpoint {
      case .unix(let path): .unix(path: path)
      case .tcp(let host, let port): .tcp(host: host ?? "localhost", port: port)
      case .vsock(let contextID, let port): .vsock(contextID: contextID, port: port)
      }
    do throws(NBDClientFault) {
      return LintServer(
        place: LintPlace(address, export: uri.exportName), deadlineSeconds: timeout,
        handshakeSecondsMax: handshakeTimeout, tls: try plan(for: uri), rawFilePath: rawFile,
        otherExport: otherExport)
    } catch {
      throw LintRefusal("\(text): \(error)")
    }
  }

  /// What TLS needs; the judge takes it or leaves it, so there is no `offered`.
  private func plan(for uri: NBDURI) throws(NBDClientFault) -> TLSClientPlan? {
    guard tls.wishes.use != .offered else {
      throw .unsupported("lint judges with TLS or without: --tls is required or off")
    }
    return try tls.wishes.plan(for: uri)
  }

  private func printList(_ checks: [LintCheck]) {
    for check in checks {
      let mark = check.writes ? " (writes)" : ""
      print("\(check.level.rawValue) \(check.id)\(mark): \(check.rule) [\(check.citation)]")
    }
    print("\(checks.count) checks")
  }

  /// Says what is wrong and returns what ends the command.
  private func refusal(_ reason: String) -> ExitCode {
    report("strata: lint: \(reason)")
    return ExitCode(Self.usageExitCode)
  }
}

extension LintLevel: ExpressibleByArgument {}
