// SPDX-License-Identifier: Apache-2.0
//
// What the verbs on running daemons have in common: whom they ask, and how they print the answer.

import ArgumentParser
import Control

/// The socket of a running daemon.
struct ControlOptions: ParsableArguments {
  static let discussion = "SOCKET is the path that stratad was given with --control."

  @Argument(help: "The daemon's control socket.")
  var socket: String

  /// Asks for a change, which the daemon does or refuses in its words.
  func order(_ request: ControlRequest) throws {
    _ = try ControlClient.ask(request, at: socket)
  }
}

/// The same for a question.
struct QuestionOptions: ParsableArguments {
  @Flag(help: "Print the daemon's own answer.")
  var json = false

  @OptionGroup var daemon: ControlOptions

  /// Asks, and prints the answer as it came or as `text` renders it.
  func ask(_ request: ControlRequest, _ text: (JSONValue) -> String) throws {
    let answer = try ControlClient.ask(request, at: daemon.socket)
    json ? print(answer.line) : print(text(answer.value), terminator: "")
  }
}

/// Which export of a daemon is meant.
struct ExportChoice: ParsableArguments {
  @Option(help: "The export, where the daemon has several.")
  var export: String?
}
