// SPDX-License-Identifier: Apache-2.0
//
// `strata clients`: asks a running stratad who its clients are.

import ArgumentParser
import Control

struct Clients: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "List the clients of a running daemon.", discussion: ControlOptions.discussion)

  @OptionGroup var question: QuestionOptions

  func run() throws { try question.ask(.clients, ClientsText.text) }
}
