// SPDX-License-Identifier: Apache-2.0
//
// `strata exports`: asks a running stratad what it serves.

import ArgumentParser
import Control

struct Exports: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "List the exports of a running daemon.",
    discussion: "SOCKET is the path that stratad was given with --control.")

  @Flag(help: "Print the daemon's own answer.")
  var json = false

  @Argument(help: "The daemon's control socket.")
  var socket: String

  func run() throws {
    let answer = try ControlClient.ask(.exports, at: socket)
    json ? print(answer.line) : print(ExportsText.text(of: answer.value), terminator: "")
  }
}
