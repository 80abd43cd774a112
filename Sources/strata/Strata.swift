// SPDX-License-Identifier: Apache-2.0
//
// The `strata` command: verbs on images, `serve`, and verbs on running daemons.

import ArgumentParser
import ImageTools
import LinuxIO

@main
enum Main {
  /// Errors go to standard error as `strata: FILE: cause; way out`, with exit code 1.
  static func main() {
    var command: any ParsableCommand
    do {
      command = try Strata.parseAsRoot()
    } catch  where Strata.exitCode(for: error) != .success && isLint {
      // Status 1 of lint means a broken rule, and 64 nothing: its page promises 2.
      report(Strata.fullMessage(for: error))
      Strata.exit(withError: ExitCode(Lint.usageExitCode))
    } catch {
      Strata.exit(withError: error)
    }
    do {
      try command.run()
    } catch let error as ExitCode {
      Strata.exit(withError: error)
    } catch let error as CleanExit {
      Strata.exit(withError: error)
    } catch let error as ValidationError {
      Strata.exit(withError: error)
    } catch  where Strata.exitCode(for: error) == .success {
      Strata.exit(withError: error)  // --help of a subcommand
    } catch {
      report("strata: \(error)")
      Strata.exit(withError: ExitCode.failure)
    }
  }
}

/// Whether the verb on the command line is `lint`.
private var isLint: Bool { CommandLine.arguments.dropFirst().first == "lint" }

/// Says something on standard error. A stream that cannot be written is ignored: there is nobody
/// left to tell.
func report(_ line: String) {
  do throws(SystemError) { try TextOutput.standardError.writeLine(line) } catch {}
}

struct Strata: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "strata",
    abstract: "Copy-on-write disk images for hypervisors.",
    version: "0.1.0",
    subcommands: [
      Create.self, Convert.self, Commit.self, Serve.self, Info.self, Check.self, Map.self,
      Snapshot.self, Key.self, Status.self, Exports.self, Clients.self, Kick.self, Reload.self,
      Resize.self, Bitmap.self, NBD.self, Attach.self, Detach.self, Lint.self,
    ])
}

/// How a verb prints what it found.
enum OutputFormat: String, ExpressibleByArgument, CaseIterable {
  case human
  case json
}
