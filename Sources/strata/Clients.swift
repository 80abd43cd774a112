// SPDX-License-Identifier: Apache-2.0
//
// `strata clients`: asks a running stratad who its clients are.

import ArgumentParser
import Control

struct Clients: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "List the clients of a running daemon.",
    discussion: "SOCKET is the path that stratad was given with --control.")

  @Flag(help: "Print the daemon's own answer.")
  var json = false

  @Argument(help: "The daemon's control socket.")
  var socket: String

  func run() throws {
    let answer = try ControlClient.ask(.clients, at: socket)
    json ? print(answer.line) : print(ClientsText.text(of: answer.value), terminator: "")
  }
}
