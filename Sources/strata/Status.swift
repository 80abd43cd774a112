// SPDX-License-Identifier: Apache-2.0
//
// `strata status`: asks a running stratad what an export has done.

import ArgumentParser
import Control

struct Status: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Show what an export of a running daemon has done.",
    discussion: "SOCKET is the path that stratad was given with --control.")

  @Flag(help: "Print the daemon's own answer.")
  var json = false

  @Option(help: "The export, where the daemon has several.")
  var export: String?

  @Argument(help: "The daemon's control socket.")
  var socket: String

  func run() throws {
    let answer = try ControlClient.ask(.status(export: export), at: socket)
    json ? print(answer.line) : print(StatusText.text(of: answer.value), terminator: "")
  }
}
